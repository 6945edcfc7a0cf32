"""The direction in which Adam would step for one row alone: LESS (arXiv 2402.04333), section 3.1.

With the moments m, v of the steps so far, t steps done, and the row's gradient g:

    m' = (beta1 m + (1 - beta1) g) / (1 - beta1^(t+1))
    v' = (beta2 v + (1 - beta2) g^2) / (1 - beta2^(t+1))
    direction = m' / (sqrt(v') + eps)

Epsilon stands where torch's Adam and AdamW have it. LESS has it inside of the root, where 1e-8 is as much as a gradient
of 1e-4: where gradients are smaller, as in large models, that is almost the direction of SGD with momentum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from dataflex.core.errors import ComponentError
from dataflex.scoring.gradients.optimizer_groups import Group, deepspeed_optimizer, parameter_groups, wrapped_optimizers
from dataflex.scoring.gradients.routes import Route

_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Moments:
    """One parameter's share of Adam's state, unsharded and flattened.

    Attributes:
        first: (D,) exp_avg.
        second: (D,) exp_avg_sq.
        steps: Optimizer steps done.
        betas: Adam's two betas.
        eps: Adam's epsilon.
        shares: What of ``first`` and of the row's gradient the step is made of, where it is not Adam's m' (NAdam).
        adaptive: Whether the step is divided by the root of v'; not in RAdam's first steps.
    """

    first: torch.Tensor
    second: torch.Tensor
    steps: int
    betas: tuple[float, float]
    eps: float
    shares: tuple[float, float] | None = None
    adaptive: bool = True

    def numerator(self) -> tuple[torch.Tensor, float]:
        """Returns m' as (D,) that does not depend on the row, and the factor of the row's gradient."""
        beta1 = self.betas[0]
        unbias1 = 1 - beta1 ** (self.steps + 1)
        old, own = (beta1 / unbias1, (1 - beta1) / unbias1) if self.shares is None else self.shares
        return self.first.float() * old, own

    def denominator(self) -> tuple[torch.Tensor, float, float]:
        """Returns v' as (D,) that does not depend on the row and the factor of the gradient's square; and epsilon.

        Epsilon is never 0: a number that no gradient has reached, 0 / 0 otherwise, does not move.
        """
        if not self.adaptive:
            return torch.ones_like(self.second, dtype=torch.float32), 0.0, 0.0
        beta2 = self.betas[1]
        unbias2 = 1 - beta2 ** (self.steps + 1)
        return self.second.float() * (beta2 / unbias2), (1 - beta2) / unbias2, max(self.eps, _TINY)


class AdamDirection:
    """Turns gradients into Adam's directions.

    Args:
        moments: The moments of each parameter, by its place among the trainable ones.
    """

    def __init__(self, moments: dict[int, Moments]) -> None:
        self._terms = {index: (*found.numerator(), *found.denominator()) for index, found in moments.items()}

    def __call__(self, route: Route, grads_BD: torch.Tensor) -> torch.Tensor:
        """Returns the (B, D) directions of (B, D) gradients."""
        first_D, first, second_D, second, eps = self._terms[route.index]
        root_BD = torch.addcmul(second_D, grads_BD, grads_BD, value=second).sqrt_().add_(eps)
        return torch.add(first_D, grads_BD, alpha=first).div_(root_BD)


def read_moments(optimizer: torch.optim.Optimizer | None, routes: list[Route]) -> dict[int, Moments] | None:
    """Returns the moments of every trainable parameter, or None before the optimizer's first step.

    A parameter that no gradient has reached so far has none in the optimizer: they are 0 after 0 steps, which is what
    the optimizer would begin with. Collective under an engine that shards the optimizer.

    Raises:
        ComponentError: The optimizer keeps no Adam moments, or keeps them in a form or a place that cannot be read.
    """
    layers = wrapped_optimizers(optimizer)
    if not layers:
        return None
    optimizer, zero = layers[-1], deepspeed_optimizer(layers)
    groups = parameter_groups(layers[0])
    found: dict[int, Moments] = {}
    missing: dict[int, Moments] = {}
    for route in routes:
        entry = _entry(optimizer, route) if zero is None else _deepspeed_entry(zero, optimizer, route)
        if entry is not None:
            group = groups.get(id(route.parameter), optimizer.param_groups[0])
            found[route.index] = _moments(route, optimizer, entry, group)
        elif zero is None:  # DeepSpeed has moments of all parameters, or of none yet
            missing[route.index] = _none_yet(route, optimizer, groups)
    stepped = found or any(optimizer.state.values())  # of whatever parameter
    return {**found, **missing} if stepped else None


def require_adam(optimizer: torch.optim.Optimizer | None, routes: list[Route]) -> None:
    """Refuses an optimizer that will not keep Adam's moments of every parameter, as far as is known before a step.

    Looks at classes and sizes alone; on the rank that calls it. :func:`read_moments` looks at what there is.

    Raises:
        ComponentError: It is no Adam, has its moments in a form of its own, or lacks a parameter.
    """
    layers = wrapped_optimizers(optimizer)
    if not layers:
        return
    inner = layers[-1]
    adam = all({"betas", "eps"} <= group.keys() for group in inner.param_groups)
    if isinstance(inner, torch.optim.Adamax):  # the largest gradient in place of the second moment
        adam = False
    if not adam or type(inner).__module__.partition(".")[0] in _OTHER_FORM:
        kept = "keeps its state in a form of its own" if adam else "keeps no Adam moments (exp_avg, exp_avg_sq)"
        raise ComponentError(
            f"the optimizer {type(inner).__name__} {kept} -> gradient_type: sgd, or optim: adamw_torch"
        )
    if deepspeed_optimizer(layers) is None:
        for route in routes:  # FSDP 1: a parameter is the part of it that this rank has, and so will its moments be
            if not isinstance(route.parameter, DTensor):
                _require_whole(route, route.parameter.numel())


_OTHER_FORM = ("bitsandbytes", "schedulefree")
"""Packages whose optimizers keep something else: state1 and state2, in blocks of 8 bits or not; averages of weights."""


def _moments(route: Route, optimizer: torch.optim.Optimizer, entry: dict[str, Any], group: Group) -> Moments:
    steps = int(torch.as_tensor(entry.get("step", group.get("step", 0))))
    first, second = (_whole(entry[key]).flatten() for key in ("exp_avg", "exp_avg_sq"))
    _require_whole(route, first.numel())
    device = route.parameter.device
    plain = Moments(first.to(device), second.to(device), steps, _betas(group), float(group["eps"]))
    return _of_class(plain, optimizer, group, float(entry.get("mu_product", 1.0)))


def _require_whole(route: Route, found: int) -> None:
    if found != route.numel:
        raise ComponentError(
            f"Adam's moments of {route.name} are {found} numbers, needed: {route.numel}; they are those of a "
            "projection (GaLore, APOLLO), or in shards that cannot be put together under this engine -> "
            "gradient_type: sgd"
        )


def _of_class(plain: Moments, optimizer: torch.optim.Optimizer, group: Group, momenta: float) -> Moments:
    """Returns Adam's moments as the optimizer's class steps by them.

    Args:
        plain: As Adam and AdamW step by them.
        optimizer: The innermost one.
        group: The parameter's.
        momenta: NAdam's product of the momenta of the steps done.
    """
    beta1, beta2 = plain.betas
    step = plain.steps + 1
    if isinstance(optimizer, torch.optim.NAdam):  # Dozat 2016: the gradient, and the momentum of the step after
        now, later = (beta1 * (1 - 0.5 * 0.96 ** (t * group["momentum_decay"])) for t in (step, step + 1))
        nesterov = later / (1 - momenta * now * later)
        return replace(plain, shares=(nesterov * beta1, nesterov * (1 - beta1) + (1 - now) / (1 - momenta * now)))
    if isinstance(optimizer, torch.optim.RAdam):  # arXiv 1908.03265: plain momentum while the variance is intractable
        unbias2 = 1 - beta2**step
        length = 2 / (1 - beta2) - 1 - 2 * step * beta2**step / unbias2
        return replace(plain, eps=plain.eps / unbias2**0.5, adaptive=length > 5)
    return plain


def _none_yet(route: Route, optimizer: torch.optim.Optimizer, groups: dict[int, Group]) -> Moments:
    """Returns the moments of a parameter that the optimizer has and has not stepped.

    Raises:
        ComponentError: The optimizer does not have it, so what is kept for it is somewhere else.
    """
    group = groups.get(id(route.parameter))
    if group is None:
        raise ComponentError(
            f"the optimizer has no parameter {route.name}, so its moments cannot be read (FSDP 1 flattens parameters; "
            "layer-wise GaLore and APOLLO have an optimizer for each; BAdam may step copies) -> gradient_type: sgd, or "
            "fsdp_version 2"
        )
    nothing = torch.zeros(route.numel, device=route.parameter.device)
    return _of_class(Moments(nothing, nothing, 0, _betas(group), float(group.get("eps", 0.0))), optimizer, group, 1.0)


def _betas(group: Group) -> tuple[float, float]:
    beta1, beta2 = group.get("betas", (0.0, 0.0))  # of an optimizer that is no Adam, before its first step
    return float(beta1), float(beta2)


def _entry(optimizer: torch.optim.Optimizer, route: Route) -> dict[str, Any] | None:
    """Returns the optimizer's state of one parameter, None where there is none yet."""
    entry = optimizer.state.get(route.parameter)
    if not entry:
        return None
    if "exp_avg" not in entry or "exp_avg_sq" not in entry:
        raise ComponentError(
            f"the optimizer {type(optimizer).__name__} keeps no Adam moments (exp_avg, exp_avg_sq) but "
            f"{', '.join(map(str, entry))} -> gradient_type: sgd, or optim: adamw_torch"
        )
    return dict(entry)


def _deepspeed_entry(zero: Any, optimizer: torch.optim.Optimizer, route: Route) -> dict[str, Any] | None:
    """As :func:`_entry`, put together from the ranks' shards. Collective."""
    from deepspeed.utils import safe_get_full_optimizer_state  # type: ignore[import-not-found]

    states = [state for state in optimizer.state.values() if "exp_avg" in state]
    if not states:
        return None
    link = getattr(zero, "_lazy_init_hp_params_optimizer_state", None)
    if link is not None:  # ZeRO-1 and 2 link parameters to states after the first group's first step: the others' lack
        zero._hp_optimizer_states_linked = False
        link()
    trainable = route.parameter.requires_grad
    route.parameter.requires_grad_(True)  # ZeRO-3 gives no state for a frozen parameter
    try:
        moments = {k: safe_get_full_optimizer_state(route.parameter, k) for k in ("exp_avg", "exp_avg_sq")}
    finally:
        route.parameter.requires_grad_(trainable)
    return {**moments, "step": states[0].get("step", optimizer.param_groups[0].get("step", 0))}


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the tensor with the shards of all ranks. Collective where it is sharded (FSDP 2)."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()
