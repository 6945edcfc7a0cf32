"""What a component is: the base class of each kind, with what dataflex calls and what it expects back."""
