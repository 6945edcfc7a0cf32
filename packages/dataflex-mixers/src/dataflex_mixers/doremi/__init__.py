"""DoReMi: the mixer that trains the proxy, its reference model, and the command that runs the three steps."""
