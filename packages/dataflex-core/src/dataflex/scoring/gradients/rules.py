"""How the gradient of one parameter follows, row by row, from its layer's inputs and its output's gradient.

The gradient of a sum of row losses is a sum over rows and tokens; what an ordinary backward pass adds up is kept apart
by row here. A rule takes the layer's inputs (B, S, ...) and the gradient of its outputs (B, S, O) of a few rows and
returns their gradients (B, D) in float32. Exact: no rule approximates.

Letters: B rows, S slots (tokens) of a row, I inputs, O outputs of a layer, D numbers of the parameter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

Rule = Callable[[nn.Module, "Call", torch.Tensor], torch.Tensor]
"""``rule(module, call, grads_BSO) -> grads_BD``."""

_NARROW = 8  # how many times narrower inputs must be than outputs for the turned product to pay for its turning back


class Call:
    """What a module was called with; tensors by row, (B, S, ...).

    Args:
        rows: Number of rows, B.
        args: Positional arguments, the input first.
        kwargs: Named arguments.
    """

    def __init__(self, rows: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._rows, self.args, self.kwargs = rows, args, kwargs

    @property
    def inputs(self) -> torch.Tensor:
        """The input."""
        found: torch.Tensor = self.args[0]
        return found

    def part(self, rows: slice) -> Call:
        """Returns the call for some rows alone."""

        def cut(value: Any) -> Any:
            by_row = isinstance(value, torch.Tensor) and value.ndim > 1 and len(value) == self._rows
            return value[rows] if by_row else value

        kwargs = {name: cut(value) for name, value in self.kwargs.items()}
        return Call(len(range(self._rows)[rows]), tuple(map(cut, self.args)), kwargs)


def linear_weight(module: nn.Module, call: Call, grads_BSO: torch.Tensor) -> torch.Tensor:
    """Returns the gradient of a weight (O, I): the sum over slots of outer products, (B, O * I)."""
    inputs_BSI, grads_BSO = by_slots(call.inputs).float(), by_slots(grads_BSO).float()
    if inputs_BSI.shape[-1] < grads_BSO.shape[-1] // _NARROW:  # LoRA's B: a CPU takes half the time the other way round
        return torch.bmm(inputs_BSI.transpose(1, 2), grads_BSO).transpose(1, 2).flatten(1)
    return torch.bmm(grads_BSO.transpose(1, 2), inputs_BSI).flatten(1)


def transposed_weight(module: nn.Module, call: Call, grads_BSO: torch.Tensor) -> torch.Tensor:
    """Returns the gradient of a weight (I, O), as GPT-2's ``Conv1D`` has it: (B, I * O)."""
    inputs_BSI = by_slots(call.inputs).float()
    return torch.bmm(inputs_BSI.transpose(1, 2), by_slots(grads_BSO).float()).flatten(1)


def bias(module: nn.Module, call: Call, grads_BSO: torch.Tensor) -> torch.Tensor:
    """Returns the gradient of what is added to every output: (B, O)."""
    return by_slots(grads_BSO).float().sum(1)


def embedding_weight(module: nn.Module, call: Call, grads_BSO: torch.Tensor) -> torch.Tensor:
    """Returns the gradient of an embedding (V, O): (B, V * O). Rows of V that a row of B does not use are 0."""
    assert isinstance(module, nn.Embedding)
    ids_BS, grads_BSO = call.inputs, grads_BSO.float()
    if module.padding_idx is not None:
        grads_BSO = grads_BSO.masked_fill((ids_BS == module.padding_idx).unsqueeze(-1), 0.0)
    rows, entries = len(ids_BS), module.num_embeddings
    first_B1 = torch.arange(rows, device=ids_BS.device).unsqueeze(1) * entries
    found = grads_BSO.new_zeros(rows * entries, grads_BSO.shape[-1])
    found.index_add_(0, (ids_BS + first_B1).flatten(), grads_BSO.flatten(0, 1))
    return found.view(rows, -1)


