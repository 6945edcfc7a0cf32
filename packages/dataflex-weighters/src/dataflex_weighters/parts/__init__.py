"""What weighters are made of: each module is one piece of mathematics, or one thing that several weighters need."""
