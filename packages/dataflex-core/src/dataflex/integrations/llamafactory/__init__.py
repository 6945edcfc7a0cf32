"""The adapter to LLaMA-Factory: the only place that knows it."""
