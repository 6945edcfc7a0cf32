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

from dataflex.data.digest import rows_digest
from dataflex.data.rows import fetch
from dataflex.run.files import replacing
from dataflex.run.row_file import DIGEST, METADATA, ROW, VALUES_DIGEST, values_digest
from dataflex.scoring.lengths import row_lengths

SCORE = "score"
_TEXT_TOKENS = 64
_ROWS = 4096  # decoded at a time


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
    columns: dict[str, Any] = {
        ROW: np.arange(len(scores), dtype=np.int64),
        SCORE: pa.array(scores.astype(np.float64), from_pandas=True),
        "tokens": row_lengths(dataset),
    }
    if tokenizer is not None:
        columns["text"] = _texts(dataset, tokenizer)
    digests = {SCORE: values_digest(scores)}
    about = {**about, "rows": len(scores), DIGEST: rows_digest(dataset), VALUES_DIGEST: digests}
    table = pa.table(columns).replace_schema_metadata({METADATA: json.dumps(about, default=str)})
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


def _texts(dataset: Any, tokenizer: Any) -> list[str]:
    texts: list[str] = []
    for start in range(0, len(dataset), _ROWS):
        rows = fetch(dataset, range(start, min(start + _ROWS, len(dataset))))
        texts += tokenizer.batch_decode([list(row["input_ids"])[:_TEXT_TOKENS] for row in rows])
    return texts
