"""What dataflex measures about itself; one command per table, what was seen in RESULTS.md."""
