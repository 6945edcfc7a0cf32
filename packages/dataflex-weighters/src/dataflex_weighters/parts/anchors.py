"""Why a weight by likeness is what it is: the rows of the target that a row is most like.

Letters: S rows that are explained, A target rows that are looked at, V of the whole target, H width of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from dataflex.core.explain import Explanation, Pull, largest_shares, sample_note
from dataflex.scoring.target_rows import number_in_set
from numpy.typing import NDArray


@dataclass(frozen=True)
class Anchors:
    """Rows of a target set with their embeddings.

    Attributes:
        name: The set.
        dataset: Its rows.
        rows: (A,) which of them these are.
        vectors: (A, H) their embeddings, of length 1.
        of: V, how many rows the target has, over all sets.
    """

    name: str
    dataset: Any
    rows: NDArray[np.int64]
    vectors: NDArray[np.float32]
    of: int


def explained_weights(
    anchors: Sequence[Anchors], phi_SH: NDArray[np.float32], mean_H: NDArray[np.float64], temperature: float
) -> Explanation:
    """Returns which target rows gave rows their weights sigmoid(s / temperature), s being the mean cosine.

    Args:
        anchors: The target rows that are looked at, of all sets.
        phi_SH: (S, H) embeddings of the rows, of length 1.
        mean_H: (H,) the mean embedding of the whole target, by which rows are weighed.
        temperature: Of the weights, > 0.
    """
    phi_SH = phi_SH.astype(np.float64)
    places = [(part, place) for part in anchors for place in range(len(part.rows))]
    vectors_AH = np.concatenate([part.vectors for part in anchors]).astype(np.float64)
    terms_AS = vectors_AH @ phi_SH.T / anchors[0].of
    scores_S = terms_AS.sum(axis=0) if len(places) == anchors[0].of else phi_SH @ mean_H
    pulls, tokens = [], {}
    for row in range(len(phi_SH)):
        named = []
        for found, share in largest_shares(terms_AS[:, row], float(scores_S[row])):
            part, place = places[found]
            key = part.name, number_in_set(part.dataset, int(part.rows[place]))
            tokens[key] = np.asarray(part.dataset[int(part.rows[place])]["input_ids"]).tolist()
            named.append(Pull(*key, share))
        pulls.append(named)
    weights_S = 1 / (1 + np.exp(-scores_S / temperature))
    return Explanation(pulls, weights_S, tokens, sample_note(len(places), anchors[0].of))
