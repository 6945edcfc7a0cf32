"""Planning of rows: in which order, from which source, and the loader that walks the plan."""
