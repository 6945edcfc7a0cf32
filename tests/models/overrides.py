"""What the rules of :mod:`tests.models.shrink` get wrong, and what a class wants in its batch, by model type.

``inputs`` names tensors of (B, T) zeros that a collator of this model adds; everything else is a key of the
configuration. Each entry is here because the class could not be built, or not be run on text alone, without it.
"""

from __future__ import annotations

from typing import Any

OVERRIDES: dict[str, dict[str, Any]] = {}

INPUTS: dict[str, tuple[str, ...]] = {}
