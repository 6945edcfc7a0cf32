"""TRL 0.24 beside transformers 5, which tells it of a package by a pair: true whatever it holds.

TRL then takes every optional package for installed, and fails when it imports its trainers of preferences and of
sampled answers.
"""

from __future__ import annotations

import importlib
from typing import Any


def trl_with_absent_packages() -> Any:
    """Returns TRL, which takes packages that are absent for absent. Imports it, and none of its trainers."""
    told = importlib.import_module("trl.import_utils")
    for name, value in list(vars(told).items()):
        if name.rpartition("_")[2] == "available" and isinstance(value, tuple):
            setattr(told, name, bool(value[0]))
    return importlib.import_module("trl")
