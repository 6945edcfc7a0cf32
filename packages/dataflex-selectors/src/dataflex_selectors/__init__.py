"""Selectors and orders for dataflex: one strategy per module, found through their entry-point groups."""

__version__ = "0.1.0"