class Checked:
    """A rule that goes by no class of layers: whether it holds is seen on a call of the layer."""

    def holds(self, module: nn.Module, call: Call, output: torch.Tensor) -> bool:
        """Returns whether the rule is exact for this layer."""
        raise NotImplementedError

    def __call__(self, module: nn.Module, call: Call, grads_BSO: torch.Tensor) -> torch.Tensor:
        """Returns the gradients. See :data:`Rule`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Scale(Checked):
    """The rule of a vector of O numbers in which the layer's outputs are affine, one number per output.

    Norms scale their outputs by it, DoRA its magnitudes. The derivative is the difference of the outputs with ones and
    with zeros in its place, which costs two calls of the layer and asks nothing of how it is written.

    Attributes:
        key: The vector's name in the module.
    """

    key: str

    def __call__(self, module: nn.Module, call: Call, grads_BSO: torch.Tensor) -> torch.Tensor:
        """Returns the gradient of the vector: (B, O)."""
        return by_slots(grads_BSO.float() * slope(module, self.key, call, grads_BSO.shape[-1]).float()).sum(1)

    def holds(self, module: nn.Module, call: Call, output: torch.Tensor) -> bool:
        """Returns whether the outputs are affine in the vector."""
        return is_affine(module, self.key, call, output)


class ScaledEmbedding(Checked):
    """The rule of an embedding that multiplies what it looks up by a constant, as Gemma's does.

    Attributes:
        scale: The constant, seen when :meth:`holds` was asked.
    """

    def __init__(self) -> None:
        self.scale = 1.0

    def __call__(self, module: nn.Module, call: Call, grads_BSO: torch.Tensor) -> torch.Tensor:
        """Returns the gradient of the weight (V, O): (B, V * O)."""
        return embedding_weight(module, call, grads_BSO.float() * self.scale)

    @torch.no_grad()
    def holds(self, module: nn.Module, call: Call, output: torch.Tensor) -> bool:
        """Returns whether the outputs are what was looked up times one constant."""
        assert isinstance(module, nn.Embedding)
        if call.inputs.is_floating_point() or output.shape != (*call.inputs.shape, module.embedding_dim):
            return False
        found = nn.functional.embedding(call.inputs, module.weight.detach()).float()
        self.scale = float((found * output.float()).sum() / found.square().sum().clamp(min=torch.finfo().tiny))
        tolerance = 1e-5 if output.dtype in (torch.float32, torch.float64) else 2e-2
        return bool(torch.dist(found * self.scale, output.float()) <= tolerance * output.float().norm())


@torch.no_grad()
def slope(module: nn.Module, key: str, call: Call, size: int) -> torch.Tensor:
    """Returns the derivative of each output by its own number of the vector ``key`` of ``size``: (B, S, O)."""
    inputs = call.inputs
    dtype = getattr(module, key).dtype
    ones = torch.ones(size, dtype=dtype, device=inputs.device)
    return _called_with(module, key, ones, call) - _called_with(module, key, torch.zeros_like(ones), call)


@torch.no_grad()
def is_affine(module: nn.Module, key: str, call: Call, output: torch.Tensor) -> bool:
    """Returns whether :class:`Scale` is exact for this layer, seen on one call of it."""
    vector = getattr(module, key).detach()
    if not isinstance(output, torch.Tensor) or output.shape[-1:] != vector.shape:
        return False
    without = _called_with(module, key, torch.zeros_like(vector), call)
    expected = without + vector * slope(module, key, call, len(vector))
    tolerance = 1e-4 if output.dtype == torch.float32 else 3e-2
    return torch.allclose(expected.float(), output.float(), rtol=tolerance, atol=tolerance)


def _called_with(module: nn.Module, key: str, value: torch.Tensor, call: Call) -> torch.Tensor:
    """Returns what ``module`` would, had it ``value`` in place of one of its parameters.

    The hooks of the module are passed by: those of sharded engines look for their own kind of parameter.
    """
    twin = object.__new__(type(module))  # a layer that FSDP 2 wraps by itself cannot be copied: its class makes another
    vars(twin).update(vars(module))
    twin._parameters = {name: p for name, p in module._parameters.items() if name != key}
    vars(twin)[key] = value
    found: torch.Tensor = type(module).forward(twin, *call.args, **call.kwargs)
    return found


def rule_of(module: nn.Module, key: str) -> Rule | None:
    """Returns the rule of a module's own parameter, or None where there is no exact one."""
    forward = type(module).forward
    parameter = module.get_parameter(key)
    if forward is nn.Linear.forward:
        return bias if key == "bias" else linear_weight
    if forward is Conv1D.forward:
        return bias if key == "bias" else transposed_weight
    if isinstance(module, nn.Embedding) and key == "weight":
        plain = module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
        if not plain:
            return None
        return embedding_weight if forward is nn.Embedding.forward else ScaledEmbedding()
    return Scale(key) if parameter.ndim == 1 and not any(module.children()) else None


def by_slots(activation: torch.Tensor) -> torch.Tensor:
    """Returns (B, S, F) from (B, ..., F)."""
    return activation if activation.ndim == 3 else activation.flatten(1, -2)
