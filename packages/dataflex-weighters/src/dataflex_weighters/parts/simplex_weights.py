"""Weights of samples that are like a target and unlike each other: the maximum of a concave function on the simplex.

    F(w) = s'w - (beta / 2) w'Sw + tau H(w)            H the entropy, S positive semidefinite

is strictly concave, and its maximum is the one fixed point of w = softmax((s - beta S w) / tau). The plain iteration
goes to and fro between two sets of samples where beta / tau is large. Its derivative at p is -(beta / tau) (diag p - p
p') S, whose eigenvalues lie in [-L, 0] with L = (beta / tau) sum_i p_i S_ii; with a damping rho of at most 2 / (2 + L)
it shrinks differences by 1 - rho a step, so the number of steps that reach a tolerance is known beforehand, and the
host never waits for the device.

Letters: G samples.
"""

from __future__ import annotations

import math

import torch

MOST_STEPS = 2000
TOLERANCE = 1e-7


def responses(
    weights_G: torch.Tensor, s_G: torch.Tensor, S_GG: torch.Tensor, beta: float, tau: float, counted_G: torch.Tensor
) -> torch.Tensor:
    """Returns softmax((s - beta S w) / tau) over the samples that count: (G,), 0 for the others.

    Args:
        weights_G: (G,) w.
        s_G: (G,) s; None of it is read where ``counted_G`` is False.
        S_GG: (G, G) S.
        beta: At least 0.
        tau: Above 0.
        counted_G: (G,) bool.
    """
    scores_G = (s_G - beta * (S_GG @ weights_G)) / tau
    return torch.softmax(scores_G.masked_fill(~counted_G, -torch.inf), dim=0).nan_to_num(0.0)  # NaN: none counts


def uniform(counted_G: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Returns 1 / G for the samples that count: (G,)."""
    counted = counted_G.to(like)
    return counted / counted.sum().clamp(min=1)


def iterated(
    s_G: torch.Tensor,
    S_GG: torch.Tensor,
    beta: float,
    tau: float,
    counted_G: torch.Tensor,
    steps: int,
    damping: float,
) -> torch.Tensor:
    """Returns w after a number of damped steps from 1 / G: (G,). Arguments as for :func:`responses`."""
    weights_G = uniform(counted_G, s_G)
    for _ in range(steps):
        weights_G = (1 - damping) * weights_G + damping * responses(weights_G, s_G, S_GG, beta, tau, counted_G)
    return weights_G


def steps_to_converge(beta: float, tau: float, largest: float, damping: float | None = None) -> tuple[int, float]:
    """Returns how many steps reach the tolerance, :data:`MOST_STEPS` at most, and the damping of each.

    Args:
        beta: At least 0.
        tau: Above 0.
        largest: At least every S_ii: 1 for cosines.
        damping: rho in (0, 1], lowered where it would not converge; None: the largest that does.
    """
    bound = beta / tau * largest  # L
    safe = 2 / (2 + bound)
    rho = safe if damping is None else min(damping, safe)
    steps = 1 if rho == 1 else math.ceil(math.log(TOLERANCE) / math.log1p(-rho)) + 1
    return min(steps, MOST_STEPS), rho


def residual(
    weights_G: torch.Tensor, s_G: torch.Tensor, S_GG: torch.Tensor, beta: float, tau: float, counted_G: torch.Tensor
) -> torch.Tensor:
    """Returns how far w is from the fixed point: the largest change of a weight by a step more, a scalar tensor."""
    return (responses(weights_G, s_G, S_GG, beta, tau, counted_G) - weights_G).abs().max()
