"""``doge``: sources whose gradients point where the target's does get more weight (DoGE).

Fan, Pagliardini and Jaggi, "DoGE: Domain Reweighting with Generalization Estimation" (ICML 2024), arXiv 2310.15393,
Algorithm 1, with what the authors' program adds to it. G_j is the gradient of the mean token loss of source j, clipped
to norm c, as it was when j was last seen; eta_t the learning rate. At each measured step t:

    W_j = eta_t sum over targets i of <G_j, G_i> / (mean over j of |G_j| + 1e-6), limited to eta_t [least, most]
    w_j <- w_j exp(W_j / mu), divided by its sum; then (1 - e) w + e / K

The targets are the sources themselves (universal generalisation) or sets of held-out rows (out of domain). w is for:

* ``use: loss_weights``, the paper's proxy: rows are drawn by fixed shares u, a token of source j counts w_j / u_j, and
  the mean of w over the steps is the mixture for the large model, in ``doge_weights.json``;
* ``use: sampling``, ours: w is the mixture of the next stretch of the same run.

The paper goes back through the model once for each source. Here the gradients of all sources come out of training's own
backward pass, as sketches that keep inner products: no pass more, but for targets out of domain (forward and backward
over their rows at each update). Where every N-th step is measured, its W counts N times.

Letters: K sources, J targets, D numbers of a sketch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from dataflex.core.cost import Ahead, Cost, Work
from dataflex.core.errors import ConfigError, Problem
from dataflex.core.parameter_checks import at_least, between, is_number, one_of, positive, require
from dataflex.core.registry import register_mixer
from dataflex.interfaces.source_gradients import GradientSketch, SourceGradients, sketch_problems
from dataflex.scoring import read_target
from dataflex.scoring.trial import try_gradients
from dataflex.train.mixer.base_mixer import Mixer
from numpy.typing import NDArray

from dataflex_mixers.doremi.group_dro import entropy
from dataflex_mixers.doremi.handover import write_weights
from dataflex_mixers.parts.gradient_window import sketch_cost
from dataflex_mixers.parts.simplex import Shares, log_mixed_with_uniform, log_softmax, logarithm, softmax

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from dataflex.core.context import RunAhead
    from dataflex.planning.mixture import MixtureManager

TARGETS = ("sources", "eval")
USES = ("sampling", "loss_weights")
FILE = "doge_weights.json"

Array = NDArray[np.float64]


def clipped(grads_XD: Array, most: float) -> Array:
    """Returns gradients scaled to a norm of at most ``most``, as ``clip_grad_norm_`` scales: (X, D).

    Args:
        grads_XD: (X, D) gradients.
        most: c; 0 for none.
    """
    if most == 0:
        return grads_XD
    norms_X1 = np.linalg.norm(grads_XD, axis=1, keepdims=True)
    return np.asarray(grads_XD * np.minimum(1.0, most / (norms_X1 + 1e-6)))


def alignment(train_KD: Array, target_JD: Array, rate: float, least: float, most: float) -> Array:
    """Returns W: (K,), how much a step on each source would lower the targets' losses, limited.

    Args:
        train_KD: (K, D) clipped gradients of the sources; zeros for one not seen so far.
        target_JD: (J, D) clipped gradients of the targets.
        rate: eta_t.
        least: Lower limit of W / eta_t.
        most: Upper limit of W / eta_t.
    """
    products_K = rate * (train_KD @ target_JD.sum(axis=0))  # Algorithm 1: sum over i of <G_j, G_i>
    mean_norm = np.linalg.norm(train_KD, axis=1).mean()  # the program's, not the paper's
    return np.asarray(np.clip(products_K / (mean_norm + 1e-6), rate * least, rate * most))


def reweighted(log_weights_K: Shares, scores_K: Array, mu: float, smoothing: float) -> Shares:
    """Returns ln w after a step: (K,); Algorithm 1, the multiplicative update and its normalisation.

    Args:
        log_weights_K: (K,) ln w before; -inf, a weight of 0, gets the even part alone.
        scores_K: (K,) W.
        mu: Of the Bregman divergence; the larger, the slower.
        smoothing: e, the part that is shared out evenly.
    """
    return log_mixed_with_uniform(log_softmax(log_weights_K + scores_K / mu), smoothing)


@register_mixer("doge")
class DogeMixer(Mixer):
    """More of the sources whose gradients point where the target's does, without a pass of its own (arXiv 2310.15393).

    Args:
        mixture_manager: The sources.
        data_collator: Makes a batch of tensors from a list of rows.
        accelerator: The run's accelerator.
        output_dir: Where ``doge_weights.json`` goes.
        eval_dataset: The rows of ``target: eval``, one set or several by name.
        target: ``sources``, the mixture itself; or ``eval``, the rows of ``eval_dataset``.
        use: ``sampling``: the weights are the next mixture; ``loss_weights``: they scale losses, rows are drawn by
            fixed shares, and their mean is written down for another run.
        mu: Above 0; the larger, the slower weights move.
        smoothing: e, the part of the weights that is shared out evenly, 0 to 1.
        least: Lower limit of a score over the learning rate; 0 lets no weight fall but by the others' rise.
        most: Upper limit of the same.
        max_grad_norm: c, the norm to which each source's gradient is clipped; 0 for none.
        gradient_every: Steps from one whose gradients are measured to the next.
        proj_dim: Numbers of a sketch; null: every number that ``factor_dim`` leaves.
        factor_dim: Dimensions kept of each side of a larger matrix; null for whole matrices.
        layers: ``linear``, the weights of linear layers; or ``all``, every trained parameter.

    Raises:
        ConfigError: A parameter has another value, ``target: eval`` has no evaluation rows, or a source whose loss is
            weighed has an initial share of 0.
    """

    asks = "gradients"
    needs_rows = "eval_dataset if target=eval"
    weighs_sources = "losses if use=loss_weights"
    reads_batches = True

    def __init__(
        self,
        mixture_manager: MixtureManager,
        data_collator: Callable[[list[Any]], Mapping[str, torch.Tensor]],
        accelerator: Accelerator,
        output_dir: str,
        eval_dataset: Any = None,
        target: str = "sources",
        use: str = "sampling",
        mu: float = 0.05,
        smoothing: float = 0.0,
        least: float = 0.0,
        most: float = 5.0,
        max_grad_norm: float = 5.0,
        gradient_every: int = 1,
        proj_dim: int | None = 4096,
        factor_dim: int | None = 16,
        layers: str = "linear",
    ) -> None:
        super().__init__(mixture_manager)
        require(
            "doge mixer",
            one_of("target", target, TARGETS),
            one_of("use", use, USES),
            positive("mu", mu),
            between("smoothing", smoothing, 0, 1),
            *_limits(least, most),
            at_least("max_grad_norm", max_grad_norm, 0),
            *sketch_problems(proj_dim, factor_dim, layers, gradient_every),
        )
        names, shares_K = mixture_manager.names, mixture_manager.proportions
        never = [name for name, share in zip(names, shares_K, strict=True) if share == 0]
        if never and use == "loss_weights":
            raise ConfigError(
                f"the doge mixer draws from each source, but the initial share of {never[0]} is 0 -> give it a share, "
                "leave it out of dataset, or set use: sampling"
            )
        self.sets: dict[str, Any] = {}
        if target == "eval":
            found = read_target(eval_dataset, "mixer")
            require("doge mixer", found.problem)
            self.sets = found.sets
        self.data_collator, self.accelerator, self.output_dir = data_collator, accelerator, Path(output_dir)
        self.target, self.use, self.mu, self.smoothing = target, use, float(mu), float(smoothing)
        self.least, self.most, self.max_grad_norm = float(least), float(most), float(max_grad_norm)
        self.gradient_every = gradient_every
        self._sketch = GradientSketch(proj_dim, factor_dim, layers)
        K = len(names)
        self.u_K: Shares = shares_K.copy()
        self.log_weights_K: Shares = logarithm(shares_K) if use == "sampling" else np.full(K, -np.log(K))
        self.total_K: Array = np.zeros(K)  # of w over the measured steps
        self.steps = 0
        self.grads_KD: Array | None = None  # G, clipped; None before the first measured step
        self.target_JD: Array | None = None  # of held-out rows; None before the first update
        self.scores_K: Array = np.zeros(K)

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """Gradients are those of training; held-out rows cost a pass at each update. See the base class."""
        if params["target"] != "eval":
            return sketch_cost(params, ahead)
        update = Work(gradients=ahead.target, factor_dim=params["factor_dim"])
        return replace(sketch_cost(params, ahead, ahead.sets), update=update)

    def check_run(self, model: torch.nn.Module, run: RunAhead) -> None:
        """Tries two of the held-out rows. See the base class."""
        for rows in self.sets.values():
            try_gradients(model, rows, self.data_collator, self.accelerator, self._sketch.factor_dim)

    @property
    def gradient_sketch(self) -> GradientSketch:
        """See the base class."""
        return self._sketch

    @property
    def weighs(self) -> bool:
        """Whether the weights scale losses."""
        return self.use == "loss_weights"

    def wants_gradients(self, step: int) -> bool:
        """Returns whether the step is one of every ``gradient_every``."""
        return step % self.gradient_every == 0

    def observe_gradients(self, step: int, gradients: SourceGradients) -> None:
        """Moves w by the gradients of a step; a source without rows in it keeps its last gradient."""
        if self.grads_KD is None:
            self.grads_KD = np.zeros_like(gradients.sums)
        seen_K = gradients.counts > 0
        self.grads_KD = np.where(
            seen_K[:, None], clipped(np.nan_to_num(gradients.means), self.max_grad_norm), self.grads_KD
        )
        targets = self.grads_KD if self.target == "sources" else self.target_JD
        if targets is None:  # held-out rows are looked at when the warm-up ends
            return
        rate = gradients.learning_rate
        self.scores_K = self.gradient_every * alignment(self.grads_KD, targets, rate, self.least, self.most)
        self.log_weights_K = reweighted(self.log_weights_K, self.scores_K, self.mu, self.smoothing)
        self.total_K = self.total_K + self.weights
        self.steps += 1

    @property
    def weights(self) -> Shares:
        """(K,) w."""
        return softmax(self.log_weights_K)

    @property
    def average(self) -> Shares:
        """(K,) mean of w over the measured steps; w itself before the first."""
        return np.asarray(self.total_K / self.steps) if self.steps else self.weights

    def loss_weights(self) -> Shares:
        """Returns w / u: (K,)."""
        return np.asarray(self.weights / self.u_K)

    def mix(self, model: torch.nn.Module, step_id: int, **kwargs: Any) -> Shares:
        """Returns w, or the fixed shares u where losses are weighed: (K,). Looks at held-out targets. Collective."""
        if self.target == "eval":
            assert self.sketcher is not None, "the run sets it for a mixer that looks at gradients"
            found = [
                self.sketcher.mean_of(model, rows, self.data_collator, f"{self.name}: gradient of {name}")
                for name, rows in self.sets.items()
            ]
            self.target_JD = clipped(np.stack(found), self.max_grad_norm)
        self._write()
        return self.u_K if self.weighs else self.weights

    def finish(self, step: int) -> None:
        """Writes the weights."""
        self._write()

    def details(self) -> dict[str, Any]:
        """Returns the weights, their mean and entropy, the last scores and the norms of the gradients."""
        names = self.mixture_manager.names
        norms_K = np.zeros(len(names)) if self.grads_KD is None else np.linalg.norm(self.grads_KD, axis=1)
        columns = {
            "weights": self.weights, "average_weights": self.average, "scores": self.scores_K,
            "gradient_norms": norms_K,
        }  # fmt: skip
        named = {key: dict(zip(names, values_K.tolist(), strict=True)) for key, values_K in columns.items()}
        return {**named, "weights_entropy": entropy(self.weights)}

    def state_dict(self) -> dict[str, Any]:
        """Returns ln w, its sum over the steps, and the gradients of the sources and the targets."""
        return {
            "log_weights": self.log_weights_K, "total": self.total_K, "steps": self.steps, "grads": self.grads_KD,
            "target": self.target_JD, "scores": self.scores_K,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.log_weights_K, self.total_K, self.scores_K = (
            np.array(state[key], dtype=np.float64) for key in ("log_weights", "total", "scores")
        )
        self.steps = int(state["steps"])
        self.grads_KD, self.target_JD = (
            None if state[key] is None else np.array(state[key], dtype=np.float64) for key in ("grads", "target")
        )

    def _write(self) -> None:
        if self.accelerator.is_main_process:
            names, unit = self.mixture_manager.names, self.mixture_manager.unit
            mean, last = (dict(zip(names, w_K.tolist(), strict=True)) for w_K in (self.average, self.weights))
            write_weights(self.output_dir, mean, last, self.steps, unit, None, FILE)


def _limits(least: Any, most: Any) -> list[Problem | None]:
    """Returns what is wrong with the limits of a score."""
    wrong = [key for key, found in (("least", least), ("most", most)) if not is_number(found)]
    if wrong:
        given = {"least": least, "most": most}
        return [Problem(key, f"found {given[key]!r}, allowed: a number") for key in wrong]
    if least < most:
        return []
    found = f"found {least!r} and {most!r}, allowed: least below most"
    return [Problem("least, most", found, "exchange them, or give both")]
