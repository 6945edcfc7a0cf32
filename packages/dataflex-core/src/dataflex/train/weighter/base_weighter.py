"""The documented import path of the interface of a weighter; it lives in :mod:`dataflex.interfaces.weighter`."""

from dataflex.interfaces.weighter import StepContext, Weighter, WeightsSamples, logger

__all__ = ["StepContext", "Weighter", "WeightsSamples", "logger"]
