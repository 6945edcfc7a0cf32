"""Checks of what a component returned. A bad answer stops the run; it is never trained on, nor repaired in silence."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflex.core.errors import ComponentError
from dataflex.core.explain import MOST_PULLS, Explanation

_PIECE = 1 << 20  # positions looked at once: an index of another width than NumPy's own is copied first


def checked_rows(answer: Any, *, count: int, size: int, replacement: bool, who: str) -> NDArray[np.int64]:
    """Returns the answer of a selector as (count,) int64 row numbers.

    Args:
        answer: What ``select`` or ``warmup`` returned.
        count: How many rows were asked for.
        size: Rows of the train dataset.
        replacement: Whether rows may repeat.
        who: The component, the update and the step, for the message.

    Raises:
        ComponentError: Not integers, too few or too many, outside of the dataset, or repeated without replacement.
    """
    rows = np.asarray(answer)
    if rows.ndim != 1 or not (rows.size == 0 or np.issubdtype(rows.dtype, np.integer)):
        finite = "" if rows.dtype.kind != "f" or np.isfinite(rows).all() else ", some of them NaN or infinite"
        raise ComponentError(
            f"{who} returned {type(answer).__name__} of shape {rows.shape} and type {rows.dtype}{finite}; expected a "
            f"flat sequence of {count} integer row numbers"
        )
    if len(rows) != count:
        raise ComponentError(f"{who} returned {len(rows)} rows; expected {count}")
    outside = rows[(rows < 0) | (rows >= size)]
    if outside.size:
        raise ComponentError(
            f"{who} returned {outside.size} row numbers outside of the dataset, the first is {outside[0]}; expected 0 "
            f"to {size - 1}"
        )
    repeated = 0 if replacement else len(rows) - len(np.unique(rows))
    if repeated:
        raise ComponentError(
            f"{who} returned {repeated} rows more than once; expected {count} different rows -> a selector that means "
            "to repeat rows sets `replacement = True`"
        )
    return rows.astype(np.int64)


def checked_scores(scores: Any, *, count: int, who: str, never: bool = False) -> NDArray[np.float64] | None:
    """Returns a selector's scores as (count,) float64, or None where it gave none.

    Args:
        scores: What came with the rows. NaN stands for no score.
        count: How many there must be.
        who: The component, the update and the step, for the message.
        never: Whether -inf may be among them: a row that is never to be taken. Rows that were chosen are none of those.

    Raises:
        ComponentError: Another number of them, or infinite ones.
    """
    if scores is None:
        return None
    values = np.asarray(scores, dtype=np.float64)
    if values.shape != (count,):
        raise ComponentError(
            f"{who} returned scores of shape {values.shape}; expected one for each of its {count} rows"
        )
    infinite = np.flatnonzero(np.isposinf(values) if never else np.isinf(values))
    if len(infinite):
        allowed = "finite ones, -inf for never or NaN for none" if never else "finite ones, or NaN for none"
        raise ComponentError(
            f"{who} returned infinite scores at {len(infinite)} of {count} places, the first is {infinite[0]}; "
            f"expected {allowed}"
        )
    return values


def checked_candidates(
    candidates: Any, *, size: int, who: str
) -> tuple[NDArray[np.int64] | None, NDArray[np.float64]] | None:
    """Returns the scores of the rows that a selector chose from, with these rows; None where it gave none.

    Args:
        candidates: What came with the choice: (N,) scores, or (rows, scores).
        size: N, rows of the selector's dataset.
        who: The component, the update and the step, for the message.

    Returns:
        (P,) rows, None for all; and (P,) scores, NaN for none, -inf for never.

    Raises:
        ComponentError: Not one score for each row, rows outside of the dataset, or infinite scores.
    """
    if candidates is None:
        return None
    who, rows = f"{who}, of its candidates,", None
    if isinstance(candidates, tuple):
        if len(candidates) != 2:
            raise ComponentError(f"{who} returned a tuple of {len(candidates)}; expected (rows, scores), or all scores")
        found, candidates = candidates
        rows = checked_rows(found, count=np.size(found), size=size, replacement=False, who=who)
    expected = size if rows is None else len(rows)
    if np.shape(candidates) != (expected,):
        what = f"the {size} rows of its dataset" if rows is None else f"its {expected} rows"
        raise ComponentError(
            f"{who} returned scores of shape {np.shape(candidates)}; expected one for each of {what} -> NaN for a row "
            "that it did not score, or candidates=None"
        )
    scores = checked_scores(candidates, count=expected, who=who, never=True)
    assert scores is not None
    return rows, scores


def checked_permutation(answer: Any, size: int, who: str) -> NDArray[np.int64]:
    """Returns the answer of an order as (S,) int64 positions, each of 0 to S - 1 once.

    Besides the answer as int64 it takes a byte a row.

    Args:
        answer: What ``arrange`` returned.
        size: Number of rows that were to be arranged, S.
        who: The component, the update and the step, for the message.

    Raises:
        ComponentError: Not integers, too few or too many, outside of the rows, or some of them more than once.
    """
    expected = f"expected each of 0 to {size - 1} once" if size else "expected nothing, as there are no rows"
    order = np.asarray(answer)
    if order.ndim != 1 or not (order.size == 0 or np.issubdtype(order.dtype, np.integer)):
        raise ComponentError(
            f"{who} returned {type(answer).__name__} of shape {order.shape} and type {order.dtype}; expected a flat "
            f"sequence of {size} integer positions"
        )
    if len(order) != size:
        raise ComponentError(f"{who} returned {len(order)} positions for {size} rows; {expected}")
    seen = np.zeros(size, dtype=np.bool_)
    for start in range(0, size, _PIECE):
        piece = order[start : start + _PIECE]
        outside = piece[(piece < 0) | (piece >= size)]
        if outside.size:
            raise ComponentError(f"{who} returned the position {outside[0]}; {expected}")
        seen[piece] = True
    missing = size - int(np.count_nonzero(seen))
    if missing:
        raise ComponentError(
            f"{who} left out {missing} of {size} rows, the first is {int(np.argmin(seen))}, and repeated others; "
            f"{expected}"
        )
    return order.astype(np.int64, copy=False)


def checked_proportions(answer: Any, *, names: Sequence[str], who: str) -> NDArray[np.float64]:
    """Returns the answer of a mixer as (K,) float64 shares that sum to 1 exactly to rounding.

    Raises:
        ComponentError: Wrong number, not finite, negative, or a sum that is not 1 within 1e-6.
    """
    shares_K = np.asarray(answer)
    if shares_K.shape != (len(names),) or shares_K.dtype.kind not in "fiu":
        raise ComponentError(
            f"{who} returned {type(answer).__name__} of shape {shares_K.shape} and type {shares_K.dtype}; expected "
            f"{len(names)} shares, one for each of {', '.join(names)}"
        )
    shares_K = shares_K.astype(np.float64)
    if not np.isfinite(shares_K).all() or (shares_K < 0).any() or abs(shares_K.sum() - 1) > 1e-6:
        raise ComponentError(
            f"{who} returned {shares_K.tolist()} (sum {shares_K.sum():.6g}); expected finite, non-negative shares of "
            "sum 1"
        )
    scaled_K: NDArray[np.float64] = shares_K / shares_K.sum()
    return scaled_K


def checked_weights(weights: Any, *, count: int, declared: bool, who: str) -> NDArray[np.float64] | None:
    """Returns the weights of a selector's rows as (count,) float64, or None where it gave none.

    Args:
        weights: What came with the rows.
        count: How many there must be.
        declared: Whether the class says that it weighs.
        who: The component, the update and the step, for the message.

    Raises:
        ComponentError: Another number of them, negative or not finite, or a class that did not say so.
    """
    if weights is None:
        return None
    if not declared:
        raise ComponentError(
            f"{who} returned weights, but its class does not say that it weighs rows, so the loss is not prepared for "
            "them -> set `weighs = True` in the class"
        )
    values = np.asarray(weights, dtype=np.float64)
    if values.shape != (count,):
        raise ComponentError(
            f"{who} returned weights of shape {values.shape}; expected one for each of its {count} rows"
        )
    bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if len(bad):
        raise ComponentError(
            f"{who} returned {len(bad)} weights that are negative or not finite, the first is {values[bad[0]]} at "
            f"{bad[0]}; expected finite ones of 0 or more"
        )
    return values


def checked_explanation(answer: Any, *, count: int, who: str) -> Explanation | None:
    """Returns the answer of a component that explains itself, its scores as (count,) float64; None: it does not.

    Args:
        answer: What ``explain`` returned.
        count: Rows that were to be explained.
        who: The component, the update and the step, for the message.

    Raises:
        ComponentError: Another thing, of another number of rows, a share or a score that is not finite, or a target row
            without its tokens.
    """
    if answer is None:
        return None
    if not isinstance(answer, Explanation):
        raise ComponentError(
            f"{who} explained itself by {type(answer).__name__}; expected an Explanation of dataflex.core.explain, "
            "or None"
        )
    scores = np.asarray(answer.scores, dtype=np.float64)
    if len(answer.pulls) != count or scores.shape != (count,):
        raise ComponentError(
            f"{who} explained {len(answer.pulls)} rows, with scores of shape {scores.shape}; expected {count} of each"
        )
    if np.isinf(scores).any():
        raise ComponentError(f"{who} explained an infinite score; expected finite ones, or NaN for none")
    for row, pulls in enumerate(answer.pulls):
        if len(pulls) > MOST_PULLS:
            raise ComponentError(f"{who} named {len(pulls)} target rows for row {row}; expected at most {MOST_PULLS}")
        for pull in pulls:
            if not np.isfinite(pull.share):
                raise ComponentError(
                    f"{who} gave row {pull.target} of the set '{pull.set}' a share of {pull.share}; expected a finite "
                    "number -> leave a row without target rows where its score cannot be divided"
                )
            if (pull.set, pull.target) not in answer.targets:
                raise ComponentError(
                    f"{who} named row {pull.target} of the set '{pull.set}', which is not among its targets -> put its "
                    "token ids into Explanation.targets"
                )
    return replace(answer, scores=scores)


def checked_sets(explanation: Explanation, *, known: Collection[str], who: str) -> None:
    """Refuses target rows of sets that the run does not have.

    Args:
        explanation: What a component answered.
        known: The evaluation sets.
        who: The component, the update and the step, for the message.

    Raises:
        ComponentError: It names another one.
    """
    unknown = sorted({name for name, _ in explanation.targets} - set(known))
    if unknown:
        allowed = ", ".join(sorted(known)) or "none, as the run has no evaluation set"
        raise ComponentError(f"{who} named target rows of the set '{unknown[0]}'; the evaluation sets are: {allowed}")
