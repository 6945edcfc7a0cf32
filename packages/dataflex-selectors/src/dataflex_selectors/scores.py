"""Rows by scores that were computed before: by ``dataflex-cli score``, or by anything that writes such a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from dataflex.core.context import RunAhead
from dataflex.core.cost import Ahead, Cost
from dataflex.core.decision_hash import decision_hash
from dataflex.core.errors import Problem, rows_named
from dataflex.core.parameter_checks import one_of, positive, require
from dataflex.core.registry import register_selector
from dataflex.run.row_file import RowFile, read_rows
from dataflex.run.row_values import placed, require_same_numbers
from dataflex.run.score_file import SCORE
from dataflex.train.selector.base_selector import Selection, Selector
from numpy.typing import NDArray

from dataflex_selectors.parts.enough import require_enough
from dataflex_selectors.parts.finite_scores import scored_places
from dataflex_selectors.parts.pick import pick

if TYPE_CHECKING:
    import torch

_MODES = ("topk", "sample")


@register_selector("scores")
class ScoresSelector(Selector):
    """Takes rows by the scores in a file that dataflex-cli score wrote.

    Args:
        file: A .parquet, .npz or .npy file with a column or array ``score``: a number for each row of the train
            dataset, null or -inf for never. See :mod:`dataflex.run.row_values`.
        mode: topk takes the highest scores, sample draws by them.
        temperature: Of sample: below 1 sharpens, above 1 softens.
        **run: What every selector is given; ``dataset`` is the one that was scored.

    Raises:
        ConfigError: The file cannot be read, is for other rows, or holds +inf; or a parameter is out of its range.
    """

    def __init__(
        self, *, file: str = "dataflex_scores.parquet", mode: str = "sample", temperature: float = 1.0, **run: Any
    ) -> None:
        super().__init__(**run)
        contents = read_rows("file", file, SCORE)
        problem = contents if isinstance(contents, Problem) else _above("file", file, contents)
        require("scores selector", problem, one_of("mode", mode, _MODES), positive("temperature", temperature))
        assert not isinstance(contents, Problem)
        found = placed("file", file, contents, self.dataset)
        require("scores selector", found if isinstance(found, Problem) else None)
        assert not isinstance(found, Problem)
        self.mode = mode
        self.temperature = float(temperature)
        self._scores_N, self._file = found, file

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """Nothing is computed: the scores are there. See the base class."""
        return Cost(host_bytes=8 * ahead.rows.rows)

    def check_run(self, model: torch.nn.Module, run: RunAhead) -> None:
        """Refuses a file with fewer scores than an update asks for. See the base class."""
        found = len(scored_places(self._scores_N))
        require_enough(run.most_rows, found, len(self._scores_N), "have a score", "give it for more rows")

    def select(self, model: torch.nn.Module, step_id: int, num_samples: int, **kwargs: Any) -> Selection:
        """Returns ``num_samples`` rows that ``mode`` picks. See the base class.

        Raises:
            ComponentError: Fewer rows have a score than were asked for.
        """
        generator = self.generator(kwargs["context"].update)
        rows = pick(self._scores_N[:, None], num_samples, self.mode, self.temperature, generator)
        return Selection(rows, self._scores_N[rows], candidates=self._scores_N)

    def scores(self, model: torch.nn.Module, step_id: int, **kwargs: Any) -> NDArray[np.float64]:
        """Returns the scores of the file: (N,). See the base class."""
        return self._scores_N

    def state_dict(self) -> dict[str, Any]:
        """Returns a digest of the scores: a resumed run reads the file again, and it must hold the same."""
        return {"numbers": decision_hash(self._scores_N)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Compares the scores with those of :meth:`state_dict`.

        Raises:
            CheckpointError: The file holds others.
        """
        require_same_numbers(state["numbers"], self._scores_N, self._file)


def _above(key: str, file: str, found: RowFile) -> Problem | None:
    above = found.rows_where(np.isposinf(found.values))
    if not len(above):
        return None
    return Problem(key, f"the score of {rows_named(above)} in {file} is +inf", "write numbers, -inf or null for never")
