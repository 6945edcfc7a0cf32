"""Rows that are worth learning, can be learnt, and are not learnt yet.

Mindermann et al., Prioritized Training on Points that are Learnable, Worth Learning, and Not Yet Learnt, ICML 2022,
arXiv 2206.07137.

    rho_i = l_i(now) - il_i              reducible holdout loss (equation 3)
    il_i  = l_i under a model that was trained on held-out rows: what cannot be learnt from the data

Candidates are drawn, scored, and those with the largest rho trained on (algorithm 1). Rows that are learnt have a small
l; rows that are noise, or far from what was held out, have a large il. The paper does this for every batch; here it is
done for every stretch between two updates, so l is up to ``update_step`` steps old. Within a stretch the rows come in
random order: by falling rho, its batches would get easier and easier.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from dataflex.core.context import RunAhead
from dataflex.core.cost import Ahead, Cost, Work
from dataflex.core.decision_hash import decision_hash
from dataflex.core.errors import Problem, rows_named
from dataflex.core.parameter_checks import FLOAT32_MOST, at_least_or_null, count_or_null, model_or_null, require, text
from dataflex.core.permutation import RowOrder
from dataflex.core.registry import register_selector
from dataflex.run.row_file import RowFile, read_rows
from dataflex.run.row_values import placed, require_same_numbers
from dataflex.scoring import per_sample_losses
from dataflex.scoring.passes.row_pass import Collator
from dataflex.scoring.stage_rows import around
from dataflex.scoring.trial import try_losses
from dataflex.train.selector.base_selector import Selection, Selector
from numpy.typing import NDArray

from dataflex_selectors.parts.enough import SHOW_LABELS, require_enough, require_labelled
from dataflex_selectors.parts.finite_scores import scored_places
from dataflex_selectors.parts.irreducible import NAME, from_column, from_model, source_problem, try_model
from dataflex_selectors.parts.ranking import first_places
from dataflex_selectors.parts.whole_weights import whole_weights

if TYPE_CHECKING:
    import torch


def largest(rho_C: NDArray[np.float32], rows_C: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Returns where the largest ``count`` values are, largest first, equal ones in row order: (count,) of C."""
    return first_places(count, -rho_C, rows_C)


