"""Scores of rows that never change while a run lasts: read once, the same on every rank and after a resume."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dataflex.core.errors import CheckpointError, ComponentError, blaming
from dataflex.core.ranks.agreement import on_every_rank, require_agreement
from dataflex.core.score_names import ScoreName
from dataflex.run.row_file import values_digest
from dataflex.scoring.score_sources import ScoreSource

if TYPE_CHECKING:
    from accelerate import Accelerator


class FixedScores:
    """Scores by name, 8 bytes per row and name.

    Args:
        rows: N, rows of the train dataset.
        sources: Kind of a name -> what makes its scores.
        accelerator: The run's accelerator; None means a single process.
    """

    def __init__(self, rows: int, sources: Mapping[str, ScoreSource], accelerator: Accelerator | None) -> None:
        self.sources = dict(sources)
        self._rows, self._accelerator = rows, accelerator
        self._values: dict[str, NDArray[np.float64]] = {}
        self._digests: dict[str, str] = {}  # of these
        self._expected: dict[str, str] = {}  # those of the checkpoint that the run goes on from

    def of(self, name: str) -> NDArray[np.float64]:
        """Returns the scores of all rows: (N,), not to be written to. Collective the first time.

        Raises:
            ConfigError: They cannot be read.
            CheckpointError: They are others than when the checkpoint was written.
            ComponentError: A source gave something else than a number per row, or ranks read different numbers.
        """
        if name not in self._values:
            on_every_rank(self._accelerator, lambda: self._read(name))
            if self._accelerator is not None:
                require_agreement(self._digests[name], self._accelerator, f"scores '{name}'")
        return self._values[name]

    def state_dict(self) -> dict[str, str]:
        """Returns digests of what was read."""
        return self._expected | self._digests

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Restores what :meth:`state_dict` returned. What was read already is compared at once.

        Raises:
            CheckpointError: It is another.
        """
        self._expected = dict(state)
        for name in self._values:
            self._require_same(name)

    def _read(self, name: str) -> None:
        asked = ScoreName.of(name)
        with blaming(f"scores '{name}'"):
            values_N = np.asarray(self.sources[asked.kind](asked.argument), dtype=np.float64).view()
            if values_N.shape != (self._rows,):
                what = f"{values_N.shape} numbers for {self._rows} rows"
                raise ComponentError(f"it gave {what} -> give one for each row of the train dataset")
            self._digests[name] = values_digest(values_N)
            self._require_same(name)
        values_N.setflags(write=False)
        self._values[name] = values_N

    def _require_same(self, name: str) -> None:
        if self._expected.get(name, self._digests[name]) != self._digests[name]:
            raise CheckpointError(
                f"the scores '{name}' are other numbers than when the checkpoint was written -> put back the data or "
                "the file that they come from, or begin a run of its own in another output_dir"
            )
