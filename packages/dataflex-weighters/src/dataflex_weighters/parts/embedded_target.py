"""The embeddings of the evaluation set under the model of the moment, set by set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from dataflex.scoring import hidden_state_embeddings
from numpy.typing import NDArray

if TYPE_CHECKING:
    from dataflex.scoring.embeddings import Pooling
    from dataflex.scoring.passes.row_pass import Collator
    from dataflex.train.weighter.base_weighter import StepContext


class Embedded(NamedTuple):
    """Some rows of a target set.

    Attributes:
        name: The set.
        dataset: Its rows.
        indices: (A,) which of them these are.
        vectors: (A, H) float32 their embeddings; on rank 0 alone, (0, H) elsewhere.
    """

    name: str
    dataset: Any
    indices: NDArray[np.int64]
    vectors: NDArray[np.float32]


def chosen_rows(targets: Mapping[str, Any], anchors: int | None, generator: np.random.Generator) -> NDArray[np.int64]:
    """Returns the rows of all sets together to embed, ascending: (V,), numbered set after set.

    Args:
        targets: Set -> its rows.
        anchors: How many to draw; None for all.
        generator: The source of randomness.
    """
    every = np.arange(sum(map(len, targets.values())))
    if anchors is None or anchors >= len(every):
        return every
    return np.sort(generator.choice(every, anchors, replace=False))


def embedded_target(
    targets: Mapping[str, Any],
    chosen: NDArray[np.int64],
    ctx: StepContext,
    collator: Collator,
    pooling: Pooling,
    desc: str,
    of_answers: bool = False,
    normalise: bool = True,
) -> Iterator[Embedded]:
    """Yields the embeddings of the chosen rows, a set at a time; sets without any are left out. Collective.

    Args:
        targets: Set -> its rows.
        chosen: What :func:`chosen_rows` returned.
        ctx: The step.
        collator: Makes a batch of tensors from a list of rows.
        pooling: See :func:`~dataflex.scoring.embeddings.pool`.
        desc: What a progress bar says.
        of_answers: See :func:`~dataflex.scoring.hidden_state_embeddings`.
        normalise: As well.
    """
    start = 0
    for name, rows in targets.items():
        indices = chosen[(chosen >= start) & (chosen < start + len(rows))] - start
        start += len(rows)
        if len(indices):
            vectors = hidden_state_embeddings(
                ctx.model,
                rows,
                collator=collator,
                accelerator=ctx.accelerator,
                indices=indices,
                pooling=pooling,
                desc=desc,
                everywhere=False,  # their sum is all that is needed
                of_answers=of_answers,
                normalise=normalise,
            )
            yield Embedded(name, rows, indices, vectors)
