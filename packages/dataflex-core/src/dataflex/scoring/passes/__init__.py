"""Passes of the model over rows: which rows go together, how much at once, and what is kept when a run stops."""
