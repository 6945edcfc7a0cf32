"""Files with a number for each row of the train dataset, and which row each number is for.

Scores, weights and irreducible losses come in such files: ``.parquet``, ``.npz`` or ``.npy``. Which row a number is for
is not left to chance:

* A column (or array) ``row`` says it. The numbers are put in order; every row must be there, and once.
* Without it the numbers are those of the rows in their order, and there must be as many.
* What ``dataflex-cli score`` wrote holds a digest of the rows that it scored. It must be that of the train dataset,
  with ``row`` and without: the same row number means another row after another split.
* Where ``mixture_by`` has put the rows of a dataset in the order of its sources, row numbers of files are those that
  rows had before.
* A file without a digest is somebody's own. It is taken on trust, and a log line says so.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflex.core.decision_hash import decision_hash
from dataflex.core.errors import CheckpointError, Problem, rows_named
from dataflex.rows.digest import rows_digest
from dataflex.rows.split_sources import by_row_number, in_given_order
from dataflex.run.row_file import DIGEST, ROW, RowFile
from dataflex.utils.logging import logger

_SHAPING = "dataset, max_samples, val_size and the seed that splits it, template, tokenizer, cutoff_len, packing"


def placed(key: str, file: str, found: RowFile, dataset: Any) -> NDArray[np.float64] | Problem:
    """Returns the numbers of a file in the order of the train dataset's rows, or why they cannot be taken.

    Every rank calls it and comes to the same end; it makes no collective call.

    Args:
        key: The parameter that names the file, for the problem.
        file: The file, for messages.
        found: What :func:`~dataflex.run.row_file.read_rows` read there.
        dataset: The train dataset, tokenised, with a length.

    Returns:
        (N,) float64, NaN for null.
    """
    as_given = in_given_order(dataset)
    problem = _of_another_dataset(key, file, found, as_given) or _misplaced(key, file, found, len(dataset))
    if problem is not None:
        return problem
    if DIGEST not in found.about:
        how = "by its column row" if found.rows is not None else "in its order"
        logger.warning("%s does not say which dataset it is for: its numbers are taken on trust, %s", file, how)
    if found.rows is None:
        return by_row_number(dataset, found.values)
    placed_N = np.empty_like(found.values)
    placed_N[found.rows] = found.values
    return by_row_number(dataset, placed_N)


def require_same_numbers(saved: str, values_N: NDArray[Any], file: str | None) -> None:
    """Refuses to go on from a checkpoint with other numbers than those that the run began with.

    Args:
        saved: The :func:`~dataflex.core.decision_hash.decision_hash` of the numbers that the checkpoint holds.
        values_N: (N,) the numbers that were read now.
        file: The file that they come from; None for a column of the dataset.

    Raises:
        CheckpointError: They differ.
    """
    if saved != decision_hash(values_N):
        raise CheckpointError(
            f"{file or 'the column of the train dataset'} holds other numbers than when the checkpoint was written -> "
            "put back those, or begin a run of its own in another output_dir"
        )


def _of_another_dataset(key: str, file: str, found: RowFile, dataset: Any) -> Problem | None:
    """Returns a problem where the file says that it is for other rows."""
    theirs = found.about.get(DIGEST)
    if theirs is None:
        return None
    ours = rows_digest(dataset)
    if theirs == ours:
        return None
    made = ", ".join(f"{key} {found.about[key]}" for key in ("component", "step", "seed") if key in found.about)
    what = (
        f"{file} is for other rows: it has {found.about.get('rows', len(found.values))} rows with the digest {theirs}"
        f"{f' ({made})' if made else ''}, the train dataset {len(dataset)} with the digest {ours}"
    )
    way_out = f"make what shapes rows the same ({_SHAPING}), or run dataflex-cli score again with this configuration"
    return Problem(key, what, way_out)


def _misplaced(key: str, file: str, found: RowFile, size: int) -> Problem | None:
    """Returns a problem unless there is one number for each row."""
    count, rows = len(found.values), found.rows
    if rows is None:
        if count == size:
            return None
        what = f"{file} has {count} numbers and no column {ROW}, for {size} rows of the train dataset"
        return Problem(key, what, f"give one per row of the tokenised train dataset, or a column {ROW} with its number")
    if rows.shape != (count,) or rows.dtype.kind not in "iu":
        what = f"the column {ROW} of {file} holds {rows.dtype} of shape {rows.shape}"
        return Problem(key, what, "give the number of a row, from 0, for each of its numbers")
    outside = rows[(rows < 0) | (rows >= size)]
    if len(outside):
        what = f"{file} has numbers for {rows_named(outside)}, outside of the train dataset, whose rows are 0 to"
        return Problem(key, f"{what} {size - 1}", "make it from this dataset, or leave them out")
    times = np.bincount(rows.astype(np.int64), minlength=size)
    if (times > 1).any():
        what = f"{file} has more than one number for {rows_named(np.flatnonzero(times > 1))}"
        return Problem(key, what, "leave one for each row")
    if (times == 0).any():
        what = f"{file} has no number for {rows_named(np.flatnonzero(times == 0))} of the {size} of the train dataset"
        return Problem(key, what, "add them, with null where a row has none")
    return None
