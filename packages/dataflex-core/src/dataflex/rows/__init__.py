"""Datasets as rows: views of them, their numbers, columns and lengths, and streams that are read as rows."""
