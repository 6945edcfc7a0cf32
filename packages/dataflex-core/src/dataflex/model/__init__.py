"""A causal model looked at: inside of what wraps it, its output layer, its logits, hidden states and losses."""
