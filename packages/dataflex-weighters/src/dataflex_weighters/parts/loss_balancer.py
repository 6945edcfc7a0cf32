"""Balances several losses of one model output: a loss's weight is its share of the gradient, whatever its scale.

The formula is that of the loss balancer of EnCodec (Defossez, Copet, Synnaeve and Adi, "High Fidelity Neural Audio
Compression", arXiv 2210.13438, section 3.4). With g_k the gradient of loss k at the tensor x that all losses come from:

    n_k = mean over batch items of |g_k|, over all ranks
    N_k = T_k / F_k,   T_k <- beta T_k + n_k,   F_k <- beta F_k + 1
    g   = sum_k R (w_k / sum_j w_j) g_k / (epsilon + N_k)

and g, in the place of the sum of the g_k, goes back from x. A loss whose gradient is a hundred times as large thus
counts as much as another one of the same weight.

Cost: one backward pass per loss down to x, and one from there. Parameters that lie between x and a loss get no
gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from dataflex.core.parameter_checks import at_least, between, flag, positive, require
from dataflex.utils.logging import logger

from dataflex_weighters.parts.source_checks import source_weights

_LEAST = 1e-100  # a weight in an average that is next to 0, and far above the least float


class RunningMeans:
    """Exponential moving averages of several numbers, each corrected for its beginning.

    A number that is not finite is left out: with it, an average would never be finite again.

    Args:
        decay: beta, in [0, 1].

    Attributes:
        left_out: How many numbers were left out.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.left_out = 0
        self._total: dict[str, float] = {}
        self._fix: dict[str, float] = {}

    def update(self, values: Mapping[str, float]) -> dict[str, float]:
        """Returns the averages of all numbers seen so far, after these.

        One that is missing, or not finite, keeps its average, at a lower weight: after other updates, its next value
        counts for more. A call without any finite number changes nothing.
        """
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self.left_out += len(values) - len(finite)
        for name in self._total if finite else ():
            if name in finite or self.decay * self._fix[name] > _LEAST:  # or else both become 0, and their ratio NaN
                self._total[name] *= self.decay
                self._fix[name] *= self.decay
        for name, value in finite.items():
            self._total[name] = self._total.get(name, 0.0) + value  # total <- beta total + n
            self._fix[name] = self._fix.get(name, 0.0) + 1.0  # fix <- beta fix + 1
        return self.means()

    def means(self) -> dict[str, float]:
        """Returns the averages: total / fix."""
        return {name: total / self._fix[name] for name, total in self._total.items() if self._fix[name] > 0}

    def state_dict(self) -> dict[str, Any]:
        """Returns what continues the averages."""
        return {"total": dict(self._total), "fix": dict(self._fix), "left_out": self.left_out}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self._total, self._fix = dict(state["total"]), dict(state["fix"])
        self.left_out = int(state.get("left_out", 0))  # an older checkpoint has none


