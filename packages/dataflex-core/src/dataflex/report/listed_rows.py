"""Which rows a person looks at first: chosen most, least and never, of the highest and lowest score and weight."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dataflex.report.seen_rows import SeenRows

LISTED = 25
"""Rows of each list."""


def extreme(
    values_P: NDArray[np.float64], among_P: NDArray[np.bool_], known_P: NDArray[np.int8], most: int = LISTED
) -> NDArray[np.int64]:
    """Returns the places of the highest values; of equal ones the best known come first, then the lowest place.

    Linear in the number of rows: nothing is sorted but what is returned.
    """
    places = np.flatnonzero(among_P)
    if not len(places):
        return places
    values = values_P[places]
    bound = np.partition(values, -most)[-most] if len(values) > most else values.min()
    above, equal = places[values > bound], places[values == bound]
    equal = np.concatenate([equal[known_P[equal] == level][:most] for level in (2, 1, 0)])
    above = above[np.lexsort((above, -known_P[above], -values_P[above]))]
    return np.concatenate([above, equal])[:most]


def listed_rows(
    seen: SeenRows, known_P: NDArray[np.int8], weights: Mapping[int, float], has_scores: bool
) -> dict[str, list[int]]:
    """Returns list -> places of its rows, without the lists that are empty.

    Args:
        seen: What the files say.
        known_P: (P,) what the record has of a row: 2 for its text and why it was chosen, 1 for its text, 0 for neither.
        weights: Place -> weight of the rows that a weighter named.
        has_scores: Whether the run gave scores at all.
    """
    times_P = (seen.chosen if seen.updates else seen.times).astype(np.float64)
    chosen_P = times_P > 0
    found = {}
    if chosen_P.any() and np.ptp(times_P[chosen_P]) > 0:  # where all were chosen alike, none was chosen most
        found = {"most": extreme(times_P, chosen_P, known_P), "least": extreme(-times_P, chosen_P, known_P)}
    if seen.updates:
        last_P = seen.last == len(seen.stretches) - 1
        found["last"] = extreme(np.nan_to_num(seen.scores, nan=-np.inf).astype(np.float64), last_P, known_P)
    if seen.places.whole and seen.stretches:
        scores_P = np.where(np.isfinite(seen.scores), seen.scores, -np.inf).astype(np.float64)
        never_P = times_P == 0  # the ones with a text come first, then those that came nearest to being chosen
        kinds = (extreme(scores_P, never_P & there_P, known_P) for there_P in (known_P > 0, known_P == 0))
        found["never"] = np.concatenate([*kinds])[:LISTED]
    if has_scores:
        known = np.isfinite(seen.scores)
        scores_P = seen.scores.astype(np.float64)
        found |= {"high": extreme(scores_P, known, known_P), "low": extreme(-scores_P, known, known_P)}
    weights_P = seen.weights.astype(np.float64)
    for place, weight in weights.items():
        weights_P[place] = weight
    known = np.isfinite(weights_P)
    if known.any() and np.ptp(weights_P[known]) > 0:
        found |= {"heavy": extreme(weights_P, known, known_P), "light": extreme(-weights_P, known, known_P)}
    return {name: places.tolist() for name, places in found.items() if len(places)}
