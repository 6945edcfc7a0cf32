"""How often each row was seen, what successive selections share, and which scores the rows had.

One pass over the files of ``dataflex_selections``, one file at a time; beside them a handful of arrays with one number
per row of the dataset. A million rows and a thousand files take seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dataflex.report.record_lines import Say
from dataflex.report.row_places import RowPlaces, row_places
from dataflex.report.row_records import read_arrays
from dataflex.report.run_data import PlannedSegment, RunData, RunSource
from dataflex.report.source_names import finer, source_places

QUARTILES = (0, 25, 50, 75, 100)
_ONE = np.int32(1)  # of the arrays' own type: with another, adding takes ten times as long
_BESIDE = ("scores", "weights")  # arrays with a number for each row of a file


@dataclass
class Stretch:
    """All files of one update, or one file of a warm-up.

    Attributes:
        step: Steps done when it begins.
        update: The update; None for a warm-up.
        planned: Rows, each as often as it stands there.
        distinct: Different rows.
        new: Rows that were trained on here for the first time.
        shared: Different rows that the update before it had chosen as well; None for the first.
        by_chance: How many that would be if both were drawn at random; None where the dataset's size is not known.
        sources: (S,) rows of each source, each as often as it stands there.
        different: (S,) the different ones among them.
        quartiles: Minimum, quartiles and maximum of the scores, where it has scores.
    """

    step: int
    update: int | None
    planned: int = 0
    distinct: int = 0
    new: int = 0
    shared: int | None = None
    by_chance: float | None = None
    sources: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    different: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    quartiles: list[float] | None = None


@dataclass
class SeenRows:
    """What the files say together. Arrays have one number per place, see :class:`RowPlaces`.

    Attributes:
        places: Which row each place is.
        sources: The sources that rows are counted by; empty where none are known.
        source_of: (P,) place of each row's source; None without sources.
        times: (P,) how often each row was trained on.
        chosen: (P,) how often updates chose it.
        scores: (P,) its last score, NaN for none.
        weights: (P,) the last weight that a selector gave it, NaN for none.
        stretches: In order.
        last: (P,) number of the last stretch that has the row, -1 for none.
    """

    places: RowPlaces
    sources: tuple[RunSource, ...]
    source_of: NDArray[np.int64] | None
    times: NDArray[np.int32]
    chosen: NDArray[np.int32]
    scores: NDArray[np.float32]
    weights: NDArray[np.float32]
    last: NDArray[np.int32]
    stretches: list[Stretch]

    @property
    def updates(self) -> list[Stretch]:
        """The stretches that updates chose."""
        return [stretch for stretch in self.stretches if stretch.update is not None]

    @property
    def rows(self) -> int | None:
        """The rows of the dataset; None where that is not known."""
        return self.places.count if self.places.whole else None


def seen_rows(run: RunData, say: Say) -> SeenRows:
    """Returns what the files of a run's selections say.

    Args:
        run: The run.
        say: Called with a sentence about a file that cannot be read.
    """
    places = row_places(run.rows, (rows for _, rows in _planned(run, lambda sentence: None)))
    sources, source_P = _sources(run, places)
    count = places.count
    seen = SeenRows(
        places,
        sources,
        source_P,
        np.zeros(count, dtype=np.int32),
        np.zeros(count, dtype=np.int32),
        np.full(count, np.nan, dtype=np.float32),
        np.full(count, np.nan, dtype=np.float32),
        np.full(count, -1, dtype=np.int32),
        [],
    )
    counter = _Counter(seen, any(kind == "mix" for kind, _ in run.parts))
    outside = 0
    for segment in run.segments:
        arrays = read_arrays(segment.file, say)
        rows = arrays.get("indices")
        if rows is None or rows.ndim != 1 or rows.dtype.kind not in "iu":
            continue
        rows = rows.astype(np.int64, copy=False)
        trained = np.arange(len(rows)) < _trained(run, segment, len(rows))
        beside = [each if each is not None and len(each) == len(rows) else None for each in map(arrays.get, _BESIDE)]
        if places.numbers is None and len(rows) and not 0 <= rows.min() <= rows.max() < count:
            within = (rows >= 0) & (rows < count)
            outside += int((~within).sum())
            rows, trained = rows[within], trained[within]
            beside = [None if each is None else each[within] for each in beside]
        counter.add(segment, places.places(rows), trained, *beside)
    counter.close()
    if outside:
        say(f"{outside:,} planned rows have numbers beyond the {count:,} rows of the dataset: left out")
    if run.last_scores is not None and len(run.last_scores) == count:
        known = np.isfinite(run.last_scores)
        seen.scores[known] = run.last_scores[known]
    return seen


def _planned(run: RunData, say: Say) -> Iterator[tuple[PlannedSegment, NDArray[np.int64]]]:
    for segment in run.segments:
        rows = read_arrays(segment.file, say).get("indices")
        if rows is not None and rows.ndim == 1 and rows.dtype.kind in "iu":
            yield segment, rows.astype(np.int64, copy=False)


def _trained(run: RunData, segment: PlannedSegment, planned: int) -> int:
    """Returns how many of the planned rows were trained on: a run that was ended did not come to the last ones."""
    if run.batch is None or run.state == "finished":
        return planned
    return max(0, min(planned, (run.step - segment.step) * run.batch))


def _sources(run: RunData, places: RowPlaces) -> tuple[tuple[RunSource, ...], NDArray[np.int64] | None]:
    named = finer(run.sources, run.texts, run.rows)
    if named is not None:
        names = sorted({name for name in named if name is not None})
        of = {name: place for place, name in enumerate(names)}
        source_P = np.array([of[name] for name in named if name is not None], dtype=np.int64)
        counts = np.bincount(source_P, minlength=len(names))
        return tuple(RunSource(name, 0, int(n)) for name, n in zip(names, counts, strict=True)), source_P
    if not run.sources:
        return (), None
    rows = np.arange(places.count) if places.numbers is None else places.numbers
    if run.row_sources is not None:
        return run.sources, run.row_sources[rows]
    if any(source.first is None for source in run.sources):  # not in order, and the file is missing
        return (), None
    return run.sources, source_places(run.sources, rows)


class _Counter:
    """Adds file after file to what is known."""

    def __init__(self, seen: SeenRows, mixed: bool) -> None:
        self._seen, self._mixed = seen, mixed
        self._scratch = np.zeros(seen.places.count, dtype=np.int32)
        self._before: int | None = None  # the stretch of the update before
        self._scores: list[NDArray[np.float64]] = []

    def add(
        self,
        segment: PlannedSegment,
        places_R: NDArray[np.int64],
        trained_R: NDArray[np.bool_],
        scores_R: NDArray[np.float64] | None,
        weights_R: NDArray[np.float64] | None,
    ) -> None:
        """Adds the rows of one file, with whether each was trained on."""
        seen, count = self._seen, max(1, len(self._seen.sources))
        stretches = seen.stretches
        if not stretches or segment.update is None or stretches[-1].update != segment.update:
            self.close()
            zeros = np.zeros(count, dtype=np.int64)
            stretches.append(Stretch(segment.step, segment.update, sources=zeros, different=zeros.copy()))
        stretch, number = stretches[-1], len(stretches) - 1
        order = np.arange(len(places_R), dtype=np.int32)
        self._scratch[places_R] = order
        once = places_R[self._scratch[places_R] == order]  # each row of the file once, without sorting them
        last = seen.last[once]
        unseen = once[last != number]
        stretch.planned += len(places_R)
        stretch.distinct += len(unseen)
        if self._before is not None and stretch.update is not None:
            # what the update before had, it had last: warm-ups come before all updates
            stretch.shared = (stretch.shared or 0) + int((last == self._before).sum())
        trained = places_R[trained_R]
        stretch.new += len(np.unique(trained[seen.times[trained] == 0]))
        np.add.at(seen.times, trained, _ONE)
        if segment.decided:
            np.add.at(seen.chosen, places_R, _ONE)
        if seen.source_of is not None:
            stretch.sources += np.bincount(seen.source_of[places_R], minlength=count)
            stretch.different += np.bincount(seen.source_of[unseen], minlength=count)
        seen.last[once] = number
        if scores_R is not None:
            finite = np.isfinite(scores_R)
            seen.scores[places_R[finite]] = scores_R[finite]
            self._scores.append(scores_R[finite])
        if weights_R is not None:
            seen.weights[places_R] = weights_R

    def close(self) -> None:
        """Ends the stretch: what two random selections of these sizes would share, and its scores."""
        seen = self._seen
        if not seen.stretches:
            return
        stretch = seen.stretches[-1]
        if self._scores:
            scores = np.concatenate(self._scores)
            stretch.quartiles = np.percentile(scores, QUARTILES).tolist() if len(scores) else None
            self._scores = []
        if stretch.update is None:
            return
        if self._before is not None and seen.rows:
            stretch.by_chance = self._by_chance(seen.stretches[self._before], stretch)
        self._before = len(seen.stretches) - 1

    def _by_chance(self, before: Stretch, now: Stretch) -> float:
        """Returns the rows that two random choices share; where a mixer sets the shares, in the same shares."""
        sizes = [source.rows for source in self._seen.sources]
        if self._mixed and sizes and None not in sizes:
            pairs = zip(before.different.tolist(), now.different.tolist(), sizes, strict=True)
            return float(sum(a * b / size for a, b, size in pairs if size))
        return before.distinct * now.distinct / max(1, self._seen.places.count)
