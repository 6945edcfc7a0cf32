"""Training on several sources in proportions that a mixer moves (``train_type: dynamic_mix``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataflex.config.spec import RunSpec
from dataflex.core.context import UpdateContext
from dataflex.core.errors import blaming
from dataflex.core.kinds import MIXER
from dataflex.core.schedule import Segment
from dataflex.objective.parts import MixerPart, Parts
from dataflex.planning.answers import checked_proportions
from dataflex.planning.run_schedule import require_observable
from dataflex.planning.sources import (
    are_streams,
    first_mixture,
    mixed_sources,
    require_mixture,
    require_streamable,
    shares_in_words,
)
from dataflex.rows.stream_places import StreamPlaces
from dataflex.scoring.models import pretrained_models, require_causal
from dataflex.trainer.given import first_rows, require_rows_apart, require_spec
from dataflex.trainer.planned import Plan, PlannedTrainer


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
    verb = "mix"
    stands = True

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
        super().__init__(dataflex=dataflex, **kwargs)
        if self.component is not None:
            assert isinstance(self.model, torch.nn.Module)
            with blaming(self.component_in_words()):
                self.component.prepare(self.model)
        self.weigh(self._dataflex_parts())
        self._dataflex_early.made(most_rows=0)

    def decide(self, segment: Segment, count: int, context: UpdateContext, who: str) -> Plan:
        """Asks the mixer at an update, and plans rows in the proportions that hold then."""
        manager = self.mixture_manager
        details: dict[str, Any] = {}
        if segment.update is not None and self.component is not None:
            answer = self.component.mix(model=self.model, step_id=context.step, context=context)
            manager.set_proportions(checked_proportions(answer, names=manager.names, who=who))
            details |= self.component.details()
        shares = {name: float(p) for name, p in zip(manager.names, manager.proportions, strict=True)}
        news = f"set {shares_in_words(manager.names, manager.proportions)}"
        rows = manager.plan(count)
        return Plan(rows, details={"proportions": shares, **manager.seen(), **details}, news=news)

    def dynamic_state(self) -> dict[str, Any]:
        """Adds the proportions and each source's position."""
        places = {} if self._dataflex_places is None else {"places": self._dataflex_places.state_dict()}
        return super().dynamic_state() | {"mixture": self.mixture_manager.state_dict()} | places

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores the mixture too."""
        super().restore(state)
        self.mixture_manager.load_state_dict(state["mixture"])
        if self._dataflex_places is not None:
            self._dataflex_places.load_state_dict(state["places"])

    def _dataflex_batches(
        self, dataset: Any, collate: Any, rows: NDArray[np.int64], weights: NDArray[np.float32] | None = None
    ) -> Iterator[Any]:
        if self._dataflex_places is None:
            return super()._dataflex_batches(dataset, collate, rows, weights)
        self._dataflex_places.enter()
        collate = self._dataflex_places.placing(collate)
        return self._dataflex_places.follow(super()._dataflex_batches(dataset, collate, rows, weights))

    def _dataflex_parts(self) -> Parts:
        """Returns the parts of the objective: the mixer, where it looks at losses."""
        wanted = self.spec.component
        if not self._dataflex_observes or wanted is None:
            return Parts()
        with blaming(self.component_in_words()):
            weighs = self.component.weighs
        sources = len(self.mixture_manager.names)
        return Parts(mixer=MixerPart(self.component, wanted.name, wanted.preset, sources, weighs))

    def _dataflex_examples(self) -> Sized:
        if self._dataflex_places is None:
            return super()._dataflex_examples()
        return range(self.schedule.total * self._dataflex_global_batch_size)

    def _dataflex_constructed(self) -> Any:
        mixed = mixed_sources(self.train_dataset)
        self.mixture_manager = first_mixture(mixed, self.arguments)(seed=self.seed)
        self._dataflex_places = StreamPlaces(mixed) if are_streams(mixed) else None
        return super()._dataflex_constructed()

    def _dataflex_require_rows_apart(self) -> None:
        super()._dataflex_require_rows_apart()
        with blaming(self.component_in_words()):
            self._dataflex_observes = self.component is not None and bool(self.component.observes)
        if self._dataflex_observes:
            assert isinstance(self.model, torch.nn.Module)
            require_causal(pretrained_models(self.model))
            collate = self._get_collator_with_removed_columns(self.data_collator, description="training")
            require_rows_apart(collate, first_rows(self.train_dataset), f"the {self.component_in_words()}")

    def _dataflex_injectable(self) -> dict[str, Any]:
        runtime, held_out = super()._dataflex_injectable(), self._dataflex_held_out
        if held_out is None and isinstance(runtime["eval_dataset"], Mapping):
            held_out = runtime["eval_dataset"]
        return runtime | {"mixture_manager": self.mixture_manager, "mixer_eval_dataset": held_out}
