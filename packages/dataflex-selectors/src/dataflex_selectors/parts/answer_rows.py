"""The answers of tokenised rows without the prompts before them.

An answer is a stretch of tokens with labels; a row of several turns has several. Alone it stands behind a header, the
tokens that end every prompt (a template's mark of the assistant), so that its first token is predicted too; and behind
the start token, where the row begins with one. With neither, the first token is not predicted.

Letters: N rows, A answers, T tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from dataflex.rows.columns import IGNORED, columns_chunks
from dataflex.utils.progress import tracked
from numpy.typing import NDArray

from dataflex_selectors.parts.other_model import parts

_COLUMNS = ("input_ids", "labels")
_LOOKED_AT = 256  # prompts whose common end is the header
_LONGEST = 16  # tokens of a header


def answers_of(labels_T: NDArray[Any]) -> list[tuple[int, int]]:
    """Returns where the answers of a row begin and end, those with a prompt before them alone.

    Args:
        labels_T: (T,) labels before the shift, -100 for what is not learnt; empty where a row has none of its own.
    """
    marked_T = np.asarray(labels_T) != IGNORED
    return [(start, end) for start, end in parts(marked_T) if start > 0 and marked_T[start]]


def rows_with_answers(dataset: Any, enough: int) -> int:
    """Returns how many rows have an answer behind a prompt; it stops looking where there are ``enough``."""
    found = 0
    for chunk in columns_chunks(dataset, ("labels",), range(len(dataset))):
        found += sum(bool(answers_of(labels)) for (labels,) in chunk)
        if found >= enough:
            break
    return found


def header_of(dataset: Any, most: int = _LONGEST) -> list[int]:
    """Returns the tokens that end every prompt: at most ``most``, of the first 256 answers.

    With one row, or where all prompts are the same, its end is nothing that a template put there, and found all the
    same: give the number of tokens then.

    Args:
        dataset: The tokenised dataset.
        most: Most tokens.
    """
    common: list[int] | None = None
    looked = 0
    for chunk in columns_chunks(dataset, _COLUMNS, range(len(dataset))):
        for ids, labels in chunk:
            for start, _ in answers_of(labels):
                prompt = [int(token) for token in ids[max(0, start - most) : start]]
                common = prompt if common is None else _common_end(common, prompt)
                looked += 1
        if looked >= _LOOKED_AT or common == []:
            break
    return common or []


def _common_end(first: list[int], second: list[int]) -> list[int]:
    count = 0
    while count < min(len(first), len(second)) and first[-1 - count] == second[-1 - count]:
        count += 1
    return first[len(first) - count :]


class AnswersAlone:
    """The answers of some rows as a dataset: ``input_ids`` and ``labels`` of each, with nothing learnt of the header.

    Args:
        dataset: The tokenised dataset.
        rows: (n,) row numbers.
        header: The tokens before each answer, or how many of its own prompt's last ones.
        start_token: The token that texts begin with; None where they have none. It is put before the header of an
            answer whose row begins with it.
        desc: What a progress bar says.

    Attributes:
        owners: (A,) the place in ``rows`` of each answer's row.
        predicted: (A,) how many of its tokens are predicted alone.
    """

    def __init__(
        self, dataset: Any, rows: NDArray[np.int64], header: list[int] | int, start_token: int | None, desc: str
    ) -> None:
        self._dataset, self._rows, self._header, self._start_token = dataset, rows, header, start_token
        found = [np.empty((0, 4), dtype=np.int64)]
        first = 0
        for chunk in tracked(columns_chunks(dataset, _COLUMNS, rows), desc, len(rows), size=len):
            answers = [
                (place, start, end, len(self._before(ids, start)))
                for place, (ids, labels) in enumerate(chunk, first)
                for start, end in answers_of(labels)
            ]
            found.append(np.array(answers, dtype=np.int64).reshape(-1, 4))
            first += len(chunk)
        table_A4 = np.concatenate(found)
        self.owners, self._starts, self._ends, self._befores = table_A4.T
        self.predicted = self._ends - self._starts - (self._befores == 0)

    def __len__(self) -> int:
        return len(self.owners)

    def row_lengths(self) -> NDArray[np.int64]:
        """Returns the tokens of each answer and of what stands before it: (A,) int64."""
        return np.asarray(self._befores + self._ends - self._starts)

    def __getitem__(self, answer: int) -> dict[str, list[int]]:
        row = self._rows[self.owners[answer] : self.owners[answer] + 1]
        (((ids, _),),) = columns_chunks(self._dataset, _COLUMNS, row)
        start, end = int(self._starts[answer]), int(self._ends[answer])
        before, tokens = self._before(ids, start), [int(token) for token in ids[start:end]]
        return {"input_ids": before + tokens, "labels": [IGNORED] * len(before) + tokens}

    def by_row(self, losses_A: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Returns the mean token loss of all answers of each row: (n,), NaN for a row none of whose tokens has one.

        Args:
            losses_A: (A,) mean token losses; NaN for an answer without a predicted token.
        """
        there_A = self.predicted > 0
        sums = np.zeros((2, len(self._rows)))
        np.add.at(sums[0], self.owners[there_A], losses_A[there_A].astype(np.float64) * self.predicted[there_A])
        np.add.at(sums[1], self.owners[there_A], self.predicted[there_A])
        means = np.full(len(self._rows), np.nan)
        np.divide(sums[0], sums[1], out=means, where=sums[1] > 0)
        return means

    def _before(self, ids: NDArray[Any], start: int) -> list[int]:
        """Returns what stands before an answer that begins at ``start`` of its row."""
        if isinstance(self._header, int):
            header = [int(token) for token in ids[max(0, start - self._header) : start]]
        else:
            header = self._header
        begins = self._start_token is not None and int(ids[0]) == self._start_token
        return [int(ids[0]), *header] if begins and len(header) < start else list(header)
