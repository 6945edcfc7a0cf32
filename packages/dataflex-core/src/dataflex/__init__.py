"""dataflex: training data that changes while a model trains, on top of LLaMA-Factory.

Importing this package loads neither torch nor transformers nor llamafactory; the parts that need them are imported by
their full path (``dataflex.train.trainer``, ``dataflex.scoring``, ...).
"""

import pluggy

__all__ = ["__version__", "hookimpl"]

__version__ = "0.1.0"

hookimpl = pluggy.HookimplMarker("dataflex")
"""Marks a function as the implementation of a hook of :mod:`dataflex.hookspecs`."""
