"""Gradients of large matrices projected from both sides before they are formed: LoGra (arXiv 2405.13954).

A row's gradient of a weight (O, I) is G = sum over slots of d a^T. With random matrices P (K_o, O) and Q (K_i, I),

    P G Q^T = sum over slots of (P d)(Q a)^T

has K_o K_i numbers instead of O I and never needs G. Its inner products estimate those of G without bias. A side that
is not longer than its K is left as it is. Adam's form needs each number of G; here its second moment is taken as the
product of its row and column means (Adafactor, arXiv 1804.04235), which folds into P and Q.

Letters: B rows, S slots, I inputs, O outputs of a layer, K_o and K_i dimensions kept of them.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import nn

from dataflex.core.component import seeded
from dataflex.scoring.gradients.adam import AdamDirection, Moments
from dataflex.scoring.gradients.routes import Route
from dataflex.scoring.gradients.rules import (
    Call,
    Rule,
    ScaledEmbedding,
    by_slots,
    transposed_weight,
)


class Factors:
    """The two projections of one matrix, and how its gradients are formed under them.

    Args:
        shape: (O, I) of the parameter as it is stored.
        dim: K of each side.
        seed: The same seed gives the same projections.
        device: Where the gradients are.
    """

    def __init__(self, shape: tuple[int, ...], dim: int, seed: int, device: torch.device) -> None:
        self._sides = [_signs(size, dim, seeded(seed, side), device) for side, size in enumerate(shape)]
        self._shape = shape
        self.size = self._sides[0].shape[0] * self._sides[1].shape[0]
        self._scaled = self._sides

    def adam(self, moments: Moments) -> tuple[torch.Tensor, float]:
        """From now on gradients are divided by the root of Adam's second moment, factored by rows and columns.

        Returns:
            The projected share of the first moment, (K_o * K_i,), and the factor of the row's gradient.
        """
        (first_D, own), (second_D, _, eps) = moments.numerator(), moments.denominator()
        second_OI = second_D.view(self._shape).sqrt_().add_(eps).square_()
        scales = (second_OI.mean(1).rsqrt(), second_OI.mean(0).rsqrt() * second_OI.mean().sqrt())
        self._scaled = [side_KX * scale_X for side_KX, scale_X in zip(self._sides, scales, strict=True)]
        first_OI = first_D.view(self._shape)
        return (self._scaled[0] @ first_OI @ self._scaled[1].T).flatten(), own

    def project(self, grads_OI: torch.Tensor) -> torch.Tensor:
        """Returns P G Q^T of a gradient that is there as a whole: (K_o * K_i,)."""
        return (self._scaled[0] @ grads_OI.float() @ self._scaled[1].T).flatten()

    def rule(self, original: Rule) -> Rule:
        """Returns the rule in place of one that forms the whole gradient."""

        def projected(module: nn.Module, call: Call, grads_BSO: torch.Tensor) -> torch.Tensor:
            rows, columns = self._scaled  # of the parameter as it is stored
            grads = by_slots(grads_BSO).float()
            if isinstance(original, ScaledEmbedding):
                grads = grads * original.scale
            if isinstance(module, nn.Embedding):
                inputs = rows.T[call.inputs]
                if module.padding_idx is not None:
                    inputs = inputs.masked_fill((call.inputs == module.padding_idx).unsqueeze(-1), 0.0)
                found = torch.bmm(inputs.transpose(1, 2), grads @ columns.T)
            elif original is transposed_weight:
                found = torch.bmm((by_slots(call.inputs).float() @ rows.T).transpose(1, 2), grads @ columns.T)
            else:
                found = torch.bmm((grads @ rows.T).transpose(1, 2), by_slots(call.inputs).float() @ columns.T)
            return found.flatten(1)

        return projected


class FactoredAdam:
    """Adam's directions where some parameters are projected; whole ones as :class:`AdamDirection` has them.

    The row's own share of the second moment is left out for a projected parameter; where there is no other, as before
    its first gradient, the row's share is taken to be the same for all of its numbers. From the making of this object
    on, projected gradients come scaled: those of target rows, which are plain, must be taken before.

    Args:
        moments: The moments of each parameter, by its place.
        factors: The projected ones.
    """

    def __init__(self, moments: dict[int, Moments], factors: dict[int, Factors]) -> None:
        self._whole = AdamDirection({index: found for index, found in moments.items() if index not in factors})
        begun = {index: found for index, found in factors.items() if moments[index].second.any()}
        self._terms = {index: found.adam(moments[index]) for index, found in begun.items()}
        self._eps = {index: moments[index].denominator()[2] for index in factors if index not in begun}

    def __call__(self, route: Route, grads_BD: torch.Tensor) -> torch.Tensor:
        """Returns the (B, D) directions of (B, D) gradients."""
        if route.index in self._eps:
            mean_B1 = grads_BD.square().sum(1, keepdim=True) / route.numel  # of the row's squares: E |P G Q|^2 = |G|^2
            return torch.as_tensor(grads_BD / (mean_B1.sqrt() + self._eps[route.index]))
        if route.index not in self._terms:
            return self._whole(route, grads_BD)
        first_D, share = self._terms[route.index]
        return torch.add(first_D, grads_BD, alpha=share)


def projected_size(shape: tuple[int, ...], dim: int | None) -> int:
    """Returns how many numbers the gradient of a parameter of this shape has where ``dim`` dimensions are kept."""
    if dim is None or len(shape) != 2 or shape[0] * shape[1] <= dim * dim:
        return math.prod(shape)
    return min(shape[0], dim) * min(shape[1], dim)


def factored(routes: list[Route], dim: int, seed: int, device: torch.device) -> tuple[list[Route], dict[int, Factors]]:
    """Returns the routes with every matrix of more than ``dim * dim`` numbers projected, and their factors by index."""
    found: dict[int, Factors] = {}
    changed = []
    for route in routes:
        if len(route.shape) == 2 and route.size > dim * dim:
            factors = Factors(route.shape, dim, seeded(seed, "factors", route.index), device)
            uses = tuple(replace(use, rule=use.rule and factors.rule(use.rule)) for use in route.uses)
            route = replace(route, size=factors.size, uses=uses)
            found[route.index] = factors
        changed.append(route)
    return changed, found


def _signs(size: int, dim: int, seed: int, device: torch.device) -> torch.Tensor:
    """Returns a (K, size) projection that keeps inner products in expectation; the identity where size <= dim."""
    if size <= dim:
        return torch.eye(size, device=device)
    signs = torch.randint(0, 2, (dim, size), generator=torch.Generator().manual_seed(seed), dtype=torch.int8)
    projection: torch.Tensor = (signs * 2 - 1).to(device, torch.float32) * dim**-0.5
    return projection
