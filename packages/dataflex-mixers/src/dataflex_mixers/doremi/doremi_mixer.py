"""``doremi``: step 2 of DoReMi, a small model whose loss is weighed by each source's excess over a reference model.

Xie et al., "DoReMi: Optimizing Data Mixtures Speeds Up Language Model Pretraining" (NeurIPS 2023), arXiv 2305.10429,
Algorithm 1. Rows are drawn by fixed shares u, normally equal ones. At each step t:

    lambda_d = mean over the tokens of d of max(c_proxy - c_reference, 0)
    alpha <- (1 - c) softmax(log alpha + eta lambda) + c / K
    the proxy minimises sum_tokens c_proxy alpha_d / u_d, divided by sum_tokens alpha_d / u_d

and the average of alpha over the steps is the mixture for the large model, written to ``doremi_weights.json``. The loss
of a step is weighed by the alpha of the step before: with accumulation, the losses of a whole step are not known when
its first micro-batch is weighed. The authors' program updates alpha first and weighs the last micro-batch of the step
by the new one; so where a step is one micro-batch, ours is one step behind. A source without tokens in a step keeps its
last lambda; one without any so far has the mean of the others. Cost: the reference model's forward on each batch, and
its memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from dataflex.config.resolved import recorded_run
from dataflex.core.cost import Ahead, Cost, Work
from dataflex.core.errors import ConfigError
from dataflex.core.parameter_checks import between, positive, require
from dataflex.core.registry import register_mixer
from dataflex.train.mixer.base_mixer import Mixer
from numpy.typing import NDArray

from dataflex_mixers.doremi.group_dro import ascended, entropy
from dataflex_mixers.doremi.handover import write_weights
from dataflex_mixers.doremi.reference import Reference, reference_problem
from dataflex_mixers.parts.loss_window import not_finite
from dataflex_mixers.parts.simplex import Shares, softmax

if TYPE_CHECKING:
    from accelerate import Accelerator
    from dataflex.planning.mixture import MixtureManager


@register_mixer("doremi")
class DoremiMixer(Mixer):
    """DoReMi's proxy: source weights that scale its loss, by its excess over a reference model (arXiv 2305.10429).

    Args:
        mixture_manager: The sources; their initial proportions are u, which the proxy draws by throughout.
        accelerator: The run's accelerator.
        output_dir: Where ``doremi_weights.json`` goes.
        reference_model: Folder of the reference model: step 1, with the same tokenizer.
        eta: Step size of the weights, above 0.
        smoothing: c, the part of the weights that is shared out evenly, 0 to 1.
        excess_smoothing: How much of a source's lambda is kept from the step before, from 0 (none, the paper) below 1;
            for small batches.

    Raises:
        ConfigError: A parameter has another value, there is no such model, or a source has an initial share of 0.
    """

    draws = False
    asks = "losses under another model"
    weighs_sources = "losses"

    def __init__(
        self,
        mixture_manager: MixtureManager,
        accelerator: Accelerator,
        output_dir: str,
        reference_model: str,
        eta: float = 1.0,
        smoothing: float = 0.001,
        excess_smoothing: float = 0.0,
    ) -> None:
        super().__init__(mixture_manager)
        require(
            "doremi mixer",
            positive("eta", eta),
            between("smoothing", smoothing, 0, 1),
            between("excess_smoothing", excess_smoothing, 0, 1, exclusive=True),
            reference_problem("reference_model", reference_model),
        )
        never = [n for n, p in zip(mixture_manager.names, mixture_manager.proportions, strict=True) if p == 0]
        if never:
            raise ConfigError(
                f"the doremi mixer draws from each source, but the initial share of {never[0]} is 0 -> give it a "
                "share, or leave it out of dataset"
            )
        self.accelerator, self.output_dir, self.reference_model = accelerator, Path(output_dir), reference_model
        self.eta, self.smoothing, self.excess_smoothing = float(eta), float(smoothing), float(excess_smoothing)
        K = len(mixture_manager.names)
        self.u_K: Shares = mixture_manager.proportions.copy()
        self._keep(np.full(K, -np.log(K)))
        self.total_K: NDArray[np.float64] = np.zeros(K)  # of alpha over the steps
        self.excess_K: NDArray[np.float64] = np.full(K, np.nan)  # lambda
        self.steps = 0
        self._reference: Reference | None = None
        self._reference_run: str | None = None

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """The reference model's forward over every step. See the base class."""
        return Cost(step=Work(others={str(params["reference_model"]): ahead.step}), device_bytes=ahead.model_bytes)

    def prepare(self, model: torch.nn.Module) -> None:
        """Loads the reference model."""
        self._reference = Reference(self.reference_model, model, self.accelerator)
        recorded = recorded_run(self.reference_model)
        self._reference_run = None if recorded is None else recorded.id

    def token_values(self, inputs: Mapping[str, Any], losses_BT: torch.Tensor) -> torch.Tensor:
        """Returns how far each token's loss lies above the reference's, 0 where it lies below: (B, T)."""
        assert self._reference is not None
        return (losses_BT - self._reference.losses(inputs).to(losses_BT.device)).clamp(min=0)

    def observe(self, step: int, losses_K: NDArray[np.float64], tokens_K: NDArray[np.int64]) -> None:
        """Moves alpha by the excess losses of a step; one that is not finite is left out, as if it was not seen."""
        self.leave_out(not_finite(losses_K, tokens_K), "a source's excess loss")
        seen_K = (tokens_K > 0) & np.isfinite(losses_K)
        if not seen_K.any():
            return
        keep_K = np.where(np.isnan(self.excess_K), 0.0, self.excess_smoothing)
        moved_K = keep_K * np.nan_to_num(self.excess_K) + (1 - keep_K) * np.where(seen_K, losses_K, 0.0)
        self.excess_K = np.where(seen_K, moved_K, self.excess_K)
        known_K = ~np.isnan(self.excess_K)
        lambda_K = np.where(known_K, self.excess_K, self.excess_K[known_K].mean())
        self._keep(ascended(self.log_alpha_K, lambda_K, self.eta, self.smoothing))
        self.total_K = self.total_K + self.alpha_K
        self.steps += 1

    def loss_weights(self) -> Shares:
        """Returns alpha / u: (K,)."""
        return np.asarray(self.alpha_K / self.u_K)

    @property
    def average(self) -> Shares:
        """(K,) mean of alpha over the steps; equal weights before the first."""
        return np.asarray(self.total_K / self.steps) if self.steps else self.alpha_K

    def mix(self, model: torch.nn.Module, step_id: int, **kwargs: Any) -> Shares:
        """Returns u: (K,). The proxy draws by fixed shares; what moves is the loss. Writes the weights so far."""
        self._write()
        return self.u_K

    def details(self) -> dict[str, Any]:
        """Returns the weights, their average and entropy, and the excess losses."""
        names = self.mixture_manager.names
        excess = zip(names, self.excess_K.tolist(), strict=True)
        return {
            "weights": dict(zip(names, self.alpha_K.tolist(), strict=True)),
            "average_weights": dict(zip(names, self.average.tolist(), strict=True)),
            "weights_entropy": entropy(self.alpha_K),
            "excess_loss": {name: value for name, value in excess if np.isfinite(value)},
        }

    def finish(self, step: int) -> None:
        """Writes the weights."""
        self._write()

    def state_dict(self) -> dict[str, Any]:
        """Returns ln alpha, the sum of alpha over the steps, and lambda."""
        return {"log_alpha": self.log_alpha_K, "total": self.total_K, "excess": self.excess_K, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self._keep(np.array(state["log_alpha"], dtype=np.float64))
        self.total_K, self.excess_K = (np.array(state[key]) for key in ("total", "excess"))
        self.steps = int(state["steps"])

    def _keep(self, log_alpha_K: Shares) -> None:
        """Takes over alpha; the logarithm is what is learnt."""
        self.log_alpha_K, self.alpha_K = log_alpha_K, softmax(log_alpha_K)

    def _write(self) -> None:
        if self.accelerator.is_main_process:
            mean, last = (
                dict(zip(self.mixture_manager.names, w.tolist(), strict=True)) for w in (self.average, self.alpha_K)
            )
            write_weights(self.output_dir, mean, last, self.steps, self.mixture_manager.unit, self._reference_run)
