"""Which columns of a row hold its tokens: one sequence, or the parts of a pair of answers.

    input_ids                                              a text; a tagged answer (LLaMA-Factory)
    chosen_input_ids, rejected_input_ids                   a pair, each answer with its prompt (LLaMA-Factory; TRL's
                                                           reward models)
    prompt_input_ids, chosen_input_ids, rejected_input_ids a pair, the prompt apart (TRL's DPO)
    completion_input_ids                                   a tagged answer with its prompt (TRL's KTO)

Later releases of TRL leave ``input_`` out of these names. The length of a pair counts its prompt with each answer, as
the model reads it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

TEXT: Mapping[str, int] = {"input_ids": 1}
"""The columns of a row that is one sequence -> how often the model reads each."""

PAIRS: tuple[Mapping[str, int], ...] = (
    {"prompt_input_ids": 2, "chosen_input_ids": 1, "rejected_input_ids": 1},
    {"chosen_input_ids": 1, "rejected_input_ids": 1},
    {"prompt_ids": 2, "chosen_ids": 1, "rejected_ids": 1},
    {"chosen_ids": 1, "rejected_ids": 1},
)
"""Those of a pair; the first whose columns are there."""

TAGGED: tuple[Mapping[str, int], ...] = ({"completion_input_ids": 1}, {"prompt_ids": 1, "completion_ids": 1})
"""Those of a tagged answer."""

COLUMNS: tuple[str, ...] = tuple(dict.fromkeys(name for each in (TEXT, *PAIRS, *TAGGED) for name in each))
"""All of these."""


def token_columns(columns: Collection[str]) -> Mapping[str, int]:
    """Returns the columns of a row's tokens -> how often the model reads each; those of a text where there are none.

    Args:
        columns: The names of all columns.
    """
    if "input_ids" in columns:
        return TEXT
    return next((each for each in (*PAIRS, *TAGGED) if each.keys() <= set(columns)), TEXT)


def parts_of_pair(values: Mapping[str, NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
    """Returns the tokens of a pair as ``prompt``, ``chosen`` and ``rejected``; the prompt once.

    Args:
        values: The columns of :data:`PAIRS` -> (T,) tokens. Where the prompt has no column, it is what both answers
            begin with.
    """
    by_name = {name.partition("_")[0]: ids for name, ids in values.items()}
    if "prompt" in by_name:
        return by_name
    chosen, rejected = by_name["chosen"], by_name["rejected"]
    shorter = min(len(chosen), len(rejected))
    apart = np.flatnonzero(chosen[:shorter] != rejected[:shorter])
    common = int(apart[0]) if len(apart) else shorter
    return {"prompt": chosen[:common], "chosen": chosen[common:], "rejected": rejected[common:]}


def is_pair(columns: Collection[str]) -> bool:
    """Returns whether rows with these columns are pairs."""
    return token_columns(columns) in PAIRS
