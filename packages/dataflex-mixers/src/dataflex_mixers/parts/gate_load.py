"""To which experts a mixture-of-experts model sends the tokens of each source.

Letters: B rows, T tokens, E experts, L layers with experts, K sources.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from dataflex.core.errors import ConfigError
from dataflex.scoring import RowBatch
from dataflex.scoring.models import pretrained_models
from dataflex.utils.whole_models import full_shape
from numpy.typing import NDArray

GATES = ("gate", "router")  # what transformers calls the linear layer that chooses experts


@runtime_checkable
class RoutesTokens(Protocol):
    """The configuration of a mixture-of-experts model."""

    output_router_logits: bool


def experts_per_token(model: torch.nn.Module) -> int:
    """Returns to how many experts the model sends a token.

    Raises:
        ConfigError: The model is dense, or does not say.
    """
    configs = [base.config.get_text_config() for base in pretrained_models(model)]
    moe = [config for config in configs if isinstance(config, RoutesTokens)]
    if not moe:
        found = type(configs[0]).__name__.removesuffix("Config") if configs else type(model).__name__
        raise ConfigError(
            f"the dynamic_moe mixer compares the experts that the sources use, but {found} has none (its configuration "
            "has no output_router_logits) -> train a mixture-of-experts model, or use another mixer"
        )
    found_k: int | None = getattr(moe[0], "num_experts_per_tok", None)  # not every family's configuration has it
    if found_k is None:
        raise ConfigError(
            f"the dynamic_moe mixer: {type(moe[0]).__name__} has no num_experts_per_tok -> use another mixer"
        )
    return found_k


def gates(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Returns the layers that choose experts: named gate or router, with one row of weights per expert."""
    configs = [base.config.get_text_config() for base in pretrained_models(model)]
    names = ("num_experts", "num_local_experts")  # by the model's family
    sizes = {getattr(config, name, None) for config in configs for name in names} - {None}
    named = [module for name, module in model.named_modules() if name.rpartition(".")[2] in GATES]
    return [module for module in named if any(_has_rows(p, sizes) for p in module.parameters())]


def _has_rows(parameter: torch.Tensor, numbers: set[Any]) -> bool:
    shape = full_shape(parameter)
    return len(shape) == 2 and shape[0] in numbers


def routing_counts(logits: tuple[torch.Tensor, ...], mask_BT: torch.Tensor, top_k: int, layers: str) -> torch.Tensor:
    """Returns how many tokens of each row go to each expert: (B, L, E).

    Args:
        logits: L tensors of B * T rows of E router logits.
        mask_BT: (B, T) bool, False for padding.
        top_k: Experts per token.
        layers: ``last`` for the last layer alone, or ``all``.
    """
    chosen = logits[-1:] if layers == "last" else logits
    B, T = mask_BT.shape
    parts = []
    for layer in chosen:
        scores_BTE = layer.reshape(B, T, -1).float()
        experts_BTk = scores_BTE.topk(top_k, dim=-1).indices
        used_BTE = torch.zeros_like(scores_BTE).scatter_(-1, experts_BTk, 1.0)
        parts.append((used_BTE * mask_BT[..., None].to(used_BTE)).sum(dim=1))
    return torch.stack(parts, dim=1)


def router(model: torch.nn.Module, top_k: int, layers: str) -> Callable[[RowBatch], torch.Tensor]:
    """Returns the function from a batch to its :func:`routing_counts`."""

    def score(batch: RowBatch) -> torch.Tensor:
        output = model(**batch.inputs, output_router_logits=True, use_cache=False, return_dict=True)
        mask = batch.inputs.get("attention_mask")
        shape = batch.inputs["input_ids"].shape
        if mask is None or mask.shape != shape:  # a mask of another kind: such batches have next to no padding
            mask = torch.ones(shape, dtype=torch.bool, device=batch.inputs["input_ids"].device)
        logits = output.get("router_logits")
        if not logits or any(layer is None for layer in logits):
            raise ConfigError(
                f"the dynamic_moe mixer: {type(model).__name__} does not show where it sends tokens (router_logits) -> "
                "use another mixer"
            )
        return routing_counts(tuple(logits), mask != 0, top_k, layers)

    return score


def distances(loads_KLE: NDArray[np.float64], metric: str) -> NDArray[np.float64]:
    """Returns each source's distances to the others, their sum divided by K, averaged over the layers: (K,).

    By K and not by K - 1, as in the authors' program: the distance of a source to itself, 0, is in the mean.

    Args:
        loads_KLE: (K, L, E) share of the routed tokens that each expert gets; sum 1 over E.
        metric: ``l2``, or ``cosine`` for 1 - cosine.
    """
    if metric == "l2":
        apart_KKL = np.linalg.norm(loads_KLE[:, None] - loads_KLE[None], axis=-1)
    else:
        unit_KLE = loads_KLE / np.linalg.norm(loads_KLE, axis=-1, keepdims=True)
        apart_KKL = 1 - np.einsum("ale,ble->abl", unit_KLE, unit_KLE)
        apart_KKL[np.arange(len(loads_KLE)), np.arange(len(loads_KLE))] = 0.0
    return np.asarray(apart_KKL.mean(axis=(1, 2)))
