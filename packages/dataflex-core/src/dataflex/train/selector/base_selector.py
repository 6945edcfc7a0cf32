"""The documented import path of the interface of a selector; it lives in :mod:`dataflex.interfaces.selector`."""

from dataflex.interfaces.selector import Selection, Selector, logger

__all__ = ["Selection", "Selector", "logger"]
