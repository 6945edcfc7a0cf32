"""``loss``: the higher the training loss of a source, the more is drawn from it.

With K sources and the mean token loss L_i of source i over the steps since the last update:

    m_i <- a m_i + (1 - a) L_i                               running loss; the first L_i is taken whole
    p_i  = exp(m_i / T) / sum_k exp(m_k / T)                 shares
    p_i <- max(p_i, min_share), the others scaled down       floor

What modelscope/ms-swift's pull request 9142 does is a = 0 without a floor. There the loss of a source is the mean of
the losses in the log since the last update, each of one logging interval; here it is the mean over all tokens of the
window, whatever is logged. A source that the window did not show has, there, the mean loss of the others; here it keeps
the running loss that it had, and has that mean only where it was never seen.

A high loss may be one that cannot fall: text that nobody can predict, or labels that are wrong. The shares of such a
source stay high. ``odm`` with ``reward: loss_drop`` looks at what is learnt instead. Cost: none beyond the losses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from dataflex.core.cost import Ahead, Cost
from dataflex.core.parameter_checks import between, positive, require
from dataflex.core.registry import register_mixer
from dataflex.train.mixer.base_mixer import Mixer
from numpy.typing import NDArray

from dataflex_mixers.parts.loss_window import LossWindow
from dataflex_mixers.parts.simplex import Shares, raised, softmax

if TYPE_CHECKING:
    import torch
    from dataflex.planning.mixture import MixtureManager


def running_losses(before_K: NDArray[np.float64], losses_K: NDArray[np.float64], smoothing: float) -> Shares:
    """Returns the running losses after a window: (K,), NaN for a source that was never seen.

    Args:
        before_K: (K,) those before; NaN for a source that was not seen so far.
        losses_K: (K,) mean token loss of each source in the window; NaN for one that was not seen in it.
        smoothing: a, in [0, 1).
    """
    moved_K = np.where(np.isnan(before_K), losses_K, smoothing * before_K + (1 - smoothing) * losses_K)
    return np.where(np.isnan(losses_K), before_K, moved_K)


def shares_by_loss(losses_K: NDArray[np.float64], temperature: float, min_share: float) -> Shares:
    """Returns the shares of the next stretch: (K,), sum 1.

    Args:
        losses_K: (K,) running losses, at least one a number; a source with NaN counts with the mean of the others.
        temperature: T, above 0.
        min_share: Least share of a source, below 1 / K.
    """
    known_K = np.where(np.isnan(losses_K), np.nanmean(losses_K), losses_K)
    return raised(softmax(known_K, temperature), min_share)


@register_mixer("loss")
class LossMixer(Mixer):
    """Shares by softmax(loss / temperature) of the sources' training losses.

    Args:
        mixture_manager: The sources.
        temperature: T, above 0: how far apart two losses must be, in nats per token, for one source to get e times the
            share of the other. A large one comes close to equal shares, a small one to the source with the highest loss
            alone.
        smoothing: a, how much of the loss before a window is kept in the running loss, in [0, 1).
        min_share: Least share of each source; 0 up to, not including, 1 / K. What a share lacks is taken from the
            others in proportion to what they have.

    Raises:
        ConfigError: A parameter has another value; the message holds every problem.
    """

    draws = False

    def __init__(
        self,
        mixture_manager: MixtureManager,
        temperature: float = 1.0,
        smoothing: float = 0.0,
        min_share: float = 0.0,
    ) -> None:
        super().__init__(mixture_manager)
        K = len(mixture_manager.names)
        require(
            "loss mixer",
            positive("temperature", temperature),
            between("smoothing", smoothing, 0, 1, exclusive=True),
            between("min_share", min_share, 0, 1 / K, exclusive=True),
        )
        self.temperature, self.smoothing = float(temperature), float(smoothing)
        self.min_share = float(min_share)
        self.losses_K: NDArray[np.float64] = np.full(K, np.nan)  # running losses
        self.window = LossWindow(K)

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """The losses are those of training. See the base class."""
        return Cost()

    def observe(self, step: int, losses_K: NDArray[np.float64], tokens_K: NDArray[np.int64]) -> None:
        """Adds a step to the window; a loss that is not finite is left out."""
        self.leave_out(self.window.add(losses_K, tokens_K), "a source's loss")

    def mix(self, model: torch.nn.Module, step_id: int, **kwargs: Any) -> Shares:
        """Returns the shares: (K,), the same on every rank, as the losses are.

        Where no loss is known yet (no warm-up, or a window of nothing but losses that are not finite) they stay.
        """
        self.losses_K = running_losses(self.losses_K, self.window.close(), self.smoothing)
        if np.isnan(self.losses_K).all():
            return self.mixture_manager.proportions.copy()
        return shares_by_loss(self.losses_K, self.temperature, self.min_share)

    def details(self) -> dict[str, Any]:
        """Returns the losses of the window, and the running losses where they are others."""
        names = self.mixture_manager.names
        losses = {"losses": self.window.last(names)}
        if self.smoothing:
            known = zip(names, self.losses_K.tolist(), strict=True)
            losses["running_losses"] = {name: loss for name, loss in known if np.isfinite(loss)}
        return losses

    def state_dict(self) -> dict[str, Any]:
        """Returns the running losses and the open window."""
        return {"losses": self.losses_K.copy(), "window": self.window.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.losses_K = np.array(state["losses"], dtype=np.float64)
        self.window.load_state_dict(state["window"])
