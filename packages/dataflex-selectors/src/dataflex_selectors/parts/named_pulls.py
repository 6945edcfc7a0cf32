"""From the terms of target rows to an explanation that names them.

Letters: S rows that are explained, M target rows, J target sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from dataflex.core.explain import Explanation, Pull, largest_shares, sample_note
from dataflex.rows.columns import read_chunks
from dataflex.rows.views import MixedSources
from dataflex.scoring import TargetSet
from dataflex.scoring.gradients.kept_targets import SetTerms
from dataflex.scoring.target_rows import number_in_set
from numpy.typing import NDArray


def named_row(name: str, dataset: Any, row: int) -> tuple[tuple[str, int], Sequence[int]]:
    """Returns set and number of a target row as the user knows it, and its token ids.

    Args:
        name: The set.
        dataset: Its rows, as :func:`~dataflex.scoring.read_target` gave them.
        row: The row's number there.
    """
    return (name, number_in_set(dataset, row)), next(read_chunks(dataset, np.array([row])))[0].tolist()


def explained(
    named: MixedSources, places_SX: Sequence[Sequence[tuple[int, float]]], scores_S: NDArray[np.float64], note: str = ""
) -> Explanation:
    """Returns the explanation by places in the sets put one after the other.

    Args:
        named: The sets.
        places_SX: For each row, places in them with their shares.
        scores_S: (S,) what they are shares of.
        note: What a reader must know.
    """
    known: dict[int, tuple[str, int]] = {}
    tokens = {}
    for place in sorted({place for found in places_SX for place, _ in found}):
        number = int(named.sources_of(np.array([place]))[0])
        key, ids = named_row(named.names[number], named.sources[number], place - int(named.offsets[number]))
        known[place], tokens[key] = key, ids
    pulls = [[Pull(*known[place], share) for place, share in found] for found in places_SX]
    return Explanation(pulls, scores_S, tokens, note)


def joined_terms(parts: Sequence[SetTerms]) -> SetTerms:
    """Returns the terms of several lots of rows as those of one."""
    terms_MS = np.concatenate([part.terms for part in parts], axis=1)
    return SetTerms(parts[0].places, terms_MS, np.concatenate([part.totals for part in parts]), parts[0].rows)


def explained_by_terms(
    targets: Sequence[TargetSet], sets: Sequence[SetTerms], best_S: NDArray[np.int64], *, exact: bool, dim: int
) -> Explanation:
    """Returns the explanation of rows each of which has its score from one set.

    Args:
        targets: (J) the sets.
        sets: (J) their terms.
        best_S: (S,) the set of each row.
        exact: Whether the terms are those that rows were scored by.
        dim: Numbers that each gradient was sketched to, where they are not.
    """
    pulls, tokens = [], {}
    scores_S = np.full(len(best_S), np.nan)
    for row, j in enumerate(best_S):
        found, target = sets[j], targets[j]
        scores_S[row] = found.totals[row]
        named = []
        for place, share in largest_shares(found.terms[:, row], float(found.totals[row])):
            key, ids = _origin(target, int(found.places[place]))
            named.append(Pull(*key, share))
            tokens[key] = ids
        pulls.append(named)
    notes = [] if exact else [f"estimated from sketches of {dim} numbers"]
    looked_at, rows = sum(len(found.places) for found in sets), sum(found.rows for found in sets)
    return Explanation(pulls, scores_S, tokens, "; ".join(filter(None, [*notes, sample_note(looked_at, rows)])))


def _origin(target: TargetSet, place: int) -> tuple[tuple[str, int], Sequence[int]]:
    """Returns the evaluation row of a vector: set and number, and its token ids."""
    name = target.known_as or target.name
    if target.evaluated is None or target.origins is None:
        return named_row(name, target.dataset, place)
    return named_row(name, target.evaluated, int(target.origins[place]))
