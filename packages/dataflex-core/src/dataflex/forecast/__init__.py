"""What a run will take before it starts: steps, rows, passes of the model, FLOPs, memory and disk. Loads no weights."""
