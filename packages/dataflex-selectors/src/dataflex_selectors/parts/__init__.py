"""What selectors are made of: each module is one piece of mathematics, or one thing that several selectors need."""
