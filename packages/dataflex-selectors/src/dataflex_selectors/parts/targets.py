"""The target of selection as what gradients are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataflex.scoring import TargetSet


def loss_targets(sets: Mapping[str, Any]) -> list[TargetSet]:
    """Returns the sets of :func:`~dataflex.scoring.read_target`, each row of them by itself."""
    return [TargetSet(name, rows) for name, rows in sets.items()]
