"""The overrides of the training loop that an objective needs: each forwards to the object that the trainer holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dataflex.objective.objective import Objective
from dataflex.objective.parts import Keys, Parts
from dataflex.rows.batch_rows import BatchRows
from dataflex.trainer.callbacks import ObjectiveCallback
from dataflex.trainer.dynamic import DynamicTrainer
from dataflex.trainer.engine import require_one_model
from dataflex.trainer.given import rows_to_learn

OBJECTIVE = "objective"
"""The key of a checkpoint's state under which the objective's stands; absent in a run without one."""


class ObjectiveTrainer(DynamicTrainer):
    """Holds the objective of a run.

    Attributes:
        training_objective: What weighs the loss or looks at losses; None where nothing does: batches then hold no
            row numbers. (transformers has an ``objective``, of a hyperparameter search.)
        batch_rows: The rows of the present micro-batch, where there is an objective.
    """

    training_objective: Objective | None = None
    batch_rows: BatchRows | None = None

    def weigh(self, parts: Parts) -> None:
        """Takes the parts of the objective, once the trainer underneath is made; nothing where there are none.

        Raises:
            ConfigError: The run cannot be weighed, or its losses cannot be looked at.
        """
        if not parts.there:
            return
        require_one_model(self.args, parts.in_words)
        keys = Keys(
            by_tokens=self.arguments.weight_objective == "token",
            logits=self.arguments.weight_logits,
            dft=self.spec.llamafactory.get("use_dft_loss") is True,
            liger=self.spec.llamafactory.get("enable_liger_kernel") is True,
            bases=self.bases(),
        )
        self.batch_rows = BatchRows(lambda: self.train_dataset)
        self.training_objective = Objective(self, parts, keys, self.batch_rows)
        self.add_callback(ObjectiveCallback(self.training_objective.step_done, self.training_done))
        self._dataflex_early.of_model = self._dataflex_require_weighable

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Also takes the rows out of the batches of the step, and counts its samples and labels."""
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        if self.training_objective is not None and self.batch_rows is not None:
            self.batch_rows.take(batches)
            self.training_objective.begin_step(batches)
        return batches, num_items

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Trains on a micro-batch as the trainer underneath does, by the objective."""
        train = super().training_step
        if self.training_objective is None:
            return train(model, inputs, *args, **kwargs)
        return self.training_objective.training_step(train, model, inputs, *args, **kwargs)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Computes the loss as the trainer underneath does, by the objective."""
        compute = super().compute_loss
        if self.training_objective is None:
            return compute(model, inputs, *args, **kwargs)
        return self.training_objective.compute_loss(compute, model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds what the weights were to the line of the training loss."""
        super().log(logs if self.training_objective is None else self.training_objective.logged(logs), *args, **kwargs)

    def begin_record(self) -> None:
        """Also takes back what a stopped run wrote of weights that are collected again."""
        if self.training_objective is not None and self._dataflex_folder.begins_anew:
            self.training_objective.forget()
        super().begin_record()
        if self.training_objective is not None:
            self._dataflex_folder.record.take_back(self.training_objective.WEIGHT, self.training_objective.log.first)

    def record_weights(self) -> None:
        """Writes what the weights were since the last line into the record. Collective."""
        line = {} if self.training_objective is None else self.training_objective.weights_line()
        if line:
            self._dataflex_folder.record.update(line)

    def training_done(self) -> None:
        """Tells the objective that the run is over, and writes down what it collected last. Collective."""
        if self.training_objective is not None:
            self.training_objective.training_done()
            self.record_weights()

    def dynamic_state(self) -> dict[str, Any]:
        """Adds what the objective collected."""
        return super().dynamic_state() | (
            {} if self.training_objective is None else {OBJECTIVE: self.training_objective.state_dict()}
        )

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores the objective too."""
        super().restore(state)
        if self.training_objective is not None:
            self.training_objective.load_state_dict(state[OBJECTIVE])

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self.control.should_log:  # here, as every rank comes along
            self.record_weights()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        if self.training_objective is not None:
            self.training_objective.settle()
        super()._save_checkpoint(*args, **kwargs)

    def _dataflex_require_weighable(self) -> None:
        assert self.training_objective is not None
        collate = self._get_collator_with_removed_columns(self.data_collator, description="training")
        self.training_objective.require(collate, rows_to_learn(self.train_dataset))
