"""What a checked configuration becomes: plain values that every rank, launcher and trainer can be given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dataflex.config.arguments import EPOCHS, DataflexArguments
from dataflex.core.kinds import MIXER, ORDER, SELECTOR, WEIGHTER, Kind
from dataflex.core.schedule import Steps
from dataflex.core.score_names import ScoreName


@dataclass(frozen=True)
class ComponentSpec:
    """A component as it was asked for.

    Attributes:
        kind: Selector, mixer, order or weighter.
        preset: The entry of ``components.yaml`` (the ``component_name`` of the run).
        name: The component behind it.
        params: Constructor parameters: the package's defaults overridden by the user's file.
        by: Of an order, where its scores come from, see :class:`Part`.
        over: Of an order, what it arranges, see :class:`Part`.
    """

    kind: Kind
    preset: str
    name: str
    params: Mapping[str, Any] = field(default_factory=dict)
    by: str | None = None
    over: str | None = None

    @property
    def in_words(self) -> str:
        """Kind and preset, for messages."""
        return f"{self.kind.name} '{self.preset}'"


@dataclass(frozen=True)
class Part:
    """A component's place in a run.

    Attributes:
        component: The component.
        every: It takes part in each update whose number is a multiple of this.
        start: ``from``: the first global step at which it takes part.
        keep: Of a selector, the share of the pool that it keeps, in (0, 1]; it makes the selector a filter.
        by: Of an order, where its scores come from: ``loss``, ``length``, ``selector``, ``column:NAME`` or
            ``file:PATH`` with an absolute path. None where it looks at none.
        over: Of an order, what it arranges: ``run`` (all rows that are left of the pass) or ``stretch`` (the rows that
            were chosen).
    """

    component: ComponentSpec
    every: int = 1
    start: int = 0
    keep: float | None = None
    by: str | None = None
    over: str | None = None


@dataclass(frozen=True)
class RunSpec:
    """A whole run.

    Attributes:
        arguments: dataflex's own keys.
        component: The component of a short form (``dynamic_select`` and its like); None for ``static``, for
            ``static_mix`` and for ``dynamic``.
        llamafactory: Every other key, exactly as the user wrote it.
        epochs: ``num_train_epochs`` where the user wrote it, else None.
        trains: Whether rows are trained on. Scoring asks for no rows, so that there may be fewer than a run asks for.
        parts: The components of ``train_type: dynamic``, selectors in the order of the file; none otherwise.
    """

    arguments: DataflexArguments
    component: ComponentSpec | None = None
    llamafactory: Mapping[str, Any] = field(default_factory=dict)
    epochs: float | None = None
    trains: bool = True
    parts: tuple[Part, ...] = ()

    @property
    def axes(self) -> tuple[Part, ...]:
        """Every component of the run in its place, however it was written; none where nothing is dynamic."""
        return self.parts or short_form(self.component, self.arguments)

    @property
    def filters(self) -> tuple[Part, ...]:
        """The selectors that keep a share of the pool, in their order."""
        return tuple(part for part in self._of(SELECTOR) if part.keep is not None)

    @property
    def selector(self) -> Part | None:
        """The selector that chooses the rows."""
        return next((part for part in self._of(SELECTOR) if part.keep is None), None)

    @property
    def mixer(self) -> Part | None:
        """The mixer; None for a mixture whose shares stay (:attr:`mixes`)."""
        return next(iter(self._of(MIXER)), None)

    @property
    def order(self) -> Part | None:
        """The order."""
        return next(iter(self._of(ORDER)), None)

    @property
    def order_changes(self) -> bool:
        """Whether the order arranges otherwise at another update: its scores change, or it holds rows back."""
        return self.order is not None and changes(self.order)

    @property
    def weighter(self) -> Part | None:
        """The weighter."""
        return next(iter(self._of(WEIGHTER)), None)

    @property
    def mixes(self) -> bool:
        """Whether the train dataset is several sources in shares: with a mixer, or with ``static_mix``."""
        return self.arguments.mixes

    @property
    def weighs(self) -> bool:
        """Whether there is a weighter."""
        return self.arguments.weighs

    @property
    def plans(self) -> bool:
        """Whether rows are planned; with a weighter alone the loader of a static run is kept."""
        return self.arguments.plans

    def steps(self, max_steps: int = 0, epochs: float = EPOCHS) -> Steps:
        """Returns what is said about the number of steps and updates.

        Args:
            max_steps: That of the training arguments, another name for ``train_step``; 0 or less for none.
            epochs: ``num_train_epochs`` of the training arguments, in force where the user wrote none.
        """
        keys = replace(self.arguments, train_step=self.arguments.train_step or max(max_steps, 0))
        known = bool(self.axes) and not keys.static_mix
        return keys.steps(self.epochs, epochs, decides(self.axes, keys.update_step) if known else None)

    def _of(self, kind: Kind) -> tuple[Part, ...]:
        return tuple(part for part in self.axes if part.component.kind is kind)


def places(spec: RunSpec) -> tuple[str, ...]:
    """Returns the key of each of ``spec.axes``: of a list of selectors ``selector[0]``; of a short form its kind."""
    listed = isinstance(spec.arguments.selector, tuple)
    found, selectors = [], 0
    for part in spec.axes:
        kind = part.component.kind
        numbered = listed and kind is SELECTOR and bool(spec.parts)
        found.append(f"{kind.name}[{selectors}]" if numbered else kind.name)
        selectors += kind is SELECTOR
    return tuple(found)


def short_form(component: ComponentSpec | None, arguments: DataflexArguments) -> tuple[Part, ...]:
    """Returns the one axis of a run that is written with ``component_name``."""
    if component is None:
        return ()
    return (Part(component, start=begins(component.kind, arguments), by=component.by, over=component.over),)


def begins(kind: Kind, arguments: DataflexArguments) -> int:
    """Returns the first step of an axis without ``from``: a weighter is not asked at updates, so it has the warm-up."""
    return arguments.warmup_step if kind is WEIGHTER else 0


def changes(order: Part) -> bool:
    """Returns whether an order arranges otherwise at another update: its scores change, or it holds rows back."""
    return order.by is not None and ScoreName.of(order.by).changes


def decides(axes: Iterable[Part], update_step: int = 0) -> bool:
    """Returns whether an update of these axes can change anything.

    Weights follow every batch, and a pass that is arranged by scores which never change is arranged once.

    Args:
        axes: The parts of the run.
        update_step: Steps between updates; where the user gave some, an order takes part in them.
    """
    kinds = {part.component.kind: part for part in axes}
    order = kinds.get(ORDER)
    arranges = order is not None and (changes(order) or order.over == "stretch" or update_step > 0)
    return SELECTOR in kinds or MIXER in kinds or arranges
