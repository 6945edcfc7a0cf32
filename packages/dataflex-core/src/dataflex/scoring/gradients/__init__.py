"""Gradients of each row's loss, and what is made of them: sketches, directions, influence."""
