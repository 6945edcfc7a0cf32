"""The rows of the page: those that stand in a list, and as many others with a text as there is room for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflex.report.listed_rows import listed_rows
from dataflex.report.run_data import Reason, RowText
from dataflex.report.shared_beginnings import beginnings
from dataflex.report.shown_run import Block, Shown
from dataflex.report.thinned import plain
from dataflex.report.weight_plots import row_weights

_ROW = 60
"""Bytes that a row takes in the page beside its text, about."""
_SHORTEST = 160
_UNREAD = 200  # most explained rows, unless more of them have a text


def rows_block(shown: Shown, room: int) -> Block | None:
    """Returns the rows of a run; None where it has recorded none.

    Args:
        shown: The run.
        room: Bytes that their texts may take.
    """
    run, seen = shown.run, shown.seen
    if not seen.stretches and not run.texts:
        return None
    place_of = {row: place for row in run.texts if (place := seen.places.place(row)) is not None}
    texts_P = np.zeros(seen.places.count, dtype=bool)
    texts_P[list(place_of.values())] = True
    weighed = row_weights(run.lines("weight")).items()
    named = {place: weight for row, weight in weighed if (place := seen.places.place(row)) is not None}
    has_scores = bool(np.isfinite(seen.scores).any())
    explained = _explained(shown, texts_P)
    known_P = texts_P.astype(np.int8)
    known_P[explained] += texts_P[explained]
    lists = listed_rows(seen, known_P, named, has_scores)
    first = list(dict.fromkeys([*(place for places in lists.values() for place in places), *explained]))
    others = sorted(set(place_of.values()) - set(first))
    numbers = dict(
        zip((*first, *others), seen.places.rows(np.array([*first, *others], dtype=np.int64)).tolist(), strict=True)
    )
    targets = {key: run.targets[key] for key in _target_keys(run.reasons.values()) if key in run.targets}
    texts, cut_at = _within(run.texts, [numbers[place] for place in (*first, *others)], targets, room)
    kept = [*first, *(place for place in others if numbers[place] in texts)]
    line_of = {place: line for line, place in enumerate(kept)}
    places = np.array(kept, dtype=np.int64)
    weights = [named.get(place, float(seen.weights[place])) for place in kept]
    reasons = {place: run.reasons[numbers[place]] for place in kept if numbers[place] in run.reasons}
    shown_texts = [texts.get(numbers[place], (None, False))[0] for place in kept]
    named_sources = _sources(run.texts, [numbers[place] for place in kept])
    return {
        "kind": "rows",
        "run": shown.number,
        "total": seen.rows,
        "with_text": len(run.texts),
        "shown_with_text": sum(numbers[place] in texts for place in kept),
        "cut_at": cut_at,
        "sources": [source.name for source in seen.sources],
        "tones": [shown.sources.get(source.name, "grey") for source in seen.sources],
        "firsts": [] if seen.places.whole or seen.places.numbers is None else [source.first for source in seen.sources],
        "row": [numbers[place] for place in kept],
        "source": [] if seen.source_of is None else seen.source_of[places].tolist(),
        "named": [] if seen.source_of is not None else named_sources,
        "times": seen.times[places].tolist(),
        "chosen": seen.chosen[places].tolist() if seen.updates else [],
        "score": plain(seen.scores[places], 5) if has_scores else [],
        "weight": plain(weights, 5) if np.isfinite(weights).any() else [],
        "text": shown_texts,
        "skip": beginnings(shown_texts, named_sources),
        "cut": [line for line, place in enumerate(kept) if texts.get(numbers[place], (None, False))[1]],
        "lists": {name: [line_of[place] for place in found] for name, found in lists.items()}
        | ({"explained": [line_of[place] for place in explained if place in line_of]} if reasons else {}),
        "why": {line_of[place]: _why(reason) for place, reason in reasons.items()},
        "targets": _targets(targets, cut_at),
    }


def _sources(texts: Mapping[int, RowText], rows: Iterable[int]) -> list[str | None]:
    return [texts[row].source if row in texts else None for row in rows]


def _target_keys(reasons: Iterable[Reason]) -> list[tuple[str, int]]:
    return sorted({(name, row) for reason in reasons for name, row, _ in reason.targets})


def _why(reason: Reason) -> dict[str, Any]:
    return {
        "step": reason.step,
        "update": reason.update,
        "component": reason.component,
        "value": None if reason.value is None else plain([reason.value], 5)[0],
        "weight": reason.is_weight,
        "seconds": reason.seconds,
        "targets": [[f"{name}/{row}", name, row, share] for name, row, share in reason.targets],
    }


def _targets(targets: Mapping[tuple[str, int], RowText], cut_at: int) -> dict[str, dict[str, Any]]:
    skips = beginnings([text.text[:cut_at] for text in targets.values()], [name for name, _ in targets])
    return {
        f"{name}/{row}": {
            "text": text.text[:cut_at],
            "skip": skip,
            "cut": text.cut or len(text.text) > cut_at,
            "tokens": text.tokens,
        }
        for ((name, row), text), skip in zip(targets.items(), skips, strict=True)
    }


def _explained(shown: Shown, texts_P: NDArray[np.bool_]) -> list[int]:
    """Returns the places of the rows that are explained: all that have a text, and some that have none."""
    found = [place for row in shown.run.reasons if (place := shown.seen.places.place(row)) is not None]
    found.sort(key=lambda place: not texts_P[place])
    return found[: max(_UNREAD, sum(bool(texts_P[place]) for place in found))]


def _size(text: str) -> int:
    """Returns the bytes that a text takes in the page, in which some characters are escaped."""
    return len(text.encode("utf-8", "replace")) + 5 * sum(map(text.count, "<>&")) + text.count("\n") + text.count('"')


def _within(
    texts: Mapping[int, RowText], rows: list[int], targets: Mapping[tuple[str, int], RowText], room: int
) -> tuple[dict[int, tuple[str, bool]], int]:
    """Returns the texts that there is room for, and at how many characters they are cut.

    All of them are cut shorter before any of them is left out; then the first rows have their text.
    """
    wanted = [(row, texts[row]) for row in rows if row in texts]
    length = 2000
    while length > _SHORTEST:
        sizes = sum(_size(found.text[:length]) + _ROW for _, found in wanted)
        if sizes + sum(_size(found.text[:length]) for found in targets.values()) <= room:
            break
        length = max(_SHORTEST, length // 2)
    left, found = room - sum(_size(each.text[:length]) for each in targets.values()), {}
    for row, each in wanted:
        shown = each.text[:length]
        left -= _size(shown) + _ROW
        if left < 0:
            break
        found[row] = (shown, each.cut or len(each.text) > length)
    return found, length
