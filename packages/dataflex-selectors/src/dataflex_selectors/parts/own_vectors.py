"""The base class of selectors that compare the rows of the train dataset with each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from dataflex.core.context import RunAhead
from dataflex.core.cost import Ahead, Amount, Work
from dataflex.core.errors import CheckpointError, ComponentError
from dataflex.core.parameter_checks import flag, one_of, require, stated
from dataflex.rows.columns import labelled_rows
from dataflex.scoring.embedder import embedding_work, vector_width
from numpy.typing import NDArray

from dataflex_selectors.parts.embeds_rows import EmbedsRows
from dataflex_selectors.parts.enough import require_enough
from dataflex_selectors.parts.vector_file import VectorFile, vectors_problem

if TYPE_CHECKING:
    import torch

TOO_FEW = ("error", "relax")


class OwnVectors(EmbedsRows):
    """Base of selectors that leave rows out which are near others. Its methods are collective.

    Args:
        vectors: A .npy file with a vector for each row, in place of ``embedding``.
        exclude_seen: Whether rows of earlier updates are left out until all that stay have come.
        too_few: What to do where fewer rows stay than are asked for: error, or relax, which takes the least near of
            the others.
        **run: How rows are embedded, and what every selector is given: see
            :class:`~dataflex_selectors.parts.embeds_rows.EmbedsRows`.

    Attributes:
        problems: What is wrong with these parameters.
        exclude_seen: As given.
        too_few: As given.
    """

    def __init__(
        self,
        *,
        embedding: str = "ngrams",
        vectors: str | None = None,
        exclude_seen: bool = True,
        too_few: str = "error",
        **run: Any,
    ) -> None:
        super().__init__(embedding=embedding, **run)
        self.problems = stated(
            *self.problems,
            vectors_problem("vectors", vectors, embedding),
            flag("exclude_seen", exclude_seen),
            one_of("too_few", too_few, TOO_FEW),
        )
        self.exclude_seen, self.too_few = exclude_seen, too_few
        self._vectors_file = vectors
        self._given: VectorFile | None = None
        self._kept_vectors: NDArray[np.float32] | None = None
        self._seen: NDArray[np.bool_] = np.zeros(len(self.dataset), dtype=np.bool_)  # (N,) not to be given again

    def open_vectors(self, who: str) -> None:
        """Opens the file of vectors, where there is one. Called once, by the constructor of the derived class.

        Raises:
            ConfigError: It is for another number of rows.
        """
        if self._vectors_file is not None:
            self._given = VectorFile("vectors", self._vectors_file, self.dataset)
            require(who, self._given.problem)

    def check_run(self, model: torch.nn.Module, run: RunAhead) -> None:
        """Refuses too few rows with a label, and a model without embeddings. See the base class."""
        if self._given is None:
            super().check_run(model, run)
        else:
            require_enough(max(1, run.most_rows), len(self.eligible()), len(self.dataset))

    def eligible(self) -> NDArray[np.int64]:
        """Returns the rows with a label that have a vector, in row order: (n,). Looked up once."""
        if self._given is None:
            return super().eligible()
        if self._eligible is None:
            self._eligible = labelled_rows(self.dataset)
        return self._eligible

    def vectors_of(self, model: torch.nn.Module, step_id: int, *, keep: bool = False) -> RowVectors:
        """Returns the vectors of the eligible rows, on rank 0; the other ranks get none. Collective.

        Args:
            model: The model being trained.
            step_id: Global optimizer steps done.
            keep: Whether they will be wanted again. They are kept where they do not move and take a model to make.
        """
        if self._given is not None:
            return RowVectors(self._given, self.eligible())
        if self._kept_vectors is None:
            found = self.embedded(model, step_id, self.eligible())
            if not (keep and self.is_dear):
                return RowVectors(found, None)
            self._kept_vectors = found
        return RowVectors(self._kept_vectors, None)

    @property
    def is_dear(self) -> bool:
        """Whether vectors that never change take a model to make."""
        return self._given is None and not self.embedder.moves and self.embedder.embedding != "ngrams"

    def too_few_found(self, count: int, found: int, what: str, way_out: str) -> None:
        """Refuses an update for which too few rows stay.

        Raises:
            ComponentError: Always.
        """
        raise ComponentError(
            f"{count} rows are wanted, and {found} of {len(self.eligible())} are left once {what} -> {way_out}, a "
            "shorter stretch from this update to the next, as a filter a smaller keep:, or too_few: relax, which takes "
            "the least near of the others"
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns which rows have been given, and a digest of the file of vectors. See the base class."""
        file = None if self._given is None else self._given.digest()
        return {"seen": np.packbits(self._seen), "size": len(self._seen), "vectors": file}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned.

        Raises:
            CheckpointError: The file of vectors holds others.
        """
        self._seen = np.unpackbits(np.asarray(state["seen"]), count=int(state["size"])).astype(np.bool_)
        if self._given is not None and state["vectors"] != self._given.digest():
            raise CheckpointError(
                f"{self._vectors_file} holds other vectors than when the checkpoint was written -> put back those, or "
                "begin a run of its own in another output_dir"
            )


class RowVectors:
    """The vectors of the eligible rows, by their places among them.

    Args:
        source: (E, D) vectors of length 1, or the file that has those of all rows.
        rows_E: (E,) the rows that they are of, for a file; None where place and row of the source agree.
    """

    def __init__(self, source: NDArray[np.float32] | VectorFile, rows_E: NDArray[np.int64] | None) -> None:
        self._source, self._rows = source, rows_E

    def __getitem__(self, places_B: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns the vectors at some places: (B, D) of length 1, or 0."""
        found: NDArray[np.float32] = self._source[places_B if self._rows is None else self._rows[places_B]]
        return found


def vectors_work(params: Mapping[str, Any], rows: Amount) -> Work:
    """Returns what it costs to make the vectors of rows with these parameters of :class:`OwnVectors`."""
    return Work() if params["vectors"] is not None else embedding_work(params, rows)


def vectors_wide(params: Mapping[str, Any], ahead: Ahead) -> int:
    """Returns the numbers of a vector; of a file, which is not read for this, as many as the model's hidden states."""
    return ahead.width if params["vectors"] is not None else vector_width(params, ahead)