@register_selector("rho_loss")
class RhoLossSelector(Selector):
    """Takes the rows whose loss is largest beyond what cannot be learnt (RHO-LOSS).

    Exactly one of ``column``, ``file`` and ``reference_model`` is given.

    Args:
        tokenizer: What the rows were tokenised with; None where the run has none.
        column: Column of the train dataset with the irreducible loss of each row.
        file: A .npy, .npz or .parquet file with the irreducible loss of each row, see :mod:`dataflex.run.row_values`.
        reference_model: Name or path of a model whose losses are the irreducible ones; it is scored once.
        pool_factor: Candidates drawn for each row that is taken; null for all rows.
        token_budget: Tokens that are scored at once; null for a default that suits the device.
        **run: What every selector is given; ``cache_dir`` keeps what an interrupted pass of the reference model has
            computed.

    Raises:
        ConfigError: A parameter is out of its range, or there is not one irreducible loss for each row.
    """

    reads_batches = True
    asks = "losses under another model if reference_model"

    def __init__(
        self,
        *,
        tokenizer: Any = None,
        column: str | None = None,
        file: str | None = None,
        reference_model: str | None = None,
        pool_factor: float | None = 10.0,
        token_budget: int | None = None,
        **run: Any,
    ) -> None:
        super().__init__(**run)
        contents = None if file is None else read_rows("file", file, NAME, sole=True)
        require(
            "rho_loss selector",
            source_problem(column, file, reference_model),
            None if column is None else text("column", column),
            contents if isinstance(contents, Problem) else None,
            _infinite(str(file), contents) if isinstance(contents, RowFile) else None,
            model_or_null("reference_model", reference_model),
            at_least_or_null("pool_factor", pool_factor, 1, null="all rows"),
            count_or_null("token_budget", token_budget),
            None if reference_model is None else whole_weights(self.accelerator, "a reference model is loaded whole"),
        )
        self.tokenizer = tokenizer
        self.column = column
        self.reference_model = reference_model
        self._file = file
        self.pool_factor = pool_factor
        self.token_budget = token_budget
        self._irreducible: NDArray[np.float32] | None = None
        if column is not None:
            self._irreducible = from_column(self.dataset, column)
        elif file is not None and isinstance(contents, RowFile):
            found = placed("file", file, contents, self.dataset)
            require("rho_loss selector", found if isinstance(found, Problem) else None)
            assert not isinstance(found, Problem)
            self._irreducible = found.astype(np.float32)

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """A pass over the candidates; at the first update one of the reference model over all rows. See the base."""
        factor, model = params["pool_factor"], params["reference_model"]
        pool = ahead.rows.at_most(None if factor is None else factor * ahead.asked.rows)
        others = {model: ahead.rows} if model is not None and ahead.due() else {}
        size = 4.0 * ahead.rows.rows
        kept = 0.0 if model is None else size
        return Cost(Work(forward=pool, others=others), host_bytes=size, state_bytes=kept, cache_bytes=kept)

    def check_run(self, model: torch.nn.Module, run: RunAhead) -> None:
        """Refuses too few rows with both losses, and models that give rows none. See the base class."""
        require_labelled(self.dataset, run.most_rows)
        if self._irreducible is not None:
            found = int(np.count_nonzero(~np.isnan(self._irreducible)))
            require_enough(run.most_rows, found, len(self.dataset), "have an irreducible loss", "give it for more rows")
        else:
            assert self.reference_model is not None
            try_model(self.reference_model, self.dataset, self.data_collator, self.accelerator, self.tokenizer)
        try_losses(model, self.dataset, self._collator(), self.accelerator)

    def select(self, model: torch.nn.Module, step_id: int, num_samples: int, **kwargs: Any) -> Selection:
        """Scores candidates and returns those with the largest rho, shuffled; the scores are their rho.

        Raises:
            ComponentError: Fewer rows have both losses than were asked for.
        """
        irreducible_N = self._known()
        generator = self.generator(kwargs["context"].update)
        eligible = np.flatnonzero(~np.isnan(irreducible_N))
        order, at_once = None, max(1, len(eligible))
        if self.pool_factor is not None and len(eligible):
            order = RowOrder(len(eligible), int(generator.integers(2**63)))
            at_once = max(1, math.ceil(self.pool_factor * num_samples))
        rows, rho = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
        for first in range(0, len(eligible), at_once):  # one round, unless candidates have no label
            at_once = min(at_once, len(eligible) - first)
            candidates = eligible if order is None else eligible[order.take(first, at_once)]
            reducible = self._losses(model, step_id, candidates) - irreducible_N[candidates]
            usable = scored_places(reducible, candidates)
            rows, rho = np.concatenate([rows, candidates[usable]]), np.concatenate([rho, reducible[usable]])
            if len(rows) >= num_samples:
                break
        have, way_out = "have a label and an irreducible loss", f"{SHOW_LABELS}, irreducible losses for more rows"
        require_enough(num_samples, len(rows), len(irreducible_N), have, way_out)
        chosen = generator.permutation(largest(rho, rows, num_samples))
        return Selection(rows[chosen], rho[chosen], candidates=(rows, rho))

    def scores(self, model: torch.nn.Module, step_id: int, **kwargs: Any) -> NDArray[np.float32]:
        """Returns rho of every row: (N,), NaN without a label or an irreducible loss. See the base class."""
        every = np.arange(len(self.dataset), dtype=np.int64)
        return self._losses(model, step_id, every) - self._known()

    def _known(self) -> NDArray[np.float32]:
        """Returns the irreducible losses: (N,). The reference model computes them the first time. Collective."""
        if self._irreducible is None:
            assert self.reference_model is not None
            self._irreducible = from_model(
                self.reference_model,
                self.dataset,
                self.data_collator,
                self.accelerator,
                self.token_budget,
                self.cache_dir,
            )
        return self._irreducible

    def _losses(self, model: torch.nn.Module, step_id: int, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return per_sample_losses(
            model,
            self.dataset,
            collator=self._collator(),
            accelerator=self.accelerator,
            indices=rows,
            token_budget=self.token_budget,
            desc=f"{self.name}: losses at step {step_id}",
        )

    def _collator(self) -> Collator:
        return around(self.data_collator, self._without_column)

    def _without_column(self, rows: list[Any]) -> Mapping[str, torch.Tensor]:
        """Makes a batch without the column of irreducible losses, which a model does not take."""
        return self.data_collator([{key: row[key] for key in row if key != self.column} for row in rows])

    def state_dict(self) -> dict[str, Any]:
        """Returns the losses under the reference model, once they are known; of others, which are read again, a digest.

        A digest says whether a resumed run reads the same.
        """
        known = self._irreducible
        if self.reference_model is not None or known is None:
            return {"irreducible": known, "numbers": None}
        return {"irreducible": None, "numbers": decision_hash(known)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned.

        Raises:
            CheckpointError: The file or the column holds other losses.
        """
        if state["irreducible"] is not None:
            self._irreducible = np.asarray(state["irreducible"], dtype=np.float32)
        if state["numbers"] is not None:
            assert self._irreducible is not None
            require_same_numbers(state["numbers"], self._irreducible, self._file)


def _infinite(file: str, found: RowFile) -> Problem | None:
    outside = found.rows_where(np.abs(found.values) > FLOAT32_MOST)
    if not len(outside):
        return None
    what = f"{file} is infinite, or too large for 32 bits, for {rows_named(outside)}"
    return Problem("file", what, "write NaN instead")
