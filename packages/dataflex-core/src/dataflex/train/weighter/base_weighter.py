"""The documented import path of the interface of a weighter; it lives in :mod:`dataflex.interfaces.weighter`."""

from dataflex.interfaces.weighter import Weighter, WeightsSamples, logger

__all__ = ["Weighter", "WeightsSamples", "logger"]
