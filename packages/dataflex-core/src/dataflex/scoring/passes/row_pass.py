"""One pass of the model over the rows of a dataset: batched, length-sorted, shared out over the ranks.

What is computed of a batch is the caller's: losses, gradient features, embeddings. What is the same for all of them is
here: the plan of the batches, halving one that does not fit into memory, signs of life, taking up an interrupted pass,
and bringing the values together by row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from accelerate.utils import send_to_device
from numpy.typing import NDArray
from torch.nn.parallel import DataParallel, DistributedDataParallel

from dataflex.core import sigterm
from dataflex.core.errors import ComponentError, DataflexError, StoppedError
from dataflex.core.ranks.by_row import gather_by_row
from dataflex.model.unwrapped import is_sharded
from dataflex.rows.lengths import row_lengths
from dataflex.rows.media import has_media, is_text
from dataflex.rows.views import fetch
from dataflex.scoring.passes.batch_plan import Batch, plan_batches, shard_batches
from dataflex.scoring.passes.budget import (
    agreed_budget,
    default_token_budget,
    is_out_of_memory,
    learn_limit,
    learned_limit,
    release_memory,
)
from dataflex.scoring.passes.on_cpu import OnTheCPU
from dataflex.scoring.passes.score_store import ScoreStore
from dataflex.scoring.stage_rows import StageBatch, StageCollator, stage_refusal
from dataflex.utils.logging import logger
from dataflex.utils.progress import Progress

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")
_UNLIMITED = 2**62  # tokens
Collator = Callable[[list[Any]], Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class RowBatch:
    """Rows as the model takes them.

    Attributes:
        inputs: The collator's batch without ``labels``, on the device; at least ``input_ids``. Of a stage with a loss
            of its own, the whole batch.
        token_labels: (B, T) labels, still on the CPU; None where the collator gives none.
        stage: The stage, where the rows have a loss of its own and none of their tokens.
        alone: Makes a batch of one of the rows; None where its tensors have a dimension of rows and it can be cut out.
    """

    inputs: dict[str, torch.Tensor]
    token_labels: torch.Tensor | None
    stage: str | None = None
    alone: Callable[[int], RowBatch] | None = None

    @property
    def has_media(self) -> bool:
        """Whether the model is given more than tokens: parts of images, which are not told apart by row."""
        return self.alone is not None

    def labels(self) -> torch.Tensor:
        """Returns the (B, T) labels.

        Raises:
            ComponentError: There are none, so rows have no loss.
        """
        if self.stage is not None:
            raise stage_refusal(self.stage, "the losses and gradients of tokens")
        if self.token_labels is None or self.token_labels.ndim != 2:
            raise ComponentError(
                "the data collator gives no labels per token, so rows have no loss -> use one that returns 'labels' "
                "of shape (rows, tokens), or a strategy that does not score the model"
            )
        return self.token_labels


_MASKED_TOKEN = {"input_ids": [0], "attention_mask": [0], "labels": [-100]}
"""In place of rows without tokens: nothing is seen and nothing is predicted."""

Score = Callable[[RowBatch], torch.Tensor]
"""``score(batch) -> (B, ...)``, the values of the batch's rows."""


