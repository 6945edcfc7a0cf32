"""The batches of a run that plans no rows: the loader of a static run, with row numbers where these are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from dataflex.planning.run_schedule import global_batch_size
from dataflex.rows.row_numbers import NumberedRows, NumberingCollator
from dataflex.rows.split_sources import SplitSources, in_given_order
from dataflex.trainer.host import Host
from dataflex.trainer.trained_rows import TrainedRows


class StaticBatches:
    """Has the trainer underneath make its loader over rows that know their numbers.

    Args:
        trainer: The trainer.

    Attributes:
        trained: The rows that were trained on, for the record.
    """

    def __init__(self, trainer: Host) -> None:
        self._trainer = trainer
        self._visible: Any = None  # the rows without unused columns, while the loader is made
        self.trained = TrainedRows(self._write, trainer.accelerator, global_batch_size(trainer.args))

    def loader(self, make: Callable[[], Any]) -> Any:
        """Returns the dataloader of the static run, with the number of each row.

        Args:
            make: Makes that of the trainer underneath.
        """
        trainer = self._trainer
        trainer.keep_batch_size()
        rows = trainer.train_dataset
        if rows is None or trainer.training_objective is None:
            return make()
        # The trainer underneath removes unused columns of a datasets.Dataset only, which the numbered rows are not.
        self._visible = (
            trainer._remove_unused_columns(rows, description="training") if isinstance(rows, datasets.Dataset) else rows
        )
        numbers = None
        if isinstance(rows, SplitSources):  # the loader's rows are those of a static run
            self._visible = in_given_order(rows)
            numbers = self._visible.rows
        with self._training_on(NumberedRows(self._visible, numbers)):
            try:
                return make()
            finally:
                self._visible = None

    def collator(self, collate: Any) -> Any:
        """Returns the collator of the trainer underneath, numbering while the loader is made."""
        return collate if self._visible is None else NumberingCollator(self._trainer.tokens.counting(collate))

    def sampler(self, make: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Samples from the plain rows: samplers that group by length look into them.

        Args:
            make: Makes the sampler of the trainer underneath.
            args: What it is given.
            kwargs: The same by name.
        """
        if self._visible is None:
            return make(*args, **kwargs)
        with self._training_on(self._visible):
            return make(*([self._visible] if args else []), **kwargs)

    def _write(self, start: int, rows: NDArray[np.int64], scores: None) -> None:
        """Writes down the rows of the stretch that began after ``start`` steps and is over now."""
        trainer = self._trainer
        trainer.record.segment(start, rows, scores)
        trainer.recording.trained_on(start, trainer.state.global_step - start, rows)

    @contextmanager
    def _training_on(self, dataset: Any) -> Iterator[None]:
        kept, self._trainer.train_dataset = self._trainer.train_dataset, dataset
        try:
            yield
        finally:
            self._trainer.train_dataset = kept
