"""Constructor parameters that dataflex supplies by name, and those of them that a user may override."""

from __future__ import annotations

from typing import Any

INJECTED = frozenset(
    {
        "dataset",
        "eval_dataset",
        "accelerator",
        "data_collator",
        "mixture_manager",
        "mixer_eval_dataset",
        "output_dir",
        "tokenizer",
        "token_columns",
        "seed",
        "cache_dir",
    }
)
TARGETS = frozenset({"eval_dataset", "mixer_eval_dataset"})  # evaluation rows that a component aims at
OVERRIDABLE = frozenset({"seed", "cache_dir", "output_dir"})  # plain values: a user may have reasons for another one
SEED = "seed"
MOST_SEED = 2**32 - 1  # as NumPy takes it, and the run's own
DRAWS_NOTHING = "it draws nothing, so a seed changes nothing"
FOLDERS = frozenset({"cache_dir", "output_dir"})


def wrong_override(name: str, value: Any) -> str | None:
    """Returns what is wrong with a value that a user gives in the place of the run's, or None.

    A blank folder would be the working directory.
    """
    if name in FOLDERS and not (isinstance(value, str) and value.strip()):
        return f"found {value!r}, allowed: the path of a folder"
    whole = isinstance(value, int) and not isinstance(value, bool)
    if name == SEED and not (whole and 0 <= value <= MOST_SEED):
        return f"found {value!r}, allowed: a whole number from 0 to {MOST_SEED}"
    return None
