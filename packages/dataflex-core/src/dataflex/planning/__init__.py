"""Which rows are trained on, in which order: the mixture of sources, and the loader that walks the plan."""
