"""The clusters of a run's rows: made on rank 0, broadcast to the others, kept in checkpoints.

Letters: E rows that have a label, K nearest clusters of a row (2, or 1), D features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate.utils import broadcast_object_list
from dataflex.scoring.k_means import k_means
from numpy.typing import NDArray

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Clustering:
    """Which rows are like each other.

    Attributes:
        nearest: (E, K) the nearest clusters of each row, its own first.
        order: (E,) a random order of the rows, which decides the representatives of each cluster.
        update: The update at which the clusters were made.
        vectors: (E, D) the vectors that they were made from, float16 of length 1; None after a resume, where they
            can be looked up again.
    """

    nearest: NDArray[np.int64]
    order: NDArray[np.int64]
    update: int
    vectors: NDArray[np.float16] | None

    def with_vectors(self, vectors_ED: NDArray[np.float32]) -> Clustering:
        """Returns the same clusters with the vectors of their rows."""
        return replace(self, vectors=vectors_ED.astype(np.float16))

    def state_dict(self, moving: bool) -> dict[str, Any]:
        """Returns what a checkpoint needs; vectors are part of it only where the embedding moves with training."""
        kept = {"nearest": self.nearest, "order": self.order, "update": self.update}
        return kept | {"vectors": self.vectors if moving else None}

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Clustering:
        """Returns the clusters of a :meth:`state_dict`."""
        vectors = None if state["vectors"] is None else np.asarray(state["vectors"], dtype=np.float16)
        nearest, order = (np.asarray(state[key], dtype=np.int64) for key in ("nearest", "order"))
        return cls(nearest, order, int(state["update"]), vectors)


def cluster_rows(
    vectors_ED: NDArray[np.float32],
    clusters: int,
    order_E: NDArray[np.int64],
    generator: np.random.Generator,
    update: int,
    accelerator: Accelerator | None,
) -> Clustering:
    """Returns the clusters of rows, the same on every rank. Collective.

    Args:
        vectors_ED: (E, D) vectors of length 1, E >= 1.
        clusters: How many, at most E.
        order_E: (E,) a random order of the rows.
        generator: The source of randomness of rank 0, which alone draws from it.
        update: The number of this update.
        accelerator: The run's accelerator; None means a single process.
    """
    found: list[Any] = [None]
    if accelerator is None or accelerator.process_index == 0:
        found = [k_means(vectors_ED, clusters, generator, None if accelerator is None else accelerator.device)]
    if accelerator is not None and accelerator.num_processes > 1:
        broadcast_object_list(found)  # ranks might differ: sums on two devices differ in their last bits
    return Clustering(found[0], order_E, update, vectors_ED.astype(np.float16))
