"""The documented import path of the interface of a mixer; it lives in :mod:`dataflex.interfaces.mixer`."""

from dataflex.interfaces.mixer import Mixer, logger

__all__ = ["Mixer", "logger"]
