"""Comparing strategies: a file of arms and seeds, its controls, the runs, and what they say. Imports no torch."""
