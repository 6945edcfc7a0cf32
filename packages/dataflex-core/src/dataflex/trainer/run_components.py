"""The components of a run: made with what they ask for, each known by its place."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflex.config.spec import Part
from dataflex.core.component import Component
from dataflex.core.errors import ConfigError, blaming
from dataflex.core.files import CACHE
from dataflex.core.kinds import MIXER, WEIGHTER
from dataflex.discovery.component_classes import find
from dataflex.discovery.construct import construct, constructor_parameters
from dataflex.discovery.injected import SEED, TARGETS
from dataflex.model.unwrapped import pretrained_models, require_causal
from dataflex.planning.mixture import MixtureManager
from dataflex.planning.stages import Stages, load, saved
from dataflex.rows.token_lists import by_rows_of
from dataflex.rows.views import MixedSources, PlannedRows
from dataflex.scoring.target_rows import named_sets, whole_sets
from dataflex.trainer.given import first_rows, require_rows_apart, rows_to_learn
from dataflex.trainer.host import Host


class Components:
    """Selectors, mixer, order and weighter of a run.

    Args:
        trainer: The trainer, ready but for its schedule.
        mixture: The sources of the train dataset and their shares; None where it is one.
        target_dataset: Evaluation rows for components, where they are other ones than those for evaluation.
        held_out: Source -> held-out rows, for mixers that ask for them; None: the evaluation rows, if they are such a
            mapping.

    Attributes:
        stages: Those that decide which rows are trained on; None where the loader of a static run is kept.
        weighter: The weighter; None where there is none.
        observing_mixer: The mixer, where it looks at losses; known once :meth:`require_fitting` is back.
    """

    def __init__(self, trainer: Host, mixture: MixtureManager | None, target_dataset: Any, held_out: Any) -> None:
        self._trainer, self._mixture = trainer, mixture
        self._target_dataset, self._held_out = target_dataset, held_out
        spec = trainer.spec
        self.stages = (
            Stages(spec, len(trainer.train_dataset), mixture, self._made, trainer.seed) if spec.plans else None
        )
        self.observing_mixer: Any = None
        self.weighter: Any = None if spec.weighter is None else self._made(spec.weighter, None, None)

    def __iter__(self) -> Iterator[tuple[Part, Any]]:
        """Yields each component with its part of the run; a selector inside of a mixture once for each source."""
        if self.stages is not None:
            yield from self.stages.components()
        if self._trainer.spec.weighter is not None:
            yield self._trainer.spec.weighter, self.weighter

    def asked(self, update_rows: int) -> Iterator[tuple[Part, Any, int]]:
        """Yields each component as the iterator does, and the most rows that it is asked for at once.

        Args:
            update_rows: The most rows that an update trains on.
        """
        if self.stages is not None:
            yield from self.stages.asked(update_rows)
        if self._trainer.spec.weighter is not None:
            yield self._trainer.spec.weighter, self.weighter, 0

    def replace(self, component: Any) -> None:
        """Puts another component in the place of the only one."""
        if self.stages is None:
            self.weighter = component
        else:
            self.stages.replace(component)

    @property
    def only(self) -> Any:
        """The component of a run that has one; None where there are none or several."""
        found = [component for _, component in self]
        return found[0] if len(found) == 1 else None

    @property
    def target_sets(self) -> tuple[str, ...]:
        """The names of the evaluation sets that components are given."""
        target = self._trainer.eval_dataset if self._target_dataset is None else self._target_dataset
        return tuple(name for name, rows in named_sets(target).items() if rows is not None)

    @property
    def selector_weighs(self) -> bool:
        """Whether the selector that chooses may give its rows weights."""
        return self.stages is not None and any(type(placed.component).weighs for placed in self.stages.selectors)

    def require_fitting(self) -> None:
        """Tries what the components need of model and collator: mixers look at the model, others at single rows.

        Raises:
            ConfigError: With the way out.
        """
        for part, component in self:
            who = f"the {part.component.in_words}"
            if isinstance(component, Component) and component.reads_batches:
                rows = first_rows(self._trainer.train_dataset)
                require_rows_apart(self._trainer.scoring_collator, rows, who, rows_in=self._rows_in)
            if part.component.kind is WEIGHTER:
                self._require_rows_apart(who, documents=True)
            if part.component.kind is MIXER:
                self._require_fitting_mixer(part, component)

    def _require_fitting_mixer(self, part: Part, mixer: Any) -> None:
        model = self._trainer.model
        with blaming(part.component.in_words):
            self.observing_mixer = mixer if mixer.observes else None
            looks = {"weighs the loss of each source": mixer.weighs, "looks at gradients": mixer.observes_gradients,
                     "looks at logits": mixer.observes_logits}  # fmt: skip
        wanted = next((what for what, holds in looks.items() if holds), None)
        if wanted is not None and self._trainer.rollouts is not None:
            raise ConfigError(
                f"the {part.component.in_words} {wanted}, and the rows of this trainer are prompts: the loss is that "
                "of sampled answers -> use a mixer that goes by rewards, see docs/prompts.md"
            )
        if self.observing_mixer is not None and self._trainer.rollouts is None:
            if self._rows_in is None:
                require_causal(pretrained_models(model))
            self._require_rows_apart(f"the {part.component.in_words}")
        with blaming(part.component.in_words):
            mixer.prepare(model)

    def _require_rows_apart(self, who: str, documents: bool = False) -> None:
        """Tries the collator of training, which sees no columns that the model does not take."""
        trainer = self._trainer
        collate = trainer._get_collator_with_removed_columns(trainer.data_collator, description="training")
        rows = first_rows(trainer.train_dataset)
        require_rows_apart(collate, rows, who, documents=documents, rows_in=self._rows_in)

    @property
    def _rows_in(self) -> Callable[[Mapping[str, Any]], int] | None:
        """What counts the rows of a batch, where they are no texts."""
        stage = self._trainer.stage
        return stage.rows_in if stage.is_own else None

    def trial(self) -> tuple[Any, list[Any]]:
        """Returns the collator of training, and some rows with labels."""
        trainer = self._trainer
        collate = trainer._get_collator_with_removed_columns(trainer.data_collator, description="training")
        return collate, rows_to_learn(trainer.train_dataset)

    def state_dict(self) -> dict[str, Any]:
        """Returns what the components remember, after a look at whether a checkpoint can hold it and give it back."""
        part, weighter = self._trainer.spec.weighter, self.weighter
        kept = saved(part, weighter) if part is not None and isinstance(weighter, Component) else None
        return {"stages": None if self.stages is None else self.stages.state_dict(), "weighter": kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        if self.stages is not None:
            self.stages.load_state_dict(state["stages"])
        part = self._trainer.spec.weighter
        if part is not None and state["weighter"] is not None:
            load(part, self.weighter, state["weighter"])

    def injectable(
        self, part: Part | None = None, rows: NDArray[np.int64] | None = None, source: int | None = None
    ) -> dict[str, Any]:
        """Returns the runtime objects that a component may ask for by parameter name.

        Args:
            part: The component's part of the run.
            rows: The rows of the train dataset that it is made on; None for all.
            source: The source that it is made on; None for all.
        """
        trainer = self._trainer
        folder = os.path.join(trainer.output_dir, CACHE, "" if part is None else self._name(part))
        held_out = self._held_out
        if held_out is None and isinstance(trainer.eval_dataset, Mapping):
            held_out = trainer.eval_dataset
        mixing = {} if self._mixture is None else {"mixture_manager": self._mixture, "mixer_eval_dataset": held_out}
        return {
            "dataset": self._rows_of(rows, source),
            "eval_dataset": trainer.eval_dataset if self._target_dataset is None else self._target_dataset,
            "accelerator": trainer.accelerator,
            "data_collator": trainer.scoring_collator,
            "output_dir": trainer.output_dir,
            "cache_dir": folder if source is None else os.path.join(folder, f"source_{source}"),
            "tokenizer": trainer.processing_class,
            "token_columns": by_rows_of(trainer.train_dataset, trainer.token_columns),
            "seed": trainer.seed,
            **mixing,
        }

    def _made(self, part: Part, rows: NDArray[np.int64] | None, source: int | None) -> Any:
        wanted, trainer = part.component, self._trainer
        cls, runtime = find(wanted.kind, wanted.name), self.injectable(part, rows, source)
        for key in TARGETS.intersection(constructor_parameters(cls)[0], runtime):
            runtime[key] = whole_sets(runtime[key])
        component = construct(cls, wanted.params, runtime)
        if isinstance(component, Component):
            name = self._name(part)
            name = name if source is None else f"{name} in {trainer.train_dataset.names[source]}"
            with blaming(part.component.in_words):
                component.bind(name, wanted.params.get(SEED, trainer.seed), trainer.output_dir)
        return component

    def _name(self, part: Part) -> str:
        """Returns the preset of a part, with a number behind it where an earlier part of the run has the same.

        Two selectors of one preset, a filter and the one that chooses, draw from other generators so, and neither takes
        what the other keeps in its folder for its own.
        """
        wanted = part.component
        alike = [
            each
            for each in self._trainer.spec.axes
            if (each.component.kind, each.component.preset) == (wanted.kind, wanted.preset)
        ]
        number = next((number for number, each in enumerate(alike, 1) if each is part), 1)
        return wanted.preset if number == 1 else f"{wanted.preset} {number}"

    def _rows_of(self, rows: NDArray[np.int64] | None, source: int | None) -> Any:
        """Returns the dataset of a place, or a view of some of its rows."""
        dataset: Any = self._trainer.train_dataset
        first = 0
        if source is not None:
            assert isinstance(dataset, MixedSources)
            first, dataset = int(dataset.offsets[source]), dataset.sources[source]
        return dataset if rows is None else PlannedRows(dataset, rows - first)
