"""Which group of the optimizer each trainable parameter is in, and the learning rate that it has there.

LoRA+, layer-wise decay and separate rates for embeddings put parameters into groups with rates of their own. The step
of a row is the optimizer's, so each parameter's part of it is as long as its rate makes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dataflex.core.errors import ComponentError
from dataflex.scoring.gradients.routes import Route
from dataflex.scoring.gradients.sinks import Direction

Group = dict[str, Any]


def wrapped_optimizers(optimizer: Any) -> list[Any]:
    """Returns the optimizer and what it wraps, outermost first: accelerate's, DeepSpeed's and BAdam's hold another."""
    found = []
    while optimizer is not None:
        found.append(optimizer)
        optimizer = getattr(optimizer, "optimizer", None)
    return found


def deepspeed_optimizer(layers: Sequence[Any]) -> Any:
    """Returns DeepSpeed's own among what :func:`wrapped_optimizers` found, None where there is none."""
    return next((layer for layer in layers if type(layer).__module__.startswith("deepspeed")), None)


def parameter_groups(optimizer: torch.optim.Optimizer | None) -> dict[int, Group]:
    """Returns ``id`` of a parameter -> its group, for the parameters that the optimizer names.

    An engine that gives the optimizer flat pieces of its own in their place keeps the groups' order, and says which
    parameters each was made of (DeepSpeed); under one that does not (FSDP 1), nothing is found.
    """
    layers = wrapped_optimizers(optimizer)
    if not layers:
        return {}
    zero, groups = deepspeed_optimizer(layers), layers[-1].param_groups
    members = [group["params"] for group in groups] if zero is None else _deepspeed_members(zero, groups)
    return {id(p): group for group, own in zip(groups, members, strict=True) for p in own}


def learning_rates(optimizer: torch.optim.Optimizer | None, routes: Sequence[Route]) -> dict[int, float]:
    """Returns a parameter's place -> its learning rate as a share of the largest, in [0, 1].

    Where all rates are 0, as at the start of a warm-up, the rates that the schedule starts from stand for them; and
    where those are 0 too, or there is no optimizer, all are equal.

    Raises:
        ComponentError: The rates differ, and which of them a parameter has cannot be told.
    """
    layers = wrapped_optimizers(optimizer)
    groups = [group for group in layers[-1].param_groups if group["params"]] if layers else []
    known = parameter_groups(optimizer)
    for key in ("lr", "initial_lr"):
        rates = {_rate(group, key) for group in groups}
        if rates in (set(), {0.0}):
            continue
        if len(rates) == 1:
            break
        found = {}
        for route in routes:
            if id(route.parameter) not in known:
                raise ComponentError(
                    f"the optimizer's groups have different learning rates, and which of them {route.name} has cannot "
                    "be told under this engine -> give all groups one rate (loraplus_lr_ratio: null), or train with "
                    "DDP, DeepSpeed or FSDP 2"
                )
            found[route.index] = _rate(known[id(route.parameter)], key)
        largest = max(found.values(), default=0.0)
        if largest > 0:
            return {index: rate / largest for index, rate in found.items()}
    return {route.index: 1.0 for route in routes}


def times_rates(direction: Direction | None, rates: Mapping[int, float]) -> Direction | None:
    """Returns the direction with each parameter's part times its rate; unchanged where all rates are the same.

    Args:
        direction: What becomes of the gradients before; None for nothing.
        rates: What :func:`learning_rates` returned.
    """
    if all(rate == 1.0 for rate in rates.values()):
        return direction

    def step(route: Route, grads_BD: torch.Tensor) -> torch.Tensor:
        rate = rates[route.index]
        if rate == 0.0:  # whatever the gradient is: an infinite one too
            return torch.zeros_like(grads_BD)
        return (grads_BD if direction is None else direction(route, grads_BD)) * rate

    return step


def _rate(group: Group, key: str) -> float:
    rate = group.get(key)
    return 0.0 if rate is None else float(rate)  # Adafactor's own schedule gives none


def _deepspeed_members(zero: Any, groups: Sequence[Group]) -> list[list[torch.nn.Parameter]]:
    """Returns the parameters of each group, none where DeepSpeed does not say. Stage 3 keeps parts of groups."""
    kept = vars(zero)
    parts: list[list[torch.nn.Parameter]] = next((kept[name] for name in _MEMBERS if name in kept), [])
    group_of_part = kept.get("sub_group_to_group_id") or {part: part for part in range(len(parts))}
    members: list[list[torch.nn.Parameter]] = [[] for _ in groups]
    for part, own in enumerate(parts):
        members[group_of_part[part]].extend(own)
    return members


_MEMBERS = ("bit16_groups", "bf16_groups", "fp16_groups")
"""Where DeepSpeed's optimizers keep their parameters: ZeRO 1 and 2; plain bf16; ZeRO 3 and plain fp16."""
