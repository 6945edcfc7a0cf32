"""The file of scores that ``dataflex-cli score`` writes and a later run takes.

A Parquet table with a row per row of the train dataset, in its order: ``row``, ``score`` (null where a row has none,
-inf where it must never be taken), ``tokens``, and the beginning of its ``text``, for a person. Whose scores they are,
and of which rows, stands in the file's metadata; :mod:`dataflex.run.row_values` reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from numpy.typing import NDArray

from dataflex.core.files import replacing
from dataflex.rows.columns import column_chunks
from dataflex.rows.digest import rows_digest
from dataflex.rows.lengths import row_lengths
from dataflex.run.row_file import DIGEST, METADATA, ROW, VALUES_DIGEST, values_digest
from dataflex.utils.progress import Progress

SCORE = "score"
_TEXT_TOKENS = 64
_ROWS = 4096  # decoded at a time
_GROUP = 2**20  # rows that are written at a time


def write_scores(
    path: Path, scores: NDArray[np.floating[Any]], dataset: Any, tokenizer: Any, about: Mapping[str, Any]
) -> None:
    """Writes the table; the file is there whole or not at all.

    Args:
        path: The file.
        scores: (N,) scores, NaN for a row without one.
        dataset: The train dataset, N rows.
        tokenizer: Decodes the beginning of each row; None leaves ``text`` out.
        about: What goes into the metadata, as JSON, beside the number and the digest of the rows and the digest of
            the scores.
    """
    lengths_N = row_lengths(dataset)
    digests = {SCORE: values_digest(scores)}
    about = {**about, "rows": len(scores), DIGEST: rows_digest(dataset), VALUES_DIGEST: digests}
    fields = [(ROW, pa.int64()), (SCORE, pa.float64()), ("tokens", pa.int64())]
    if tokenizer is not None:
        fields.append(("text", pa.string()))
    schema = pa.schema(fields, metadata={METADATA: json.dumps(about, default=str)})
    with (
        replacing(path) as temporary,
        pq.ParquetWriter(temporary, schema) as writer,
        Progress(f"writing {path.name}", len(scores)) as progress,
    ):
        # A group of rows at a time: the texts of all rows together may be larger than memory.
        for first in range(0, len(scores), _GROUP):
            last = min(first + _GROUP, len(scores))
            columns = [
                pa.array(np.arange(first, last, dtype=np.int64)),
                pa.array(scores[first:last].astype(np.float64), from_pandas=True),
                pa.array(lengths_N[first:last]),
            ]
            if tokenizer is not None:
                columns.append(pa.array(_texts(dataset, tokenizer, first, last, progress), pa.string()))
            writer.write_table(pa.table(columns, schema=schema), row_group_size=_GROUP)


def _texts(dataset: Any, tokenizer: Any, first: int, last: int, progress: Progress) -> list[str]:
    """Returns the beginning of the text of the rows from ``first`` to before ``last``, and says when they are read."""
    texts: list[str] = []
    for start in range(first, last, _ROWS):
        rows = np.arange(start, min(start + _ROWS, last), dtype=np.int64)
        for chunk in column_chunks(dataset, "input_ids", rows):
            texts += tokenizer.batch_decode([ids[:_TEXT_TOKENS].tolist() for ids in chunk])
            progress.done(len(chunk))
    return texts
