"""Where scores that never change come from: lengths, columns and files; and where a pass over losses is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataflex.core.context import PassOptions
from dataflex.core.errors import Problem, refuse
from dataflex.core.score_names import COLUMN, FILE, LENGTH
from dataflex.rows.lengths import row_lengths
from dataflex.rows.score_columns import ScoreColumns
from dataflex.run.row_file import read_rows
from dataflex.run.row_values import placed
from dataflex.run.score_file import SCORE
from dataflex.scoring.passes.fingerprint import dataset_digest, digest, model_digest
from dataflex.scoring.passes.score_store import ScoreStore

if TYPE_CHECKING:
    from accelerate import Accelerator

ScoreSource = Callable[[str], NDArray[np.float64]]
"""``source(argument)`` returns the score of every row: (N,), NaN for a row without one. Makes no collective call."""


def fixed_sources(dataset: Any, columns: ScoreColumns | None = None) -> dict[str, ScoreSource]:
    """Returns the sources by their kind: ``length``, ``column`` and ``file``.

    Args:
        dataset: The train dataset, tokenised.
        columns: Its columns, and those that were kept aside; None where none were.
    """
    known = ScoreColumns(dataset) if columns is None else columns
    return {
        LENGTH: lambda _: row_lengths(dataset).astype(np.float64),
        COLUMN: known.read,
        FILE: lambda path: numbers_of_file(path, dataset),
    }


def numbers_of_file(path: str, dataset: Any) -> NDArray[np.float64]:
    """Returns the numbers of a file in the order of the rows: (N,), NaN for null. Makes no collective call.

    Args:
        path: A .parquet, .npz or .npy file with a column or array ``score``, or a single one: see
            :mod:`dataflex.run.row_values`.
        dataset: The train dataset, tokenised.

    Raises:
        ConfigError: The file cannot be read, has not one number per row, or says that it is for other rows.
    """
    contents = read_rows(FILE, path, SCORE, sole=True)
    found = contents if isinstance(contents, Problem) else placed(FILE, path, contents, dataset)
    if isinstance(found, Problem):
        refuse([found])
    assert not isinstance(found, Problem)
    return found


def loss_store(
    model: torch.nn.Module,
    dataset: Any,
    accelerator: Accelerator | None,
    rows: NDArray[np.int64] | None,
    step: int,
    how: PassOptions,
) -> ScoreStore | None:
    """Returns where the losses of a pass are kept while it runs; None for nowhere.

    Args:
        model: The model that scores.
        dataset: The train dataset.
        accelerator: The run's accelerator.
        rows: The rows of the pass; None for all.
        step: Optimizer steps done.
        how: Where, and whose.
    """
    if not how.cache_dir:
        return None
    own = () if rows is None else (digest(rows.tobytes().hex()),)

    def fingerprint() -> str:
        return digest("losses", model_digest(model), dataset_digest(dataset), how.token_budget, step, *own)

    return ScoreStore.of(how.cache_dir, accelerator, fingerprint, how.owner)
