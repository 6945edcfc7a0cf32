"""Every installed component of a kind that asks for some object of the run, made as a trainer makes it."""

from __future__ import annotations

from typing import Any

import numpy as np
from dataflex.core.context import UpdateContext
from dataflex.core.kinds import Kind
from dataflex.core.registry import provided
from dataflex.discovery.component_classes import find
from dataflex.discovery.construct import construct, constructor_parameters
from dataflex.testing import pad_collate, tiny_tokenizer

QUICK: dict[str, dict[str, Any]] = {  # what makes a component quick, or what it cannot do without
    "nice": {"samples": 2, "max_new_tokens": 3, "reject": False, "top_k": 0, "top_p": 1.0, "fallback": "reference"},
    "ifd": {"most": None},  # of random rows, half have a prompt that makes the answer less likely
    "tsds": {"neighbours": 5},
    "zeroth": {"directions": 2},
}


NO_TARGET = object()


def run_objects(
    dataset: Any,
    target: Any = NO_TARGET,
    accelerator: Any = None,
    collator: Any = pad_collate,
    folder: object = "unused",
) -> dict[str, Any]:
    """Returns what a run gives to a selector, by name; ``eval_dataset`` where ``target`` is given, None included."""
    objects = {"dataset": dataset, "accelerator": accelerator, "data_collator": collator, "cache_dir": str(folder)}
    return objects if target is NO_TARGET else objects | {"eval_dataset": target}


def installed(kind: Kind) -> list[str]:
    """Returns the names of the installed components, not those that other tests of this process registered."""
    return [point.name for point in provided(kind)]


def asking_for(kind: Kind, *objects: str) -> list[str]:
    """Returns the installed components whose constructor names one of the run's ``objects``."""
    return [name for name in installed(kind) if set(objects) & set(constructor_parameters(find(kind, name))[0])]


def made(kind: Kind, name: str, params: dict[str, Any] | None = None, **runtime: Any) -> Any:
    """Returns the component, bound to a seed."""
    given = {"accelerator": None, "data_collator": pad_collate, "cache_dir": "unused", "tokenizer": tiny_tokenizer()}
    component = construct(find(kind, name), QUICK.get(name, {}) | (params or {}), given | runtime)
    component.bind(name, 7)
    return component


def scores(selector: Any, model: Any, optimizer: Any = None) -> np.ndarray:
    """Returns the selector's scores of all rows at its first update."""
    return np.asarray(selector.scores(model, 3, context=UpdateContext(0, 1, 3, 9, 1e-3, optimizer)))
