"""``column``: a weight for each row that was written down beforehand. No paper.

The weight stands in a column of the tokenised dataset, or in a file with one number per row of it. LLaMA-Factory drops
the columns of a source when it tokenises it, and the rows that it cannot use; so a column survives only in data that
was tokenised elsewhere (``tokenized_path``, or a script of your own), and a file counts the rows that are left.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from dataflex.core.errors import ConfigError, Problem, listed, nearest
from dataflex.core.parameter_checks import flag, require
from dataflex.core.registry import register_weighter
from dataflex.data.rows import MixedSources, fetch
from dataflex.train.weighter.base_weighter import Weighter
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from dataflex.train.trainer.weight_trainer import WeightTrainer

_CHUNK = 4096  # rows read at a time
_KINDS = (".npy", ".npz", ".parquet")


@register_weighter("column")
class ColumnWeighter(Weighter):
    """A weight for each row, from a column of the dataset or from a file.

    Args:
        dataset: The train dataset, tokenised.
        column: The column of the dataset; with ``file``, that of a .parquet, or the array of an .npz.
        file: A .npy, .npz or .parquet file with one number per row of the tokenised train dataset, in its order; null
            for a column of the dataset itself.
        allow_negative: Whether a weight may be below 0, which raises the loss of the row.
        normalise: Whether the weights are scaled so that their mean over the rows of the train dataset is 1.

    Raises:
        ConfigError: A parameter has another value, or the weights cannot be read, are not one finite number per row,
            or are negative; the message holds every problem of the parameters.
    """

    def __init__(
        self,
        dataset: Any,
        column: str = "weight",
        file: str | None = None,
        allow_negative: bool = False,
        normalise: bool = False,
    ) -> None:
        super().__init__()
        require(
            "column weighter",
            _text("column", column),
            None if file is None else _text("file", file),
            flag("allow_negative", allow_negative),
            flag("normalise", normalise),
        )
        try:
            weights_N = column_of(dataset, column) if file is None else read_weights(Path(file).expanduser(), column)
        except ConfigError:  # it says itself what is wrong
            raise
        except (OSError, ValueError, TypeError) as error:
            require(
                "column weighter", Problem("file" if file else "column", f"{file or column} cannot be read: {error}")
            )
        require("column weighter", *_problems(weights_N, len(dataset), file, allow_negative, normalise))
        self.weights_N = (weights_N / weights_N.mean() if normalise else weights_N).astype(np.float32)

    def get_weighted_loss(
        self, losses: torch.Tensor, *, ctx: WeightTrainer, model: Any = None, inputs: Any = None
    ) -> torch.Tensor:
        """Returns the mean of w_i l_i over this rank's B samples. See the base class."""
        return (ctx.of_batch(self.weights_N).to(losses.device) * losses).mean()


def read_weights(path: Path, column: str) -> NDArray[np.float64]:
    """Returns the numbers of a file: (N,) float64, NaN for null.

    Args:
        path: A .npy, .npz or .parquet file.
        column: The column of a .parquet or the array of an .npz; an .npz with one array needs none.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is none of the three, or does not hold the column.
    """
    if path.suffix not in _KINDS:
        raise ValueError(f"it ends in {path.suffix!r}; allowed: {', '.join(_KINDS)}")
    if path.suffix == ".npy":
        return np.asarray(np.load(path, allow_pickle=False), dtype=np.float64)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            name = arrays.files[0] if len(arrays.files) == 1 else column
            _require_column(name, arrays.files)
            return np.asarray(arrays[name], dtype=np.float64)
    _require_column(column, pq.read_schema(path).names)
    return np.asarray(pq.read_table(path, columns=[column]).column(column).to_numpy(), dtype=np.float64)


def column_of(dataset: Any, column: str) -> NDArray[np.float64]:
    """Returns a column of the dataset: (N,) float64, NaN for null.

    Raises:
        ConfigError: The dataset has no such column.
        ValueError: A value is no number.
    """
    if isinstance(dataset, MixedSources):
        return np.concatenate([column_of(source, column) for source in dataset.sources])
    if isinstance(dataset, datasets.Dataset) and column in dataset.column_names:
        return np.asarray(dataset.with_format("arrow", columns=[column])[:].column(column).to_numpy(), dtype=np.float64)
    names = dataset.column_names if isinstance(dataset, datasets.Dataset) else list(fetch(dataset, [0])[0])
    if column not in names:
        what = f"the tokenised train dataset has no column {column!r} but {listed(names)}"
        way_out = "LLaMA-Factory drops other columns when it tokenises: give the weights as a file, by row number"
        require("column weighter", Problem("column", what, nearest(column, names) or way_out))
    chunks = [range(start, min(start + _CHUNK, len(dataset))) for start in range(0, len(dataset), _CHUNK)]
    return np.array([row[column] for chunk in chunks for row in fetch(dataset, chunk)], dtype=np.float64)


def _require_column(name: str, names: list[str]) -> None:
    if name not in names:
        raise ValueError(f"it has no column {name!r} but {listed(names)} -> name one of them as column")


def _problems(
    weights_N: NDArray[np.float64], rows: int, file: str | None, allow_negative: bool, normalise: bool
) -> list[Problem]:
    where = "column" if file is None else "file"
    if weights_N.shape != (rows,):
        what = f"found weights of shape {weights_N.shape} for {rows} rows of the tokenised train dataset"
        return [Problem(where, what, "give one number per row; LLaMA-Factory leaves rows out that it cannot use")]
    bad = np.flatnonzero(~np.isfinite(weights_N))
    if len(bad):
        return [Problem(where, f"the weight of {len(bad)} rows is no finite number, first of row {bad[0]}")]
    negative = np.flatnonzero(weights_N < 0)
    if len(negative) and not allow_negative:
        what = f"the weight of {len(negative)} rows is negative, first of row {negative[0]}"
        return [Problem(where, what, "set allow_negative: true if their loss is to rise")]
    if (normalise or not allow_negative) and not weights_N.mean() > 0:
        return [Problem(where, f"the mean weight is {weights_N.mean():g}, so nothing would be learnt")]
    return []


def _text(key: str, found: Any) -> Problem | None:
    return None if isinstance(found, str) and found else Problem(key, f"found {found!r}, allowed: a name")
