"""The evaluation rows that a component aims at, in the one form that scoring knows, without those that say nothing.

A row comes in one of two forms:

    whole   input_ids: prompt and answer; labels: one for each token, -100 where nothing is to be learnt
    apart   input_ids: the prompt; labels: the answer. What LLaMA-Factory makes for ``predict_with_generate: true``

A set is apart where a row has another number of labels than tokens, or labels none of which is -100 and that are not
its tokens. Rows that are apart are put together: prompt and answer, labels on the answer. That is the whole form of a
row of one turn. Of several turns, the whole form has labels on every answer and this one on the last, so a run through
LLaMA-Factory does not come here: its rows are tokenised once more, as without the key (see
:mod:`dataflex.integrations.llamafactory.generating_targets`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from dataflex.core.errors import ConfigError, Problem
from dataflex.model.label_logits import IGNORED
from dataflex.rows.columns import columns_chunks, labelled_rows
from dataflex.rows.views import PlannedRows, Row, fetch
from dataflex.utils.logging import logger
from dataflex.utils.progress import tracked

_JOINED = ("input_ids", "attention_mask", "labels")


@dataclass(frozen=True)
class Target:
    """What a component aims at.

    Attributes:
        sets: Name -> rows with tokens and labels; a single set is called ``eval``.
        problem: What is wrong with them; None where each has a row.
    """

    sets: dict[str, Any]
    problem: Problem | None


class UsableRows(PlannedRows):
    """The rows of an evaluation set that can be aimed at: a view of some of them."""


def number_in_set(dataset: Any, row: int) -> int:
    """Returns the number that a row of a target's set has in the evaluation set as it was given.

    Args:
        dataset: The set as :func:`read_target` returned it, or with more rows left out (:class:`UsableRows`).
        row: Its number there.
    """
    while isinstance(dataset, UsableRows | JoinedRows):
        if isinstance(dataset, UsableRows):
            row = int(dataset.rows[row])
        dataset = dataset.dataset
    return int(row)


def read_target(eval_dataset: Any, who: str = "selector", *, every: bool = True) -> Target:
    """Returns the rows of the evaluation sets that can be aimed at. Reads their tokens; every rank calls it.

    Rows without tokens or without a label are left out, and a log line says how many.

    Args:
        eval_dataset: A tokenised dataset, or several by name; None gives no set at all.
        who: What aims at them, for the problem.
        every: Whether each set must have such a row; otherwise one of them.
    """
    given = {name: dataset for name, dataset in named_sets(eval_dataset).items() if dataset is not None}
    for name, dataset in given.items():
        if (problem := _stream(name, dataset)) is not None:
            return Target({}, problem)
    problem = _without_rows(given, who, every)
    if problem is not None:
        return Target({}, problem)
    try:
        sets = {name: _usable(name, whole_rows(dataset, name)) for name, dataset in given.items()}
    except ConfigError as error:
        return Target({}, Problem("eval_dataset", str(error)))
    empty = [name for name, rows in sets.items() if not len(rows)]
    if not empty or (not every and len(empty) < len(sets)):
        return Target(sets, None)
    what = f"no row of the evaluation set {_quoted(empty)} has a token with a label, {_aim(who)}"
    way_out = "check eval_dataset, or use a larger cutoff_len if it cuts the answers off"
    return Target(sets, Problem("eval_dataset", what, way_out))


def named_sets(eval_dataset: Any) -> dict[str, Any]:
    """Returns name -> dataset; a single one is called ``eval``, and None gives no set at all."""
    if eval_dataset is None:
        return {}
    return dict(eval_dataset) if isinstance(eval_dataset, Mapping) else {"eval": eval_dataset}


def whole_sets(eval_dataset: Any) -> Any:
    """Returns the sets with their rows in the whole form, one or several by name as they were given.

    Raises:
        ConfigError: A set's rows are of both forms, or cannot be put together.
    """
    if isinstance(eval_dataset, Mapping):
        return {name: whole_rows(dataset, name) for name, dataset in eval_dataset.items()}
    return whole_rows(eval_dataset)


def whole_rows(dataset: Any, name: str = "eval") -> Any:
    """Returns the rows in the whole form: the dataset itself where it is in that already, or is None or a stream.

    Args:
        dataset: Tokenised rows.
        name: What the set is called in messages.

    Raises:
        ConfigError: Its rows are of both forms, or have a column that cannot be continued over the answer.
    """
    if dataset is None or _stream(name, dataset) is not None or not len(dataset):
        return dataset
    lengths_N = _apart(dataset, name)
    if lengths_N is None:
        return dataset
    _require_joinable(dataset, name)
    logger.debug(
        "evaluation set '%s': prompt and answer of a row are apart, as predict_with_generate makes them; they are put "
        "together, with labels on the answer",
        name,
    )
    return JoinedRows(dataset, lengths_N)


class JoinedRows(Dataset[Row]):
    """Rows whose prompt and answer were apart, in the whole form.

    Args:
        dataset: The rows as they were.
        lengths_N: (N,) tokens of each, prompt and answer.
    """

    def __init__(self, dataset: Any, lengths_N: NDArray[np.int64]) -> None:
        self.dataset = dataset
        self._lengths_N = lengths_N

    def __len__(self) -> int:
        return len(self._lengths_N)

    def __getitem__(self, row: int) -> Row:
        return _joined(self.dataset[row])

    def __getitems__(self, rows: list[int]) -> list[Row]:
        return [_joined(row) for row in fetch(self.dataset, rows)]

    def row_lengths(self) -> NDArray[np.int64]:
        """Returns the number of tokens of each row: (N,) int64."""
        return self._lengths_N


def _joined(row: Row) -> Row:
    prompt, answer = np.asarray(row["input_ids"]).tolist(), np.asarray(row["labels"]).tolist()
    mask = row.get("attention_mask")
    seen = [1] * len(prompt) if mask is None else np.asarray(mask).tolist()
    return {
        **row,
        "input_ids": prompt + answer,
        "attention_mask": seen + [1] * len(answer),
        "labels": [IGNORED] * len(prompt) + answer,
    }


def _apart(dataset: Any, name: str) -> NDArray[np.int64] | None:
    """Returns the tokens of each row, (N,), where prompts and answers are apart, of both; None where they are not."""
    chunks = columns_chunks(dataset, ("input_ids", "labels"), np.arange(len(dataset), dtype=np.int64))
    counts, first = [], dict[str, str]()
    followed = tracked(chunks, f"evaluation set '{name}': reading its rows", len(dataset), size=len)
    for row, (ids, own) in enumerate(both for chunk in followed for both in chunk):
        counts.append(len(ids) + len(own))
        masked = bool((own == IGNORED).any())
        if len(own) != len(ids):
            if len(own):
                first.setdefault("apart", f"row {row} has {len(own)} labels for {len(ids)} tokens")
            if masked:
                first.setdefault("whole", f"row {row} has labels of -100")
        elif masked:
            first.setdefault("whole", f"row {row} has a label for each token, some -100")
        elif (own != ids).any():
            first.setdefault("apart", f"row {row} has labels that are not its tokens, and none of -100")
    if len(first) == 2:
        raise ConfigError(
            f"the rows of the evaluation set '{name}' are of two forms: {first['apart']}, so labels are answers alone; "
            f"{first['whole']}, so prompts are among them -> tokenise the set in one way"
        )
    return np.array(counts, dtype=np.int64) if "apart" in first else None


def _require_joinable(dataset: Any, name: str) -> None:
    row = dataset[0]
    size = len(row["input_ids"])
    for key, value in row.items():
        if key in _JOINED or not isinstance(value, list | tuple | np.ndarray | torch.Tensor):
            continue
        if size and len(value) == size and np.issubdtype(np.asarray(value).dtype, np.number):
            raise ConfigError(
                f"the evaluation set '{name}' has prompts and answers apart, and its column '{key}' has a number for "
                "each token of the prompt alone -> tokenise the set without predict_with_generate"
            )


def _usable(name: str, dataset: Any) -> Any:
    """Returns the rows that have tokens and labels; the dataset itself where all have."""
    kept = labelled_rows(dataset) if len(dataset) else np.empty(0, dtype=np.int64)
    if len(kept) == len(dataset):
        return dataset
    logger.warning(
        "evaluation set '%s': %d of %d rows have no token or no label and are left out",
        name,
        len(dataset) - len(kept),
        len(dataset),
    )
    return UsableRows(dataset, kept)


def _stream(name: str, dataset: Any) -> Problem | None:
    if isinstance(dataset, Sized):
        return None
    return Problem(
        "eval_dataset",
        f"the evaluation set '{name}' is a stream, and its rows are aimed at one by one and again and again",
        "set streaming: false, or choose a component without a target",
    )


def _without_rows(given: Mapping[str, Any], who: str, every: bool) -> Problem | None:
    way_out = "set eval_dataset, or val_size to hold rows out of the train dataset"
    without = [name for name, dataset in given.items() if not len(dataset)]
    if every and without:
        return Problem("eval_dataset", f"the evaluation set {_quoted(without)} has no rows, {_aim(who)}", way_out)
    if len(without) < len(given):
        return None
    what = "the run has no evaluation set" + ("" if every else " with rows")
    return Problem("eval_dataset", f"{what}, {_aim(who)}", way_out)


def _aim(who: str) -> str:
    return f"and its rows are what this {who} aims at"


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
