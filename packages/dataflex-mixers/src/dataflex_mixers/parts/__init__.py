"""What mixers are made of: each module is one piece of mathematics, or one thing that several mixers need."""
