"""Where the irreducible losses of RHO-LOSS come from: a column, a file, or a model that is scored once.

A file holds one number per row of the train dataset (:mod:`dataflex.run.row_values`): ``.npy`` a flat array; ``.npz``
and ``.parquet`` an array or column of the name ``irreducible_loss``, or the only one. NaN means that a row has none; it
is never selected.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from dataflex.core.errors import ComponentError, ConfigError, Problem, rows_named
from dataflex.core.parameter_checks import FLOAT32_MOST
from dataflex.rows.columns import number_column
from dataflex.scoring import ScoreStore, per_sample_losses
from dataflex.scoring.model_beside import (
    contradicting,
    load_beside,
    text_tokenizer,
    tokenizer_beside,
    within_vocabulary,
)
from dataflex.scoring.passes.fingerprint import dataset_digest, digest, model_digest
from dataflex.scoring.passes.row_pass import Collator
from dataflex.scoring.trial import try_losses
from dataflex.utils.logging import logger
from numpy.typing import NDArray

if TYPE_CHECKING:
    from accelerate import Accelerator

NAME = "irreducible_loss"
KEY = "reference_model"


def source_problem(column: Any, file: Any, reference_model: Any) -> Problem | None:
    """Returns a problem unless exactly one source is given."""
    given = {"column": column, "file": file, "reference_model": reference_model}
    given = {key: value for key, value in given.items() if value is not None}
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        way_out = "give the one that holds, or computes, the irreducible loss of each row"
        return Problem("column, file, reference_model", f"found {found}, needed: exactly one of the three", way_out)
    return None


def from_column(dataset: Any, column: str) -> NDArray[np.float32]:
    """Returns the values of a column: (N,).

    Raises:
        ConfigError: There is no such column, or it holds something else than one number per row.
    """
    try:
        found = number_column(dataset, column)
    except ValueError:
        raise ConfigError(
            f"the column '{column}' of the train dataset holds something else than one number per row"
        ) from None
    if found is None:
        raise ConfigError(
            f"no row of the train dataset has the column '{column}' that column names -> LLaMA-Factory keeps none but "
            "its own when it tokenises: give the values as a file, in the order of the rows"
        )
    return checked(found, f"the column '{column}'")


def from_model(
    path: str,
    dataset: Any,
    collator: Collator,
    accelerator: Accelerator | None,
    token_budget: int | None,
    cache_dir: str,
) -> NDArray[np.float32]:
    """Returns the losses of all rows under another model: (N,), NaN without a label. Collective.

    The model is loaded whole on every rank, in the precision that it was saved in, and freed afterwards. An
    interrupted pass goes on from what ``cache_dir`` keeps.

    Args:
        path: The model, as ``from_pretrained`` takes it. Its tokens must mean what those of the dataset mean.
        dataset: The tokenised dataset.
        collator: Makes a batch of tensors from a list of rows.
        accelerator: The run's accelerator; None means a single process.
        token_budget: Tokens that are scored at once; None for a default.
        cache_dir: The selector's folder.

    Raises:
        ComponentError: The model cannot be loaded, or has fewer tokens than the dataset uses.
    """
    model = load_beside(KEY, path, accelerator)
    return per_sample_losses(
        model,
        dataset,
        collator=within_vocabulary(KEY, path, model, collator),
        accelerator=accelerator,
        token_budget=token_budget,
        desc=f"irreducible losses under {os.path.basename(path)}",
        store=ScoreStore(
            os.path.join(cache_dir, "irreducible"),
            lambda: digest(NAME, model_digest(model), dataset_digest(dataset)),
        ),
    )


def try_model(
    path: str, dataset: Any, collator: Collator, accelerator: Accelerator | None, tokenizer: Any = None
) -> None:
    """Loads the model, scores two rows with it and frees it.

    Raises:
        ComponentError: It cannot be loaded, gives rows no loss, has fewer tokens than these rows use, or its tokenizer
            gives them other numbers: what cannot be learnt of a row is then another sum.
    """
    model = load_beside(KEY, path, accelerator)
    other = None if tokenizer is None else tokenizer_beside(path)
    if other is not None:
        _require_same_tokens(path, text_tokenizer(tokenizer).get_vocab(), other.get_vocab())
    try_losses(model, dataset, within_vocabulary(KEY, path, model, collator), None)


def _require_same_tokens(path: str, run: Mapping[str, int], other: Mapping[str, int]) -> None:
    """Refuses a vocabulary with other numbers; warns of one without all tokens of the run."""
    if differing := contradicting(run, other):
        raise ComponentError(
            f"{KEY}: the tokenizer of {path} gives other numbers to {len(differing)} of the run's tokens, such as "
            f"{differing[0]!r}, so its losses are of other tokens -> use a model with the tokenizer of the run"
        )
    if missing := [token for token in run if token not in other]:
        logger.warning(
            "%s: the tokenizer of %s lacks %d of the run's tokens, such as %r: the model has learnt nothing about them",
            KEY,
            path,
            len(missing),
            missing[0],
        )


def checked(values: NDArray[np.float64], what: str) -> NDArray[np.float32]:
    """Returns the losses of the rows as the selector keeps them: (N,).

    Raises:
        ConfigError: One is infinite, or becomes so in 32 bits.
    """
    outside = np.flatnonzero(np.abs(values) > FLOAT32_MOST)
    if len(outside):
        raise ConfigError(
            f"{what} is infinite, or too large for 32 bits, for {rows_named(outside)} -> write NaN instead"
        )
    return values.astype(np.float32)
