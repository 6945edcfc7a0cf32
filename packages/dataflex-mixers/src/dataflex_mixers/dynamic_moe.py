"""``dynamic_moe``: larger shares for sources whose tokens a mixture-of-experts model sends to other experts.

Zhu et al., "Dynamic Data Mixing Maximizes Instruction Tuning for Mixture-of-Experts", arXiv 2406.11256. At each update,
on held-out rows of each source d, with l_d the share of the routed tokens that each expert of the last layer gets:

    Delta_d = mean over all K sources d' of ||l_d - l_d'||_2      d itself among them, as in the authors' program
    alpha' = softmax(log w + eta Delta),   w <- (1 - c) alpha' + c / K

Sources that use the experts alike are redundant and lose share. Cost: a forward pass without gradients over
``eval_rows`` rows per source and update, shared out over the ranks. The paper updates every 100 steps and freezes the
gates, since a gate that moves would move the fingerprints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from dataflex.core.cost import Ahead, Cost, Work
from dataflex.core.errors import ConfigError
from dataflex.core.parameter_checks import between, count, flag, one_of, positive, require
from dataflex.core.registry import register_mixer
from dataflex.model.autocast import autocast
from dataflex.scoring import RowPass, undisturbed, without_replicas
from dataflex.train.mixer.base_mixer import Mixer
from numpy.typing import NDArray

from dataflex_mixers.parts.gate_load import distances, experts_per_token, gates, router
from dataflex_mixers.parts.held_out_rows import held_out
from dataflex_mixers.parts.simplex import Shares, log_mixed_with_uniform, log_softmax, logarithm, softmax

if TYPE_CHECKING:
    from accelerate import Accelerator
    from dataflex.core.context import RunAhead, UpdateContext
    from dataflex.planning.mixture import MixtureManager

METRICS = ("l2", "cosine")
LAYERS = ("last", "all")


def reweighted(log_shares_K: Shares, distances_K: NDArray[np.float64], eta: float, smoothing: float) -> Shares:
    """Returns ln w after an update: (K,); equation of section 3.2 of the paper.

    Args:
        log_shares_K: (K,) ln w before; -inf, a share of 0, gets the even part alone.
        distances_K: (K,) Delta.
        eta: Step size.
        smoothing: c, the part that is shared out evenly.
    """
    return log_mixed_with_uniform(log_softmax(log_shares_K + eta * distances_K), smoothing)


@register_mixer("dynamic_moe")
class DynamicMoeMixer(Mixer):
    """More of the sources whose tokens go to other experts of a mixture-of-experts model (arXiv 2406.11256).

    Args:
        mixture_manager: The sources.
        data_collator: Makes a batch of tensors from a list of rows.
        accelerator: The run's accelerator.
        mixer_eval_dataset: Source -> held-out rows.
        eta: Step size, above 0.
        smoothing: c, the part of the mixture that is shared out evenly, 0 to 1.
        eval_rows: Held-out rows of each source that an update looks at, drawn anew each time; all where there are
            fewer.
        distance: ``l2`` or ``cosine``.
        layers: ``last``: the last layer with experts; ``all``: the mean over all of them.
        freeze_gate: Whether the layers that choose experts are kept from being trained.

    Raises:
        ConfigError: A parameter has another value, or a source has no held-out rows.
    """

    reads_batches = True
    asks = "gates"

    def __init__(
        self,
        mixture_manager: MixtureManager,
        data_collator: Callable[[list[Any]], Mapping[str, torch.Tensor]],
        accelerator: Accelerator,
        mixer_eval_dataset: Mapping[str, Any] | None,
        eta: float = 10.0,
        smoothing: float = 0.05,
        eval_rows: int = 64,
        distance: str = "l2",
        layers: str = "last",
        freeze_gate: bool = True,
    ) -> None:
        super().__init__(mixture_manager)
        require(
            "dynamic_moe mixer",
            positive("eta", eta),
            between("smoothing", smoothing, 0, 1),
            count("eval_rows", eval_rows),
            one_of("distance", distance, METRICS),
            one_of("layers", layers, LAYERS),
            flag("freeze_gate", freeze_gate),
        )
        self.data_collator, self.accelerator = data_collator, accelerator
        self.held_out = held_out("dynamic_moe mixer", mixture_manager.names, mixer_eval_dataset)
        self.eta, self.smoothing, self.eval_rows = float(eta), float(smoothing), eval_rows
        self.distance, self.layers, self.freeze_gate = distance, layers, freeze_gate
        self._distances_K: NDArray[np.float64] = np.zeros(0)
        self._log_shares_K: Shares | None = None  # ln w; None: the shares that the run begins with

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """A forward pass over held-out rows of each source. See the base class."""
        return Cost(Work(forward=ahead.held_out.at_most(params["eval_rows"] * ahead.sources)))

    def prepare(self, model: torch.nn.Module) -> None:
        """Refuses a dense model; freezes the gates where that is wanted."""
        experts_per_token(model)
        if not self.freeze_gate:
            return
        found = gates(model)
        if not found:
            raise ConfigError(
                f"freeze_gate of the dynamic_moe mixer: no gate was found in {type(model).__name__} -> set "
                "freeze_gate: false"
            )
        for gate in found:
            gate.requires_grad_(False)

    def check_run(self, model: torch.nn.Module, run: RunAhead) -> None:
        """Refuses a model that does not show where it sends tokens: a row of each source is looked at."""
        with autocast(self.accelerator):
            self._counts(model, self.held_out.offsets[:-1], None)

    def mix(self, model: torch.nn.Module, step_id: int, **kwargs: Any) -> Shares:
        """Returns w: (K,), the same on every rank. Collective."""
        context: UpdateContext = kwargs["context"]
        self._distances_K = distances(self.loads(model, context.update), self.distance)
        before_K = logarithm(self.mixture_manager.proportions) if self._log_shares_K is None else self._log_shares_K
        self.leave_out(int((~np.isfinite(self._distances_K)).sum()), "a source's distance")
        if np.isfinite(self._distances_K).all():
            before_K = reweighted(before_K, self._distances_K, self.eta, self.smoothing)
        self._log_shares_K = before_K
        return softmax(before_K)

    def loads(self, model: torch.nn.Module, update: int) -> NDArray[np.float64]:
        """Returns the share of routed tokens of each expert, by source: (K, L, E). Collective."""
        rows = self._rows(update)
        counts_NLE = self._counts(model, rows, self.accelerator)
        sources_N = self.held_out.sources_of(rows)
        totals_KLE = np.stack([counts_NLE[sources_N == k].sum(axis=0) for k in range(len(self.held_out.names))])
        return np.asarray(totals_KLE / totals_KLE.sum(axis=-1, keepdims=True))  # L1 norm 1

    def _counts(
        self, model: torch.nn.Module, rows: NDArray[np.int64], accelerator: Accelerator | None
    ) -> NDArray[np.float64]:
        """Returns how many tokens of held-out rows go to each expert: (N, L, E). Collective."""
        model = without_replicas(model)
        desc = f"{self.name}: routing of held-out rows"
        seen = RowPass(self.held_out, self.data_collator, accelerator, rows, desc=desc)
        with undisturbed(model), torch.no_grad():
            return seen.values(model, router(model, experts_per_token(model), self.layers)).astype(np.float64)

    def _rows(self, update: int) -> NDArray[np.int64]:
        """Returns the held-out rows that an update looks at, by source."""
        generator = self.generator(update)
        parts = []
        for offset, size in zip(self.held_out.offsets, self.held_out.sizes, strict=False):  # the last offset is the end
            chosen = generator.choice(int(size), min(int(size), self.eval_rows), replace=False)
            parts.append(int(offset) + np.sort(chosen))
        return np.concatenate(parts).astype(np.int64)

    def details(self) -> dict[str, Any]:
        """Returns the distances."""
        found = zip(self.mixture_manager.names, self._distances_K.tolist(), strict=True)
        return {"gate_distance": {name: value for name, value in found if np.isfinite(value)}}

    def state_dict(self) -> dict[str, Any]:
        """Returns the logarithms of the shares, once there was an update."""
        return {"log_shares": self._log_shares_K}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        found = state["log_shares"]
        self._log_shares_K = None if found is None else np.array(found, dtype=np.float64)
