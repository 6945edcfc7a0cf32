"""Weighters for dataflex: one strategy per module, found through the entry-point group ``dataflex.weighters``."""

__version__ = "0.1.0"
