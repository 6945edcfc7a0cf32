"""How much each token counts: the one replacement of the loss, and what is measured while it is computed."""
