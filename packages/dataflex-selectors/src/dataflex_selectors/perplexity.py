"""``perplexity``: a band of the rows by their perplexity under a reference model.

Ankner et al., Perplexed by Perplexity: Perplexity-Based Data Pruning With Small Reference Models, arXiv 2405.20541,
section 2.1. With PPL(z) = exp(mean token loss of z under a small model) and F its empirical distribution over the rows:

    low     F(z) in [0, s]
    medium  F(z) in [(1 - s) / 2, (1 + s) / 2]
    high    F(z) in [1 - s, 1]

s is ``share``; rows are drawn from the band at random. Without a share the band is as wide as rows are asked for, which
is what a filter wants: its ``keep`` is the share. Rows of equal perplexity stand in the order of the file. Cost: a
forward pass over all rows, once with ``reference_model``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from dataflex.core.context import RunAhead, UpdateContext
from dataflex.core.cost import Ahead, Cost, Work
from dataflex.core.parameter_checks import count_or_null, model_or_null, one_of, require, share_or_null
from dataflex.core.registry import register_selector
from dataflex.scoring.trial import try_losses
from dataflex.train.selector.base_selector import Selection, Selector
from numpy.typing import NDArray

from dataflex_selectors.parts.enough import SHOW_LABELS, require_enough, require_labelled
from dataflex_selectors.parts.finite_scores import scored_places
from dataflex_selectors.parts.other_model import losses_under, try_losses_under
from dataflex_selectors.parts.ranking import first_places
from dataflex_selectors.parts.row_losses import RowLosses
from dataflex_selectors.parts.whole_weights import whole_weights

if TYPE_CHECKING:
    import torch

BANDS = ("low", "medium", "high")
_ROUNDING = 1e-9  # of n s: 100 rows and a share of 0.29 are 29 rows, not 28


def band_of(size: int, share: float, band: str) -> tuple[int, int]:
    """Returns the first place of a band in the rows sorted by perplexity, and the one after its last.

    low and high have floor(n s) rows; medium leaves floor(n (1 - s) / 2) out at each end.

    Args:
        size: n, rows.
        share: s, above 0 and at most 1.
        band: One of :data:`BANDS`.
    """
    if band == "medium":
        cut = math.floor(size * (1 - share) / 2 + _ROUNDING)
        return cut, size - cut
    kept = math.floor(size * share + _ROUNDING)
    return (0, kept) if band == "low" else (size - kept, size)


def widest(size: int, count: int, band: str) -> tuple[int, int]:
    """Returns the band of ``count`` rows, as :func:`band_of` does."""
    first = {"low": 0, "medium": (size - count) // 2, "high": size - count}[band]
    return first, first + count


@register_selector("perplexity")
class PerplexitySelector(Selector):
    """Draws rows from a band of perplexity under a reference model (arXiv 2405.20541).

    Args:
        tokenizer: What the rows were tokenised with; None where the run has none.
        band: low, medium or high perplexity.
        share: Share of the rows that the band holds; null: as many as are asked for.
        reference_model: Name or path of the reference model, which scores the rows once and may have another
            tokenizer; null for the model being trained, at each update.
        token_budget: Tokens that are scored at once; null for a default that suits the device.
        **run: What every selector is given; ``cache_dir`` keeps what a long scoring pass has computed.

    Raises:
        ConfigError: A parameter is out of its range; the message holds all that are.
    """

    reads_batches = True
    asks = "losses under another model if reference_model"

    def __init__(
        self,
        *,
        tokenizer: Any = None,
        band: str = "medium",
        share: float | None = 0.5,
        reference_model: str | None = None,
        token_budget: int | None = None,
        **run: Any,
    ) -> None:
        super().__init__(**run)
        require(
            "perplexity selector",
            one_of("band", band, BANDS),
            share_or_null("share", share, null="as many rows as are asked for"),
            model_or_null("reference_model", reference_model),
            count_or_null("token_budget", token_budget),
            None if reference_model is None else whole_weights(self.accelerator, "a reference model is loaded whole"),
        )
        self.tokenizer = tokenizer
        self.band, self.share, self.reference_model = band, share, reference_model
        self.token_budget = token_budget
        self._losses = RowLosses(self, "fresh", 0, token_budget, keeps=True)
        self._kept: NDArray[np.float32] | None = None  # under ``reference_model``, once it has scored

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """A pass over the rows; with ``reference_model`` that of it, once. See the base class."""
        size = 4.0 * ahead.rows.rows
        if params["reference_model"] is None:
            return Cost(Work(losses=ahead.rows), host_bytes=4 * size, cache_bytes=size)
        others = {params["reference_model"]: ahead.rows} if ahead.due() else {}
        return Cost(Work(others=others), host_bytes=4 * size, state_bytes=size, cache_bytes=size)

    def check_run(self, model: torch.nn.Module, run: RunAhead) -> None:
        """Refuses too few rows with a label or in the band, and models that give rows no loss. See the base class."""
        require_labelled(self.dataset, run.most_rows)
        if not run.shared_out:
            self._require_band(run.most_rows, len(self.dataset), len(self.dataset))  # less where rows lack a label
        if self.reference_model is None:
            try_losses(model, self.dataset, self.data_collator, self.accelerator)
        else:
            try_losses_under("reference_model", self.reference_model, self, self.tokenizer)

    def select(self, model: torch.nn.Module, step_id: int, num_samples: int, **kwargs: Any) -> Selection:
        """Scores all rows and draws ``num_samples`` from the band; the scores are the logarithms of their perplexity.

        Raises:
            ComponentError: The band holds fewer rows than were asked for.
        """
        context: UpdateContext = kwargs["context"]
        losses_N = self._found(model, step_id, context)
        scored = scored_places(losses_N)
        if self.share is None:
            require_enough(num_samples, len(scored), len(losses_N), way_out=SHOW_LABELS)
            first, last = widest(len(scored), num_samples, self.band)
        else:
            self._require_band(num_samples, len(scored), len(losses_N))
            first, last = band_of(len(scored), self.share, self.band)
        inside = np.sort(scored[first_places(last, losses_N[scored])[first:]])
        drawn = self.generator(context.update).permutation(inside)[:num_samples]
        return Selection(drawn, losses_N[drawn], candidates=losses_N)

    def _require_band(self, wanted: int, scored: int, size: int) -> None:
        if self.share is not None:
            first, last = band_of(scored, self.share, self.band)
            what = f"lie in the band (band: {self.band}, share: {self.share:g})"
            require_enough(wanted, last - first, size, what, "a larger share, or null")

    def scores(self, model: torch.nn.Module, step_id: int, **kwargs: Any) -> NDArray[np.float32]:
        """Returns how much each row is one of the band: (N,), higher is better, NaN without a label.

        With ``band: high`` that is the logarithm of its perplexity, with low that negative; with medium minus its
        distance, in shares of the rows, from the row in the middle.
        """
        losses_N = self._found(model, step_id, kwargs.get("context"))
        if self.band != "medium":
            return losses_N if self.band == "high" else -losses_N
        scored = scored_places(losses_N)
        found_N = np.full(len(losses_N), np.nan, dtype=np.float32)
        places = first_places(len(scored), losses_N[scored])
        middle = (len(scored) - 1) / 2
        found_N[scored[places]] = -np.abs(np.arange(len(scored)) - middle) / max(1, len(scored))
        return found_N

    def _found(self, model: torch.nn.Module, step_id: int, context: UpdateContext | None) -> NDArray[np.float32]:
        """Returns the mean token losses of the rows: (N,), NaN without a label. Collective."""
        if self.reference_model is None:
            return self._losses.fresh(model, step_id, None if context is None else context.scores)
        if self._kept is None:
            self._kept, _ = losses_under(
                "reference_model", self.reference_model, self, self.tokenizer, self.token_budget, "losses"
            )
        return self._kept

    def state_dict(self) -> dict[str, Any]:
        """Returns the losses under ``reference_model``, once it has scored the rows."""
        return {"losses": self._kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self._kept = None if state["losses"] is None else np.asarray(state["losses"], dtype=np.float32)
