"""The trainable parameters of a model, where each one is, and the rule for its gradients there if one is known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from dataflex.core.errors import ComponentError
from dataflex.model.sharded import reshard
from dataflex.scoring.gradients.rules import Checked, Rule, rule_of


@dataclass(frozen=True)
class Use:
    """A place where a parameter is used.

    Attributes:
        module: The module that holds it.
        key: Its name in the module.
        rule: How its gradients follow from a call of the module; None where no rule is known.
        check: What tells of a call whether the rule holds; None where it holds for every module of this class.
    """

    module: nn.Module
    key: str
    rule: Rule | None
    check: Checked | None


@dataclass(frozen=True, eq=False)
class Route:
    """A trainable parameter.

    Attributes:
        index: Its place among the trainable parameters.
        name: Its name in the model.
        parameter: The parameter; its shape may be that of a shard.
        size: Numbers of its gradient: all of them, or what a projection leaves.
        shape: Its shape, unsharded.
        uses: Where it is used; more than one where it is tied.
    """

    index: int
    name: str
    parameter: nn.Parameter
    size: int
    shape: tuple[int, ...]
    uses: tuple[Use, ...]

    @property
    def numel(self) -> int:
        """The parameter's numbers, unsharded."""
        return torch.Size(self.shape).numel()


def gradient_routes(model: torch.nn.Module) -> list[Route]:
    """Returns the trainable parameters in the model's order.

    Rules are known of weights and biases of ``nn.Linear`` (so LoRA's A and B), ``Conv1D`` and ``nn.Embedding``, tied
    ones too; of vectors that scale or shift a layer's outputs (norms, DoRA's magnitudes).

    Raises:
        ComponentError: Nothing is trainable.
    """
    reshard(model)
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    uses: dict[int, list[Use]] = {key: [] for key in names}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if not parameter.requires_grad:
                continue
            rule = rule_of(module, name)
            uses[id(parameter)].append(Use(module, name, rule, rule if isinstance(rule, Checked) else None))
    if not names:
        raise ComponentError(
            "no parameter of the model is trainable, so there are no gradients to compare -> use a strategy that "
            "needs none, or check finetuning_type"
        )
    parameters = {id(p): p for p in model.parameters()}
    flattened = _flattened_shapes(model)
    routes = []
    for index, (key, name) in enumerate(names.items()):
        first = uses[key][0]
        shape = flattened.get((id(first.module), first.key), _whole_shape(parameters[key]))
        routes.append(Route(index, name, parameters[key], torch.Size(shape).numel(), shape, tuple(uses[key])))
    return routes


def unsupported(refused: dict[str, str]) -> str:
    """Returns the message about parameters without a rule: name -> class of the module that holds it."""
    first, kind = next(iter(refused.items()))
    others = f" and {len(refused) - 1} more" if len(refused) > 1 else ""
    return (
        f"there is no per-sample gradient for the trainable parameter {first} of a {kind}{others} where weights are in "
        "shards or code is compiled, as no layer can be called again for one row; leaving it out would falsify the "
        "scores -> train LoRA on linear layers, freeze it, or use a selector that needs no gradients"
    )


def _whole_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))  # DeepSpeed's ZeRO-3 leaves an empty one behind


def _flattened_shapes(model: torch.nn.Module) -> dict[tuple[int, str], tuple[int, ...]]:
    """Returns the shapes of parameters that FSDP 1 has flattened and cut, by module and name in it."""
    found = {}
    for module in model.modules():
        if isinstance(module, FullyShardedDataParallel) and module._handle is not None:
            flat = module._handle.flat_param
            for info, shape in zip(flat._param_infos, flat._shapes, strict=True):
                found[id(info.module), info.param_name] = tuple(shape)
    return found
