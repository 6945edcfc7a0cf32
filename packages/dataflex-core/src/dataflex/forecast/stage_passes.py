"""How often a model runs over a row at ``stage: rm``, ``dpo`` and ``kto``, whose trainers compute the loss of a row.

    rm     the model, once
    dpo    the model and its reference; the model alone with pref_loss orpo and simpo
    kto    the model and its reference, each over the answer and, for the estimate K, over that of another row

In training, the first of these has gradients. All of them make the logits of every token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PAIRS = frozenset({"rm", "dpo"})
"""Stages whose rows are pairs of answers, each with its prompt and as long as ``cutoff_len`` allows."""

_ALONE = frozenset({"orpo", "simpo"})


@dataclass(frozen=True)
class StagePasses:
    """What a row of a stage is.

    Attributes:
        answers: Texts of a row, each of which attends to itself alone.
        forward: Times that a model runs over them for their loss.
        every_logit: Whether the logits of prompts are made too.
    """

    answers: int = 1
    forward: int = 1
    every_logit: bool = False


def stage_passes(keys: Mapping[str, Any]) -> StagePasses:
    """Returns what a row is for a run with these keys of LLaMA-Factory."""
    match keys.get("stage"):
        case "rm":
            return StagePasses(2, 1, every_logit=True)
        case "dpo":
            return StagePasses(2, 1 if keys.get("pref_loss") in _ALONE else 2, every_logit=True)
        case "kto":
            return StagePasses(1, 4, every_logit=True)
    return StagePasses()