class Balancer:
    """Goes back from several losses of one tensor with gradients of balanced size.

        balancer = Balancer({"main": 1.0, "auxiliary": 0.1})
        hidden = encoder(x)
        balancer.backward({"main": main(hidden), "auxiliary": auxiliary(hidden)}, hidden)

    Args:
        weights: Loss -> weight, at least 0: its share of the gradient, relative to the other losses of the call.
        rescale_grads: Whether gradients are scaled; without it, they are added up with their weights.
        total_norm: R, the size of the whole, > 0.
        ema_decay: beta of the averages, in [0, 1]; 1 weighs all calls alike.
        per_batch_item: Whether a gradient's norm is the mean over the items of its first dimension, or that of the
            whole.
        epsilon: What is added to each average, >= 0.
        monitor: Whether :attr:`metrics` tells the sizes of the gradients.

    Raises:
        ConfigError: A parameter has another value; the message holds every problem.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        rescale_grads: bool = True,
        total_norm: float = 1.0,
        ema_decay: float = 0.999,
        per_batch_item: bool = True,
        epsilon: float = 1e-12,
        monitor: bool = False,
    ) -> None:
        require(
            "balancer weighter",
            *source_weights("weights", weights, ()),
            flag("rescale_grads", rescale_grads),
            positive("total_norm", total_norm),
            between("ema_decay", ema_decay, 0, 1),
            flag("per_batch_item", per_batch_item),
            at_least("epsilon", epsilon, 0),
            flag("monitor", monitor),
        )
        self.weights = dict(weights)
        self.rescale_grads, self.total_norm = rescale_grads, float(total_norm)
        self.per_batch_item, self.epsilon, self.monitor = per_batch_item, float(epsilon), monitor
        self._norms = RunningMeans(float(ema_decay))
        self._metrics: dict[str, float] = {}

    @property
    def left_out(self) -> int:
        """How many norms of gradients were not finite: they are not in the averages. The first is told in the log."""
        return self._norms.left_out

    @property
    def metrics(self) -> dict[str, float]:
        """With ``monitor``, ``ratio_NAME`` for each loss of the last call: its N_k over the sum of all; else empty."""
        return dict(self._metrics)

    def backward(self, losses: Mapping[str, torch.Tensor], input: torch.Tensor) -> torch.Tensor:
        """Goes back from ``input`` with the balanced gradient, which is added to ``.grad`` as ``Tensor.backward`` does.

        On several ranks every rank calls it with the same losses. A gradient that is not finite goes back as it is, and
        is left out of the averages.

        Args:
            losses: Name -> scalar; each depends on ``input``.
            input: The tensor that all losses come from, (B, ...).

        Returns:
            The losses with the factors of their gradients, added up; detached.

        Raises:
            ValueError: A loss has no weight, all that are given have weight 0, or one does not depend on ``input``.
        """
        share = self._shares(losses)
        gradients = {name: _gradient(name, loss, input) for name, loss in losses.items()}
        factors = dict(share)  # rescale_grads=False: the plain weighted sum
        if self.rescale_grads or self.monitor:
            means = dict.fromkeys(losses, 0.0) | self._updated(self._mean_norms(gradients))
            whole = sum(means[name] for name in losses)
            if self.monitor:
                self._metrics = {f"ratio_{name}": means[name] / whole if whole > 0 else 0.0 for name in losses}
        if self.rescale_grads:
            for name, gradient in gradients.items():
                size = self.epsilon + means[name]
                gradients[name] = gradient / size if size > 0 else gradient
                factors[name] = share[name] * self.total_norm
        balanced = torch.stack([factors[name] * gradient for name, gradient in gradients.items()]).sum(dim=0)
        torch.autograd.backward(input, balanced)
        if self.rescale_grads:
            factors = {name: factor / ((self.epsilon + means[name]) or 1.0) for name, factor in factors.items()}
        return torch.stack([factors[name] * loss.detach() for name, loss in losses.items()]).sum()

    def state_dict(self) -> dict[str, Any]:
        """Returns what continues the averages."""
        return self._norms.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self._norms.load_state_dict(state)

    def _updated(self, norms: Mapping[str, float]) -> dict[str, float]:
        """Returns the averages after a call's norms; there is none of a loss whose every norm was not finite."""
        before = self._norms.left_out
        means = self._norms.update(norms)
        if self._norms.left_out > before == 0:
            wrong = ", ".join(name for name, norm in norms.items() if not math.isfinite(norm))
            logger.warning("balancer: the gradient of %s is not finite and is left out; later ones are counted", wrong)
        return means

    def _shares(self, losses: Mapping[str, torch.Tensor]) -> dict[str, float]:
        unknown = [name for name in losses if name not in self.weights]
        if unknown or not losses:
            raise ValueError(f"no weight for the losses {unknown}; there are weights for {', '.join(self.weights)}")
        weights = {name: float(self.weights[name]) for name in losses}
        if not self.rescale_grads:
            return weights
        total = sum(weights.values())
        if total <= 0:
            raise ValueError(f"all losses that were given have weight 0: {', '.join(losses)}")
        return {name: weight / total for name, weight in weights.items()}  # w_k / sum_j w_j

    def _mean_norms(self, gradients: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Returns n_k: the mean norm per batch item, or the norm of the whole, averaged over ranks by their items."""
        norms = [_norm(gradient, self.per_batch_item) for gradient in gradients.values()]
        some = next(iter(gradients.values()))
        items = float(len(some)) if some.ndim else 1.0
        sums = torch.stack([*(norm * items for norm in norms), norms[0].new_tensor(items)])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        return dict(zip(gradients, (sums[:-1] / sums[-1]).tolist(), strict=True))


def _norm(gradient: torch.Tensor, per_batch_item: bool) -> torch.Tensor:
    items = gradient.float().reshape(len(gradient) if per_batch_item and gradient.ndim else 1, -1)
    norms: torch.Tensor = torch.linalg.vector_norm(items, dim=1)
    return norms.mean()


def _gradient(name: str, loss: torch.Tensor, input: torch.Tensor) -> torch.Tensor:
    try:
        (gradient,) = torch.autograd.grad(loss, input, retain_graph=True)
    except RuntimeError as error:
        raise ValueError(f"the loss {name!r} has no gradient at the input: {error}") from error
    return gradient
