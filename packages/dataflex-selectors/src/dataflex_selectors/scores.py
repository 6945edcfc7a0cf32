"""Rows by scores that were computed before: by ``dataflex-cli score``, or by anything that writes such a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from dataflex.core.errors import Problem
from dataflex.core.parameter_checks import one_of, positive, require
from dataflex.core.registry import register_selector
from dataflex.run.scores import read_scores
from dataflex.train.selector.base_selector import Selection, Selector
from numpy.typing import NDArray

from dataflex_selectors.pick import pick

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

_MODES = ("topk", "sample")


@register_selector("scores")
class ScoresSelector(Selector):
    """Takes rows by the scores in a file that dataflex-cli score wrote.

    Args:
        dataset: The train dataset, tokenised; the one that was scored.
        accelerator: The run's accelerator.
        data_collator: Not used.
        cache_dir: Not used.
        file: A Parquet file with a column ``score``: one number per row of the train dataset, null for never.
        mode: topk takes the highest scores, sample draws by them.
        temperature: Of sample: below 1 sharpens, above 1 softens.

    Raises:
        ConfigError: The file cannot be read or belongs to another number of rows; or a parameter is out of its range.
    """

    def __init__(
        self,
        dataset: Any,
        accelerator: Accelerator,
        data_collator: Callable[[list[Any]], Mapping[str, torch.Tensor]],
        cache_dir: str,
        file: str = "dataflex_scores.parquet",
        mode: str = "sample",
        temperature: float = 1.0,
    ) -> None:
        super().__init__(dataset, accelerator, data_collator, cache_dir)
        found, problem = _read(file, len(dataset))
        require("scores selector", problem, one_of("mode", mode, _MODES), positive("temperature", temperature))
        self.mode = mode
        self.temperature = float(temperature)
        self._scores_N = found

    def select(self, model: torch.nn.Module, step_id: int, num_samples: int, **kwargs: Any) -> Selection:
        """Returns ``num_samples`` rows that ``mode`` picks. See the base class.

        Raises:
            ComponentError: Fewer rows have a score than were asked for.
        """
        generator = self.generator(kwargs["context"].update)
        rows = pick(self._scores_N[:, None], num_samples, self.mode, self.temperature, generator)
        return Selection(rows, self._scores_N[rows])

    def scores(self, model: torch.nn.Module, step_id: int, **kwargs: Any) -> NDArray[np.float32]:
        """Returns the scores of the file: (N,). See the base class."""
        return self._scores_N


def _read(file: str, rows: int) -> tuple[NDArray[np.float32], Problem | None]:
    """Returns the scores, or what is wrong with the file."""
    nothing = np.zeros(0, dtype=np.float32)
    try:
        scores, _ = read_scores(Path(file).expanduser())
    except (OSError, ValueError) as error:
        return nothing, Problem("file", f"{file} cannot be read: {error}", "write it with dataflex-cli score")
    if len(scores) != rows:
        what = f"{file} has {len(scores)} scores for {rows} rows of the train dataset"
        return nothing, Problem(
            "file", what, "score this dataset again: dataset, max_samples, cutoff_len must be the same"
        )
    return scores, None
