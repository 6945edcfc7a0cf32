"""``column``: a weight for each row, given in a column or a file. No paper.

The weight stands in a column of the tokenised dataset, or in a file with one number per row of it. LLaMA-Factory drops
the columns of a source when it tokenises it, and the rows that it cannot use; so a column survives only in data that
was tokenised elsewhere (``tokenized_path``, or a script of your own), and a file counts the rows that are left.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
from dataflex.core.cost import Ahead, Cost
from dataflex.core.decision_hash import decision_hash
from dataflex.core.errors import ConfigError, Problem, listed, nearest, rows_named
from dataflex.core.parameter_checks import FLOAT32_MOST, flag, require, text
from dataflex.core.registry import register_weighter
from dataflex.rows.columns import number_column
from dataflex.rows.views import fetch
from dataflex.run.row_file import RowFile, read_rows
from dataflex.run.row_values import placed, require_same_numbers
from dataflex.train.weighter.base_weighter import StepContext, Weighter
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


@register_weighter("column")
class ColumnWeighter(Weighter):
    """A weight for each row, from a column of the dataset or from a file.

    Args:
        dataset: The train dataset, tokenised.
        column: The column of the dataset; with ``file``, that of a .parquet, or the array of an .npz.
        file: A .npy, .npz or .parquet file with a number for each row of the tokenised train dataset, see
            :mod:`dataflex.run.row_values`; null for a column of the dataset itself.
        allow_negative: Whether a weight may be below 0, which raises the loss of the row.
        normalise: Whether the weights are scaled so that their mean over the rows of the train dataset is 1.

    Raises:
        ConfigError: A parameter has another value, or the weights cannot be read, are for other rows, are not one
            number per row that 32 bits hold, or are negative; the message holds every problem of the parameters.
    """

    draws = False

    def __init__(
        self,
        dataset: Any,
        column: str = "weight",
        file: str | None = None,
        allow_negative: bool = False,
        normalise: bool = False,
    ) -> None:
        super().__init__()
        contents = None if file is None else _contents(file, column)
        require(
            "column weighter",
            text("column", column),
            contents if isinstance(contents, Problem) else None,
            flag("allow_negative", allow_negative),
            flag("normalise", normalise),
            _problem("file", contents, allow_negative, normalise) if isinstance(contents, RowFile) else None,
        )
        if isinstance(contents, RowFile):
            weights_N = placed("file", str(file), contents, dataset)
        else:
            weights_N = _from_dataset(dataset, column)
        require("column weighter", weights_N if isinstance(weights_N, Problem) else None)
        assert not isinstance(weights_N, Problem)
        read = RowFile(weights_N, None, {})
        require("column weighter", _problem("column" if file is None else "file", read, allow_negative, normalise))
        self.weights_N, self._file = _narrowed(weights_N, normalise), file

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """Weights are looked up. See the base class."""
        return Cost()

    def get_weighted_loss(
        self, losses: torch.Tensor, *, ctx: StepContext, model: Any = None, inputs: Any = None
    ) -> torch.Tensor:
        """Returns the mean of w_i l_i over this rank's B samples. See the base class."""
        return (ctx.of_batch(self.weights_N).to(losses.device) * losses).mean()

    def state_dict(self) -> dict[str, Any]:
        """Returns a digest of the weights: a resumed run reads them again, and they must be the same."""
        return {"numbers": decision_hash(self.weights_N)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Compares the weights with those of :meth:`state_dict`.

        Raises:
            CheckpointError: They are others.
        """
        require_same_numbers(state["numbers"], self.weights_N, self._file)


def _contents(file: Any, column: Any) -> RowFile | Problem | None:
    """Returns what the file holds; None where the name of the column, which is checked beside it, is no name."""
    if text("column", column) is not None:
        return text("file", file)
    return read_rows("file", file, column, sole=isinstance(file, str) and Path(file).suffix == ".npz")


def _from_dataset(dataset: Any, column: str) -> NDArray[np.float64] | Problem:
    try:
        weights_N = column_of(dataset, column)
    except ConfigError:  # it says itself what is wrong
        raise
    except (ValueError, TypeError) as error:
        return Problem("column", f"{column} cannot be read: {error}")
    if weights_N.shape == (len(dataset),):
        return weights_N
    what = f"{column} holds weights of shape {weights_N.shape} for {len(dataset)} rows"
    return Problem("column", what, "give one number per row")


def column_of(dataset: Any, column: str) -> NDArray[np.float64]:
    """Returns a column of the dataset: (N,) float64, NaN for null and for a source without the column.

    Raises:
        ConfigError: The dataset has no such column.
        ValueError: A value is no number.
    """
    found = number_column(dataset, column)
    if found is not None:
        return found
    names = dataset.column_names if isinstance(dataset, datasets.Dataset) else list(fetch(dataset, [0])[0])
    what = f"the tokenised train dataset has no column {column!r} but {listed(names)}"
    dropped = "LLaMA-Factory drops other columns when it tokenises, TRL when it packs"
    way_out = f"{dropped}: give the weights as a file, by row number"
    require("column weighter", Problem("column", what, nearest(column, names) or way_out))
    raise AssertionError("it has been refused")


def _problem(key: str, found: RowFile, allow_negative: bool, normalise: bool) -> Problem | None:
    """Returns what is wrong with the weights, or None."""
    weights_N = found.values
    bad = found.rows_where(~np.isfinite(weights_N))
    if len(bad):
        return Problem(
            key, f"the weight of {rows_named(bad)} is no finite number", "give each row a number, 0 for no effect"
        )
    large = found.rows_where(np.abs(weights_N) > FLOAT32_MOST)
    if len(large):
        what = f"the weight of {rows_named(large)} is more than 32 bits hold, {FLOAT32_MOST:.3g}"
        return Problem(key, what, "scale the weights")
    negative = found.rows_where(weights_N < 0)
    if len(negative) and not allow_negative:
        what = f"the weight of {rows_named(negative)} is negative"
        return Problem(key, what, "set allow_negative: true if their loss is to rise")
    if (normalise or not allow_negative) and not (len(weights_N) and weights_N.mean() > 0):
        what = f"the mean weight is {weights_N.mean() if len(weights_N) else 0:g}, so nothing would be learnt"
        return Problem(key, what, "give some rows a weight above 0")
    return None


def _narrowed(weights_N: NDArray[np.float64], normalise: bool) -> NDArray[np.float32]:
    """Returns the weights as training uses them. Divided by a mean near 0, they may be more than 32 bits hold."""
    if normalise:
        weights_N = weights_N / weights_N.mean()
    largest = float(np.abs(weights_N).max(initial=0.0))
    if not largest <= FLOAT32_MOST:
        what = f"divided by its mean, the largest weight is {largest:.3g}, more than 32 bits hold"
        require("column weighter", Problem("normalise", what, "set normalise: false, or scale the weights"))
    return weights_N.astype(np.float32)
