"""The components that decide which rows are trained on, each in its place, and what is remembered between updates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflex.config.checks.enough_rows import rows_kept
from dataflex.config.spec import Part, RunSpec
from dataflex.core.errors import blaming
from dataflex.core.kinds import SELECTOR
from dataflex.interfaces.order import Order
from dataflex.planning.mixture import MixtureManager
from dataflex.planning.ordering import ArrangedPasses
from dataflex.planning.passes import Passes
from dataflex.planning.pool import Pool
from dataflex.planning.selecting import PlacedSelector
from dataflex.run.state import require_savable

Make = Callable[[Part, NDArray[np.int64] | None, int | None], Any]
"""``make(part, rows, source)``: the component, on some rows of the train dataset (None: all) or of one source."""


class Stages:
    """What a run has of filters, mixer, selector and order.

    Args:
        spec: The run.
        size: Rows of the train dataset.
        mixture: The sources and their shares; None where there is one source.
        make: Makes a component.
        seed: The run's seed.

    Attributes:
        pool: The rows that the filters keep.
        filters: The selectors that filter.
        mixture: The sources.
        mixer: Sets their shares; None where these never move.
        selectors: The selector, made for each source; none where rows come without replacement.
        order: Arranges; None where rows stay as they come.
        passes: Rows without replacement, for each source; none where the mixture draws them by itself.
        arranged: The same, arranged by an order over the run.
        places: Name, first row and number of rows of each source.
        updates: Whether the run has updates; set by the trainer when it has its schedule.
    """

    def __init__(self, spec: RunSpec, size: int, mixture: MixtureManager | None, make: Make, seed: int) -> None:
        self.spec, self.mixture, self.updates = spec, mixture, True
        self.places = sources = [("", 0, size)] if mixture is None else mixture.places
        self.pool = Pool(size, len(spec.filters))
        self.filters = [
            PlacedSelector(partial(_on, make, part, None), 0, size, seed, "filter", number, distinct=True)
            for number, part in enumerate(spec.filters)
        ]
        self.mixer: Any = None if spec.mixer is None else make(spec.mixer, None, None)
        self.selectors: list[PlacedSelector] = []
        if spec.selector is not None:
            self.selectors = [
                self._placed(spec.selector, make, None if mixture is None else k, first, rows, (seed, "select", name))
                for k, (name, first, rows) in enumerate(sources)
            ]
        self.order: Any = None if spec.order is None else make(spec.order, None, None)
        self.passes: list[Passes] = []
        self.arranged: list[ArrangedPasses] = []
        if spec.order is not None and self.order is not None and spec.order.over == "run":
            changes = spec.order_changes or type(self.order).share is not Order.share
            self.arranged = [ArrangedPasses(self.order, first, rows, changes=changes) for _, first, rows in sources]
        elif self.filters or self.selectors or mixture is None:
            self.passes = [Passes(rows, seed, "domain", name) for name, _, rows in sources]

    @property
    def stand(self) -> bool:
        """Whether more rows can be planned from the last decisions, where a continued run has a segment made longer."""
        return not self.selectors and (self.order is None or bool(self.arranged))

    def components(self) -> Iterator[tuple[Part, Any]]:
        """Yields each component that there is at the moment, with its part of the run."""
        spec = self.spec
        for part, placed in zip(spec.filters, self.filters, strict=True):
            yield part, placed.component
        if spec.mixer is not None:
            yield spec.mixer, self.mixer
        if spec.selector is not None:
            for placed in self.selectors:
                yield spec.selector, placed.component
        if spec.order is not None:
            yield spec.order, self.order

    def asked(self, update_rows: int) -> Iterator[tuple[Part, Any, int]]:
        """Yields each component with its part of the run, and the most rows that it is asked for at once.

        Args:
            update_rows: The most rows that an update trains on.
        """
        sizes = [(placed.component, placed.size) for placed in self.selectors]
        for part, component in self.components():
            rows = 0
            if part.keep is not None:
                rows = rows_kept(len(self), part.keep)
            elif part.component.kind is SELECTOR:
                size = next(size for each, size in sizes if each is component)
                rows = min(update_rows, size) if self.mixture is not None else update_rows
            yield part, component, rows

    def __len__(self) -> int:
        """Rows of the train dataset."""
        return sum(size for _, _, size in self.places)

    def replace(self, component: Any) -> None:
        """Puts another component in the place of the only one."""
        if self.selectors:
            self.selectors[0].component = component
        elif self.filters:
            self.filters[0].component = component
        elif self.mixer is not None:
            self.mixer = component
        else:
            self.order = component

    def state_dict(self) -> dict[str, Any]:
        """Returns what the stages remember, after a look at whether a checkpoint can hold the components' own states.

        Raises:
            ComponentError: It could not hold one, or give it back.
        """
        return {
            "pool": self.pool.state_dict(),
            "mixture": None if self.mixture is None else self.mixture.state_dict(),
            **{name: [part.state_dict() for part in parts] for name, parts in self._lists()},
            "components": [saved(part, component) if there else None for part, component, there in self._there()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.pool.load_state_dict(state["pool"])
        if self.mixture is not None:
            self.mixture.load_state_dict(state["mixture"])
        for name, parts in self._lists():
            for own, kept in zip(parts, state[name], strict=True):
                own.load_state_dict(kept)
        for (part, component, there), kept in zip(self._there(), state["components"], strict=True):
            if there:
                load(part, component, kept)

    @staticmethod
    def _placed(
        part: Part, make: Make, source: int | None, first: int, size: int, key: tuple[object, ...]
    ) -> PlacedSelector:
        return PlacedSelector(partial(_on, make, part, source), first, size, *key, stands=part.every > 1)

    def _lists(self) -> list[tuple[str, list[Any]]]:
        return [
            ("filters", [*self.filters]), ("selectors", [*self.selectors]), ("passes", [*self.passes]),
            ("arranged", [*self.arranged]),
        ]  # fmt: skip

    def _there(self) -> Iterator[tuple[Part, Any, bool]]:
        """Yields each component with its part, and whether it is one of rows that there are.

        A selector of which the filters have left no row is made anew when there are some.
        """
        empty = {id(placed.component) for placed in (*self.filters, *self.selectors) if not placed.size}
        for part, component in self.components():
            yield part, component, id(component) not in empty


def saved(part: Part, component: Any) -> list[Any]:
    """Returns what a component remembers, for a checkpoint.

    Raises:
        ComponentError: A checkpoint could not hold it, or give it back.
    """
    who = part.component.in_words
    with blaming(who):
        state = component.state_dict()
        require_savable(state, who)
    return [state, component.left_out]


def load(part: Part, component: Any, kept: list[Any]) -> None:
    """Gives a component back what :func:`saved` returned."""
    with blaming(part.component.in_words):
        component.load_state_dict(kept[0])
    component.left_out = kept[1]


def _on(make: Make, part: Part, source: int | None, rows: NDArray[np.int64] | None) -> Any:
    """Returns the component of a part of the run, on some rows."""
    return make(part, rows, source)
