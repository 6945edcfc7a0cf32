"""How far the streams of a mixture have been trained on, which is less far than they have been read.

Rows are read ahead, maybe in a worker process, so each batch brings the places at which its reading ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dataflex.rows.streams import Place, Stream
from dataflex.rows.views import MixedSources

PLACES = "dataflex_places"
"""The key of a batch under which the places of the streams stand until the trainer takes them out."""


class StreamPlaces:
    """The place of each stream up to which the run has trained.

    Args:
        sources: The streams.
    """

    def __init__(self, sources: MixedSources) -> None:
        self._streams: dict[str, Stream] = dict(zip(sources.names, sources.sources, strict=True))
        self._places = {name: Place() for name in self._streams}

    def enter(self) -> None:
        """Brings streams that were read in a worker process to where that has come."""
        for name, stream in self._streams.items():
            if self._places[name].rows > stream.rows_read:
                stream.enter(self._places[name])

    def placing(self, collate: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
        """Returns the collator with the places of the streams in each batch."""
        return _PlacingCollator(collate, self._streams)

    def follow(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yields the batches without the places, which are kept."""
        for batch in batches:
            found: _Places = batch.pop(PLACES)
            for name, place in found.of.items():
                if place.rows > self._places[name].rows:
                    self._places[name] = place
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Returns the place of each stream."""
        return {name: asdict(place) for name, place in self._places.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Enters the streams at the places that :meth:`state_dict` returned."""
        self._places = {name: Place(**place) for name, place in state.items()}
        for name, stream in self._streams.items():
            stream.enter(self._places[name])


@dataclass(frozen=True)
class _Places:
    """Nothing that moves batches to devices looks into it."""

    of: Mapping[str, Place]


class _PlacingCollator:
    def __init__(self, collate: Callable[[list[Any]], Any], streams: Mapping[str, Stream]) -> None:
        self._collate = collate
        self._streams = streams

    def __call__(self, rows: list[Any]) -> Any:
        batch = self._collate(rows)
        batch[PLACES] = _Places({name: stream.place() for name, stream in self._streams.items()})
        return batch