@dataclass(frozen=True)
class RowPass:
    """The rows of a pass and how they are batched. Every rank makes the same one.

    Attributes:
        dataset: The tokenised dataset; a row is a mapping with ``input_ids`` and what ``collator`` needs.
        collator: Makes a batch of tensors from a list of rows.
        accelerator: The run's accelerator, for ranks; None means a single process.
        indices: Row numbers, in the order of the result; None means all.
        token_budget: Most tokens of a batch, with padding; None takes :func:`~dataflex.scoring.default_token_budget`.
            A batch is halved when the device runs out of memory, and so are those of later passes of the same kind.
        max_rows: Most rows of a batch; None for no such limit.
        desc: What a progress bar or a log line begins with.
        progress: Whether rank 0 shows how far it is with its own share of the rows.
        store: Where values are kept while a long pass runs, so that an interrupted one goes on; None for nowhere.
        gradients: Whether ``score`` goes back through the model: such a pass keeps the activations of all layers, and
            has a default budget and a learnt limit of its own.
    """

    dataset: Any
    collator: Collator
    accelerator: Accelerator | None = None
    indices: Sequence[int] | NDArray[np.int64] | None = None
    token_budget: int | None = None
    max_rows: int | None = None
    desc: str = "scoring"
    progress: bool = True
    store: ScoreStore | None = None
    gradients: bool = False

    def rows(self) -> NDArray[np.int64]:
        """Returns the row numbers of the pass: (N,) int64."""
        size = len(self.dataset)
        if self.indices is None:
            return np.arange(size, dtype=np.int64)
        rows = np.asarray(self.indices, dtype=np.int64)
        if len(rows) and not (-size <= rows.min() and rows.max() < size):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {size}")
        return rows if not len(rows) or rows.min() >= 0 else rows % size

    def values(self, model: torch.nn.Module, score: Score, *, everywhere: bool = True) -> NDArray[np.float32]:
        """Returns what ``score`` gives for every row: (N, ...) float32, the same on every rank. Collective.

        The values go to the CPU as they come: a device holds those of some batches, whatever the number of rows.

        Args:
            model: The model being scored; its device and engine decide the batches.
            score: The values of a batch of rows.
            everywhere: Whether every rank gets them; otherwise rank 0 alone does, and the others (0, ...).

        Raises:
            ComponentError: On one rank: not even one row fits into memory, or a batch does not under a sharded engine.
            StoppedError: On a rank that was asked to stop, after a batch; what it has scored is in the store.
        """
        rows = self.rows()
        kept = None if self.store is None else self.store.load(len(rows), self.accelerator, self.desc)
        places: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)]
        values = OnTheCPU()
        try:
            for batch, values_B in self.results(model, score, None if kept is None else kept.done):
                if batch.repeated:
                    values.add(values_B[:0])  # a rank that has no rows knows the shape of their values all the same
                    continue
                places.append(batch.rows)
                values.add(values_B)
                if self.store is not None:
                    self.store.add(batch.rows, values_B)
        except StoppedError:
            if self.store is not None:
                self.store.flush()
            raise
        own, found = np.concatenate(places), values.joined()
        if kept is not None:
            own, found = kept.joined(own, found, self.accelerator)
        return gather_by_row(own, found, len(rows), self.accelerator, everywhere=everywhere)

    def results(
        self, model: torch.nn.Module, score: Callable[[RowBatch], T], done: NDArray[np.bool_] | None = None
    ) -> Iterator[tuple[Batch, T]]:
        """Yields this rank's batches, longest rows first, with what ``score`` gives for each. Collective.

        Batches in which every row is ``done`` are left out; the others are those of a pass without any done.

        Args:
            model: The model being scored.
            score: Called once per batch; again with half of it where the GPU ran out of memory.
            done: (N,) places that need not be computed, the same on every rank.

        Yields:
            The batch, its ``rows`` being places in :meth:`rows`, and the result. A repeated one must be dropped.
        """
        rank, world_size = 0, 1
        if self.accelerator is not None:
            rank, world_size = self.accelerator.process_index, self.accelerator.num_processes
        # Weights that are offloaded lie elsewhere between two forwards.
        device = next(model.parameters()).device if self.accelerator is None else self.accelerator.device
        rows = self.rows()
        lengths = row_lengths(self.dataset, rows if self.indices is not None else None)
        default = self.token_budget or default_token_budget(model, gradients=self.gradients, device=device)
        budget = agreed_budget(default, self.accelerator)
        # What one rank has learnt holds for all, so that a row has the same company on whichever rank it is.
        limit = agreed_budget(learned_limit(model, self.gradients) or _UNLIMITED, self.accelerator)
        planned = plan_batches(lengths, budget, self.max_rows)
        if done is not None:
            planned = [batch for batch in planned if not done[batch].all()]
        batches = shard_batches(planned, rank, world_size)
        load = self._loader(rows, device)
        with self._progress(batches, lengths, 0 if done is None else len(rows) - sum(map(len, planned))) as progress:
            memory = _Memory(model, self.gradients, limit, not is_sharded(self.accelerator), device)

            def scored(places: NDArray[np.int64]) -> T:
                pictured = False
                try:
                    given = load(places)
                    pictured = given.has_media
                    return score(given)
                except (ValueError, RuntimeError) as error:
                    pictured = pictured or any(map(has_media, fetch(self.dataset, rows[places])))
                    if not pictured or isinstance(error, DataflexError) or is_out_of_memory(error):
                        raise
                    raise ComponentError(
                        f"the model cannot take the images of rows {rows[places].tolist()[:8]}: {error} -> use a "
                        "larger cutoff_len where it cuts through the tokens of an image, or a smaller image_max_pixels"
                    ) from error

            for batch, result in _within_memory(scored, batches, lengths, memory):
                yield batch, result
                progress.done(len(batch.rows), _tokens(batch, lengths))
                if sigterm.asked():
                    raise StoppedError("stopped by SIGTERM while scoring -> the same command goes on")

    def _progress(self, batches: list[Batch], lengths: NDArray[np.int64], before: int) -> Progress:
        """Returns the signs of life of this rank's batches. Time is left by padded tokens: the longest rows come first.

        Args:
            batches: Those of this rank.
            lengths: (N,) tokens of every row.
            before: Rows of all ranks whose values an interrupted pass left.
        """
        rank, ranks = 0, 1
        if self.accelerator is not None:
            rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        own = sum(len(batch.rows) for batch in batches)
        tokens = sum(int(lengths[batch.rows].sum()) for batch in batches)
        about = f"{tokens:,} tokens in {len(batches):,} batches"
        if ranks > 1:
            about += f", the share of one of {ranks} ranks"
        before //= ranks
        return Progress(
            self.desc,
            before + own,
            before=before,
            about=about,
            work=float(sum(_tokens(batch, lengths) for batch in batches)),
            shown=self.progress and rank == 0,
            bar=0,
        )

    def _loader(self, rows: NDArray[np.int64], device: torch.device) -> Callable[[NDArray[np.int64]], RowBatch]:
        def load(places: NDArray[np.int64]) -> RowBatch:
            return batch_of(list(fetch(self.dataset, rows[places])))

        def batch_of(read: list[Any]) -> RowBatch:
            # Collators change the rows they are given (LLaMA-Factory's pops keys); a dataset in memory hands out its
            # own.
            given = [dict(row) for row in read]
            if isinstance(self.collator, StageCollator):
                batch = dict(self.collator(given))
                _require_stage_rows(self.collator, batch, len(given))
                return RowBatch(send_to_device(batch, device), None, self.collator.stage)
            texts = all("input_ids" in row for row in given)
            if texts and not any(len(row["input_ids"]) for row in given):  # no model takes a batch of no columns
                given = [row | {key: value for key, value in _MASKED_TOKEN.items() if key in row} for row in given]
            made = self.collator(given)
            if isinstance(made, StageBatch):  # of a function around the stage's collator
                raise stage_refusal(made.stage, "the losses of tokens")
            batch = dict(made)
            _require_apart(batch, len(given))
            token_labels = batch.pop("labels", None)
            alone = None if is_text(batch) else lambda row: batch_of([read[row]])
            return RowBatch(send_to_device(batch, device), token_labels, alone=alone)

        return load


