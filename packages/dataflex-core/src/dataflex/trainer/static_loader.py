"""The mixin of runs that only weigh: the loader of a static run, whose batches hold the numbers of their rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import datasets

from dataflex.config.spec import RunSpec
from dataflex.planning.run_schedule import global_batch_size
from dataflex.rows.row_numbers import NumberedRows, NumberingCollator
from dataflex.rows.views import MixedSources
from dataflex.trainer.forwards import ObjectiveTrainer
from dataflex.trainer.trained_rows import TrainedRows

TRAINED = "trained_rows"
"""The key of a checkpoint's state under which the rows stand that are not yet in a file of the record."""


class NumberedTrainer(ObjectiveTrainer):
    """Trains on the rows of a static run in its order, knows their numbers and records them.

    The train dataset may be a mapping ``name -> dataset``: the sources then follow each other, and are known.
    """

    def __init__(self, *args: Any, dataflex: RunSpec, **kwargs: Any) -> None:
        kwargs = self.named(args, kwargs)
        if isinstance(kwargs.get("train_dataset"), Mapping):
            kwargs["train_dataset"] = MixedSources(kwargs["train_dataset"])
        self._dataflex_visible: Any = None  # the rows without unused columns, while the train dataloader is made
        super().__init__(dataflex=dataflex, **kwargs)
        record = self._dataflex_folder.record
        self._dataflex_trained = TrainedRows(record.segment, self.accelerator, global_batch_size(self.args))

    def get_train_dataloader(self) -> Any:
        """Returns the dataloader of the static run, with the number of each row."""
        self.keep_batch_size()
        rows: Any = self.train_dataset
        if rows is None:
            return super().get_train_dataloader()
        # The trainer underneath removes unused columns of a datasets.Dataset only, which the numbered rows are not.
        self._dataflex_visible = (
            self._remove_unused_columns(rows, description="training") if isinstance(rows, datasets.Dataset) else rows
        )
        with self._dataflex_training_on(NumberedRows(self._dataflex_visible)):
            try:
                return super().get_train_dataloader()
            finally:
                self._dataflex_visible = None

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Also notes the rows of the step."""
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        if self.batch_rows is not None and batches:
            self._dataflex_trained.add(self.batch_rows.of_step, self.state.global_step, self.batch_rows.flattened)
        return batches, num_items

    def begin_record(self) -> None:
        """Also forgets the rows of an earlier training by the same trainer."""
        if self._dataflex_folder.begins_anew:
            self._dataflex_trained.forget()
        super().begin_record()

    def training_done(self) -> None:
        """Also writes down the rows that were noted last."""
        super().training_done()
        self._dataflex_trained.finish()

    def dynamic_state(self) -> dict[str, Any]:
        """Adds the rows that no file of the record holds yet."""
        return super().dynamic_state() | {TRAINED: self._dataflex_trained.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores these rows too."""
        super().restore(state)
        self._dataflex_trained.load_state_dict(state[TRAINED])

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self._dataflex_trained.settle()
        super()._save_checkpoint(*args, **kwargs)

    def _get_collator_with_removed_columns(self, data_collator: Any, description: str | None = None) -> Any:
        collate = super()._get_collator_with_removed_columns(data_collator, description=description)
        return collate if self._dataflex_visible is None else NumberingCollator(self.tokens.counting(collate))

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """Samples from the plain rows: samplers that group by length look into them."""
        if self._dataflex_visible is None:
            return super()._get_train_sampler(*args, **kwargs)
        with self._dataflex_training_on(self._dataflex_visible):
            return super()._get_train_sampler(*([self._dataflex_visible] if args else []), **kwargs)

    @contextmanager
    def _dataflex_training_on(self, dataset: Any) -> Iterator[None]:
        kept, self.train_dataset = self.train_dataset, dataset
        try:
            yield
        finally:
            self.train_dataset = kept
