"""What dataflex relies on in the packages under it, beyond what they promise."""