def _require_apart(batch: Mapping[str, Any], rows: int) -> None:
    """Refuses a batch whose rows cannot be told apart: flattened into one, or pairs."""
    tokens = batch.get("input_ids")
    if not isinstance(tokens, torch.Tensor) or tokens.ndim != 2 or len(tokens) != rows:
        made = f"input_ids of shape {tuple(tokens.shape)}" if isinstance(tokens, torch.Tensor) else "no input_ids"
        raise ComponentError(
            f"the data collator made {made} of {rows} rows, which cannot be scored one by one -> use one that pads "
            "and does not flatten, and rows of one text each"
        )


def _require_stage_rows(collator: StageCollator, batch: Mapping[str, Any], rows: int) -> None:
    found = collator.rows_in(batch)
    if found != rows:
        raise ComponentError(
            f"the data collator made a batch of {found} rows for stage {collator.stage} of {rows} -> use the collator "
            "of the stage's trainer"
        )


def without_replicas(model: torch.nn.Module) -> torch.nn.Module:
    """Returns the module inside of DP and DDP: scoring a replica needs no collective call."""
    return model.module if isinstance(model, DataParallel | DistributedDataParallel) else model


def _tokens(batch: Batch, lengths: NDArray[np.int64]) -> int:
    """Returns the tokens of a batch, with padding."""
    return len(batch.rows) * int(lengths[batch.rows].max())


@dataclass
class _Memory:
    """What is known of the device's memory: the model and kind of pass that it is known for, and the most tokens."""

    model: torch.nn.Module
    gradients: bool
    limit: int
    splittable: bool
    device: torch.device

    def exceeded(self, tokens: int) -> None:
        """Halves the limit after a batch of so many tokens, for this pass and the later ones of the process."""
        self.limit = tokens // 2
        learn_limit(self.model, self.gradients, max(1, self.limit))
        release_memory(self.device)
        logger.warning(
            "out of memory while scoring %d tokens at once; going on with at most %d, in later passes too",
            tokens,
            self.limit,
        )


def _within_memory(
    score: Callable[[NDArray[np.int64]], T], batches: list[Batch], lengths: NDArray[np.int64], memory: _Memory
) -> Iterator[tuple[Batch, T]]:
    """Yields each batch with its result; one that does not fit into memory is halved, and so are those after it."""
    pending = deque(batches)
    while pending:
        batch = pending.popleft()
        tokens = _tokens(batch, lengths)
        if memory.splittable and tokens > memory.limit and len(batch.rows) > 1:
            middle = len(batch.rows) // 2
            pending.extendleft(Batch(part, batch.repeated) for part in (batch.rows[middle:], batch.rows[:middle]))
            continue
        try:
            result = score(batch.rows)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(batch.rows) == 1 or not memory.splittable:
                raise ComponentError(
                    f"out of memory while scoring {len(batch.rows)} rows of {tokens // len(batch.rows)} tokens -> "
                    "set a smaller token_budget, or cut the rows shorter (cutoff_len)"
                ) from error
        else:
            yield batch, result
            continue
        # Outside of the except block, whose traceback keeps the tensors alive.
        memory.exceeded(tokens)
        pending.appendleft(batch)
