"""Training on several sources in proportions that a mixer moves (``train_type: dynamic_mix``)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dataflex.config.spec import RunSpec
from dataflex.core.context import UpdateContext
from dataflex.core.decision import checked_proportions
from dataflex.core.errors import ConfigError
from dataflex.core.schedule import Segment
from dataflex.data.mixture import MixtureManager, initial_proportions
from dataflex.data.rows import MixedSources
from dataflex.scoring.lengths import row_lengths
from dataflex.train.trainer.domain_losses import DomainLosses, rows_of_rank
from dataflex.train.trainer.domain_objective import DomainObjective
from dataflex.train.trainer.planned import Plan, PlannedTrainer
from dataflex.train.trainer.steps import require_observable


class MixTrainer(PlannedTrainer):
    """Plans each segment from the proportions of the moment.

    The train dataset is a mapping ``name -> dataset`` (or a :class:`~dataflex.data.rows.MixedSources`).

    Args:
        *args: For the trainer underneath.
        dataflex: The run.
        mixer_eval_dataset: Source -> held-out rows, for mixers that ask for them. Where it is None, they get the
            evaluation dataset if that is such a mapping.
        **kwargs: For the trainer underneath.

    Attributes:
        mixture_manager: The sources and their proportions.
    """

    verb = "mix"

    def __init__(
        self, *args: Any, dataflex: RunSpec, mixer_eval_dataset: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        require_observable(dataflex)
        self._held_out = mixer_eval_dataset
        sources = kwargs.get("train_dataset")
        mixed = MixedSources(sources) if isinstance(sources, Mapping) else sources
        if not isinstance(mixed, MixedSources) or len(mixed.names) < 2:
            raise ConfigError(
                "train_type: dynamic_mix needs two sources or more -> name them in dataset, or use static"
            )
        empty = [name for name, size in zip(mixed.names, mixed.sizes, strict=True) if size == 0]
        if empty:
            raise ConfigError(f"the source {', '.join(empty)} has no rows -> check its file, or take it out of dataset")
        keys = dataflex.arguments
        lengths = _mean_lengths(mixed) if keys.mixture_unit == "tokens" else None
        amounts = mixed.sizes if lengths is None else mixed.sizes * lengths
        shares = initial_proportions(keys.mixture_sample_rule, keys.init_mixture_proportions, amounts)
        self._initial = functools.partial(MixtureManager, mixed.names, mixed.sizes, shares, mean_lengths=lengths)
        kwargs["train_dataset"] = mixed
        super().__init__(*args, dataflex=dataflex, **kwargs)
        if self.component is not None:
            assert isinstance(self.model, torch.nn.Module)
            self.component.prepare(self.model)
        self._domain_losses: DomainLosses | None = None
        self._objective: DomainObjective | None = None
        if self.component is not None and self.component.observes:
            self._domain_losses = DomainLosses(len(mixed.names), self.component.token_values)
            self._objective = self._weighted_objective(self._domain_losses)
            self.add_callback(_AfterEachStep(self))

    def decide(self, segment: Segment, count: int, context: UpdateContext, who: str) -> Plan:
        """Asks the mixer at an update, and plans rows in the proportions that hold then."""
        manager = self.mixture_manager
        details: dict[str, Any] = {}
        if segment.update is not None and self.component is not None:
            answer = self.component.mix(model=self.model, step_id=context.step, context=context)
            manager.set_proportions(checked_proportions(answer, names=manager.names, who=who))
            details |= self.component.details()
        shares = {name: float(p) for name, p in zip(manager.names, manager.proportions, strict=True)}
        news = "set " + ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
        rows = manager.plan(count)
        return Plan(rows, details={"proportions": shares, **manager.seen(), **details}, news=news)

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Trains on a micro-batch as the trainer underneath does; where the mixer observes, its losses are noted."""
        if self._domain_losses is None:
            return super().training_step(model, inputs, *args, **kwargs)
        self._domain_losses.begin()
        try:
            return super().training_step(model, inputs, *args, **kwargs)
        finally:
            self._domain_losses.end()

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Also takes the mixer's loss weights for the step whose batches these are."""
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        if self._objective is not None and batches:
            with self._blaming(f"mixer '{self._component_name()}' at step {self.state.global_step}"):
                self._objective.begin_step(batches, counts_first=num_items is not None)
        return batches, num_items

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, *args: Any, **kwargs: Any) -> Any:
        """Computes the loss as the trainer underneath does, and has a look at the logits it came from."""
        watch = self._domain_losses
        if watch is None or watch.domains is None:
            return super().compute_loss(model, inputs, return_outputs, *args, **kwargs)
        given = dict(inputs)  # the trainer underneath takes the labels out where it needs them itself
        answer = super().compute_loss(model, inputs, True, *args, **kwargs)
        outputs = answer[1] if isinstance(answer, tuple) else None
        with self._blaming(f"mixer '{self._component_name()}' at step {self.state.global_step}"):
            watch.add(outputs.get("logits") if isinstance(outputs, Mapping) else None, given)
        return answer if return_outputs else answer[0]

    def step_done(self) -> None:
        """Tells the mixer what the optimizer step cost. On every rank."""
        assert self._domain_losses is not None
        if self._objective is not None and not self._objective.used:
            raise ConfigError(
                f"{type(self.model).__name__} computes its loss without model.loss_function, so the mixer "
                f"'{self._component_name()}' cannot weigh it -> use a model class of transformers, without a fused loss"
            )
        losses_K, tokens_K = self._domain_losses.total(self.accelerator)
        with self._blaming(f"mixer '{self._component_name()}' at step {self.state.global_step}"):
            self.component.observe(self.state.global_step, losses_K, tokens_K)

    def training_done(self) -> None:
        """Tells the mixer that the run is over. On every rank."""
        self.component.finish(self.state.global_step)

    def identity(self) -> dict[str, Any]:
        """Adds the sources."""
        manager = self.mixture_manager
        sources = {"sources": dict(zip(manager.names, manager.sizes.tolist(), strict=True))}
        unit = (
            {} if manager.unit == "rows" else {"mixture_unit": manager.unit}
        )  # checkpoints older than the key have none
        return super().identity() | sources | unit

    def dynamic_state(self) -> dict[str, Any]:
        """Adds the proportions and each source's position."""
        return super().dynamic_state() | {"mixture": self.mixture_manager.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores the mixture too."""
        super().restore(state)
        self.mixture_manager.load_state_dict(state["mixture"])

    def _batches(self, dataset: Any, collate: Any, rows: NDArray[np.int64]) -> Iterator[Any]:
        batches = super()._batches(dataset, collate, rows)
        if self._domain_losses is None:
            yield from batches
            return
        mixed: MixedSources = self.train_dataset  # type: ignore[assignment]  # as the constructor made it
        mine = rows_of_rank(rows, self._train_batch_size, self.args.process_index, self.args.world_size)
        for batch, rows_B in zip(batches, mine, strict=True):
            self._domain_losses.expect(mixed.domains(rows_B))
            yield batch

    def _weighted_objective(self, losses: DomainLosses) -> DomainObjective | None:
        if not self.component.weighs:
            return None
        replaced = "label_smoothing_factor" if self.label_smoother is not None else None
        replaced = "use_dft_loss, use_eaft_loss or a compute_loss_func" if self.compute_loss_func else replaced
        if replaced:
            raise ConfigError(
                f"the mixer '{self._component_name()}' weighs the loss of each source, which {replaced} replaces -> "
                "leave it out"
            )
        assert isinstance(self.model, torch.nn.Module)
        averages = self.args.average_tokens_across_devices
        steps = self.args.gradient_accumulation_steps
        weights = self.component.loss_weights
        return DomainObjective(self.model, losses, weights, self.accelerator, steps, averages)

    def _constructed(self) -> Any:
        self.mixture_manager = self._initial(seed=self.seed)
        return super()._constructed()

    def _injectable(self) -> dict[str, Any]:
        held_out = self._held_out
        if held_out is None and isinstance(self.eval_dataset, Mapping):
            held_out = self.eval_dataset
        return super()._injectable() | {"mixture_manager": self.mixture_manager, "mixer_eval_dataset": held_out}


def _mean_lengths(mixed: MixedSources) -> NDArray[np.float64]:
    """Returns (K,) mean tokens of a row of each source.

    Raises:
        ConfigError: A source has no tokens at all.
    """
    means_K = np.array([row_lengths(source).mean() for source in mixed.sources], dtype=np.float64)
    if not means_K.all():
        empty = [name for name, mean in zip(mixed.names, means_K, strict=True) if mean == 0]
        raise ConfigError(
            f"mixture_unit: tokens, but the rows of {', '.join(empty)} hold no token -> mixture_unit: rows"
        )
    return means_K


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
