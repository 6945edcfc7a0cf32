"""Training on several sources in proportions that a mixer moves (``train_type: dynamic_mix``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dataflex.config.spec import RunSpec
from dataflex.core.errors import ConfigError, blaming
from dataflex.core.kinds import MIXER
from dataflex.objective.fused_head import fused_head, require_weighable
from dataflex.objective.measured import DomainLosses, rows_of_rank
from dataflex.objective.source_weights import DomainObjective
from dataflex.planning.mixture import MixtureManager
from dataflex.planning.run_schedule import require_observable
from dataflex.planning.sources import (
    are_streams,
    first_mixture,
    mixed_sources,
    require_mixture,
    require_streamable,
)
from dataflex.rows.stream_places import StreamPlaces
from dataflex.rows.views import MixedSources
from dataflex.scoring.models import pretrained_models, require_causal
from dataflex.trainer.engine import require_one_model
from dataflex.trainer.given import first_rows, require_rows_apart, require_spec, rows_to_learn
from dataflex.trainer.planned import PlannedTrainer


class MixTrainer(PlannedTrainer):
    """Plans each segment from the proportions of the moment.

    The train dataset is a mapping ``name -> dataset`` (or a :class:`~dataflex.rows.views.MixedSources`). The datasets
    may be streams (``datasets.IterableDataset``), which are then read in their own order.

    Args:
        *args: For the trainer underneath.
        dataflex: The run.
        mixer_eval_dataset: Source -> held-out rows, for mixers that ask for them. Where it is None, they get the
            evaluation dataset if that is such a mapping.
        **kwargs: For the trainer underneath.

    Attributes:
        mixture_manager: The sources and their proportions.
    """

    kind = MIXER

    def __init__(
        self, *args: Any, dataflex: RunSpec, mixer_eval_dataset: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        kwargs = self.named(args, kwargs)
        require_spec(dataflex, self.kind)
        require_observable(dataflex)
        self._dataflex_held_out = mixer_eval_dataset
        mixed = mixed_sources(kwargs.get("train_dataset"))
        require_mixture(mixed, dataflex.arguments)
        self._dataflex_places: StreamPlaces | None = None
        if are_streams(mixed):
            given = kwargs.get("args")
            require_streamable(dataflex, 0 if given is None else given.dataloader_num_workers)
            if given is not None and given.max_steps <= 0:  # TRL's trainer is shown a stream, and must be told
                given.max_steps = dataflex.steps().total or given.max_steps
        kwargs["train_dataset"] = mixed
        self._dataflex_streams = are_streams(mixed)
        super().__init__(dataflex=dataflex, **kwargs)
        if self.component is not None:
            assert isinstance(self.model, torch.nn.Module)
            with blaming(self.component_in_words()):
                self.component.prepare(self.model)
        self._dataflex_domain_losses: DomainLosses | None = None
        self._dataflex_objective: DomainObjective | None = None
        self._dataflex_head = fused_head(self.model, self.bases()) if self._dataflex_observes else None
        if self._dataflex_observes:
            require_one_model(self.args, f"the mixer '{self.component_name}'")
            self._dataflex_domain_losses = DomainLosses(len(self.mixture_manager.names), self.component.token_values)
            self._dataflex_objective = self._dataflex_weighted_objective(self._dataflex_domain_losses)
            self.add_callback(_AfterEachStep(self))
            if self._dataflex_objective is not None:
                self.early.of_model = self._dataflex_require_weighable
        self.early.made(most_rows=0)

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Trains on a micro-batch as the trainer underneath does; where the mixer observes, its losses are noted."""
        if self._dataflex_domain_losses is None:
            return super().training_step(model, inputs, *args, **kwargs)
        self._dataflex_domain_losses.begin()
        try:
            return super().training_step(model, inputs, *args, **kwargs)
        finally:
            self._dataflex_domain_losses.end()

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Also takes the mixer's loss weights for the step whose batches these are."""
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        if self._dataflex_objective is not None and batches:
            with blaming(f"mixer '{self.component_name}' at step {self.state.global_step}"):
                self._dataflex_objective.begin_step(batches)
        return batches, num_items

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, *args: Any, **kwargs: Any) -> Any:
        """Computes the loss as the trainer underneath does, and has a look at the logits it came from."""
        watch = self._dataflex_domain_losses
        if watch is None or watch.domains is None:
            return super().compute_loss(model, inputs, return_outputs, *args, **kwargs)
        if self._dataflex_objective is not None:
            self._dataflex_objective.begin(counted=kwargs.get("num_items_in_batch") is not None)
        if self._dataflex_head is not None:
            return self._dataflex_loss_of_head(model, inputs, return_outputs, *args, **kwargs)
        given = dict(inputs)  # the trainer underneath takes the labels out where it needs them itself
        answer = super().compute_loss(model, inputs, True, *args, **kwargs)
        if (
            self._dataflex_objective is not None and not self._dataflex_objective.used
        ):  # at the first batch, before anything is learnt
            raise ConfigError(
                f"{type(self.model).__name__} computes its loss without model.loss_function, so the mixer "
                f"'{self.component_name}' cannot weigh it -> use a model class of transformers, without a "
                "fused loss"
            )
        outputs = answer[1] if isinstance(answer, tuple) else None
        with blaming(f"mixer '{self.component_name}' at step {self.state.global_step}"):
            watch.add(outputs.get("logits") if isinstance(outputs, Mapping) else None, given)
        return answer if return_outputs else answer[0]

    def _dataflex_loss_of_head(
        self, model: Any, inputs: Any, return_outputs: bool, num_items_in_batch: Any = None, **kwargs: Any
    ) -> Any:
        """Computes the loss as TRL does, and has a look at the token losses that it comes from."""
        watch, objective, head, given = (
            self._dataflex_domain_losses,
            self._dataflex_objective,
            self._dataflex_head,
            dict(inputs),
        )
        assert watch is not None
        assert head is not None

        def own(losses_BT: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor | None:
            with blaming(f"mixer '{self.component_name}' at step {self.state.global_step}"):
                watch.add_losses(losses_BT, given)
            part = None if objective is None else objective.of_tokens(losses_BT, labels_BT)
            return None if part is None else part * head.divisor(labels_BT, num_items_in_batch)

        with head.asking(own):
            answer = super().compute_loss(
                model, inputs, return_outputs, num_items_in_batch=num_items_in_batch, **kwargs
            )
        if not head.asked:
            raise ConfigError(
                f"{type(self).__name__} computes its loss without the fused output layer of TRL, so the mixer "
                f"'{self.component_name}' cannot follow the loss of each source -> leave compute_loss to "
                "SFTTrainer, or use a mixer that does not look at losses"
            )
        return answer

    def step_done(self) -> None:
        """Tells the mixer what the optimizer step cost. On every rank."""
        assert self._dataflex_domain_losses is not None
        losses_K, tokens_K = self._dataflex_domain_losses.total(self.accelerator)
        with blaming(f"mixer '{self.component_name}' at step {self.state.global_step}"):
            self.component.observe(self.state.global_step, losses_K, tokens_K)

    def training_done(self) -> None:
        """Tells the mixer that the run is over. On every rank."""
        with blaming(f"mixer '{self.component_name}' at step {self.state.global_step}"):
            self.component.finish(self.state.global_step)

    def dynamic_state(self) -> dict[str, Any]:
        """Adds the proportions and each source's position."""
        places = {} if self._dataflex_places is None else {"places": self._dataflex_places.state_dict()}
        return super().dynamic_state() | places

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores the mixture too."""
        super().restore(state)
        if self._dataflex_places is not None:
            self._dataflex_places.load_state_dict(state["places"])

    def _dataflex_batches(self, dataset: Any, collate: Any, rows: NDArray[np.int64]) -> Iterator[Any]:
        if self._dataflex_places is None:
            batches = super()._dataflex_batches(dataset, collate, rows)
        else:
            self._dataflex_places.enter()
            batches = self._dataflex_places.follow(
                super()._dataflex_batches(dataset, self._dataflex_places.placing(collate), rows)
            )
        if self._dataflex_domain_losses is None:
            yield from batches
            return
        mixed: MixedSources = self.train_dataset  # type: ignore[assignment]  # as the constructor made it
        mine = rows_of_rank(rows, self._train_batch_size, self.args.process_index, self.args.world_size)
        for batch, rows_B in zip(batches, mine, strict=True):
            self._dataflex_domain_losses.expect(mixed.domains(rows_B))
            yield batch

    def _dataflex_weighted_objective(self, losses: DomainLosses) -> DomainObjective | None:
        with blaming(self.component_in_words()):
            weighs = self.component.weighs
        if not weighs:
            return None
        require_weighable(self.args, f"the mixer '{self.component_name}'")
        dft = self.spec.llamafactory.get("use_dft_loss") is True
        if self.compute_loss_func is not None and not dft:
            raise ConfigError(
                f"the mixer '{self.component_name}' weighs the loss of each source, which use_eaft_loss "
                "or a compute_loss_func replaces -> leave it out"
            )
        return DomainObjective(self, losses, self.component.loss_weights, dft)

    def _dataflex_require_weighable(self) -> None:
        """Has the model compute the loss of two rows: one whose loss cannot be replaced cannot be weighed."""
        assert self._dataflex_objective is not None
        collate = self._get_collator_with_removed_columns(self.data_collator, description="training")
        rows, who = rows_to_learn(self.train_dataset), f"the {self.component_in_words()}"
        self._dataflex_objective.replaced.require(collate, rows, who)
        self._dataflex_objective.used = False  # by training, that is

    def _dataflex_examples(self) -> Sized:
        if self._dataflex_places is None:
            return super()._dataflex_examples()
        return range(self.schedule.total * self.segments.batch_size)

    def _dataflex_mixture(self) -> MixtureManager:
        mixed = mixed_sources(self.train_dataset)
        self._dataflex_places = StreamPlaces(mixed) if are_streams(mixed) else None
        return first_mixture(mixed, self.arguments)(seed=self.seed)

    def _dataflex_require_rows_apart(self) -> None:
        super()._dataflex_require_rows_apart()
        with blaming(self.component_in_words()):
            self._dataflex_observes = self.component is not None and bool(self.component.observes)
        if self._dataflex_observes:
            assert isinstance(self.model, torch.nn.Module)
            require_causal(pretrained_models(self.model))
            collate = self._get_collator_with_removed_columns(self.data_collator, description="training")
            require_rows_apart(collate, first_rows(self.train_dataset), f"the {self.component_in_words()}")


class _AfterEachStep(TrainerCallback):
    """Calls :meth:`MixTrainer.step_done` after each optimizer step, in time for the checkpoint of that step."""

    def __init__(self, trainer: MixTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Tells the mixer what the step cost."""
        self._trainer.step_done()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tells the mixer that this was the last one."""
        self._trainer.training_done()
