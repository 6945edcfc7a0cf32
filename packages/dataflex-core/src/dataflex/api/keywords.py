"""The keywords of :func:`dataflex.api.dynamic_call.dynamic`: the axes, their parameters, and every key of dataflex."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any, TypedDict

from dataflex.config.arguments import DataflexArguments
from dataflex.core.kinds import KINDS

Chosen = str | Path | type[Any] | Mapping[str, Any] | None
"""A component: its name or preset, a plugin file with one, its class, or ``{"name": ..., "params": {...}}``."""

AXES = tuple(kind.name for kind in KINDS)
PARAMS = "params"
OWN = (*AXES, PARAMS)
"""The keywords that no key of a YAML is: there ``train_type``, ``component_name`` and ``component`` say it."""


class Keywords(TypedDict, total=False):
    """What a call may give, for type checkers; each value is looked at when it is called."""

    selector: Chosen | Sequence[Chosen]
    mixer: Chosen
    order: Chosen
    weighter: Chosen
    params: Mapping[str, Any] | None
    train_type: str
    component_name: str | None
    component: Mapping[str, Any] | None
    components_cfg_file: str | Path | None
    warmup_step: int
    update_step: int
    update_times: int
    train_step: int
    static_mix: bool
    mixture_sample_rule: str
    mixture_unit: str
    init_mixture_proportions: Sequence[float] | Mapping[str, float] | None
    objective_proportions: Sequence[float] | Mapping[str, float] | None
    mixture_by: str | None
    mixture_embedding: str
    weight_objective: str
    weight_logits: str
    explain_rows: int
    plugins: str | Path | Sequence[str | Path]


DATASETS = frozenset({"mixer_eval_dataset"})
"""Keys that name datasets in a YAML: in Python they are arguments of the trainer."""
_ELSEWHERE = DATASETS.union(AXES)


def allowed() -> tuple[str, ...]:
    """Returns every keyword, the axes first."""
    return (*OWN, *(name for name in DataflexArguments.names() if name not in _ELSEWHERE))


def signature() -> Signature:
    """Returns the signature that ``help`` shows, with the default of each keyword."""
    base = Parameter("base", Parameter.POSITIONAL_OR_KEYWORD, annotation="type[T]")
    own = [Parameter(name, Parameter.KEYWORD_ONLY, default=None) for name in OWN]
    keys = [key for key in fields(DataflexArguments) if key.name not in _ELSEWHERE]
    return Signature([base, *own, *(Parameter(key.name, Parameter.KEYWORD_ONLY, default=key.default) for key in keys)])
