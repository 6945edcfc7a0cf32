"""``token_column``: a weight for each token, given in the data. No paper.

    z_t = the number of token t

The numbers stand in a column of the tokenised dataset, one for each token of ``input_ids``; of the raw data of
LLaMA-Factory, one for each message (a column of lists, or ``messages.weight``), and a token has that of its message.
Only tokens that are trained on matter: a weight of a question does so with ``train_on_prompt: true`` alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from dataflex.core.cost import Ahead, Cost
from dataflex.core.errors import CheckpointError, Problem, listed, nearest
from dataflex.core.parameter_checks import FLOAT32_MOST, one_of, require, text
from dataflex.core.parameter_checks import between as within
from dataflex.core.registry import register_weighter
from dataflex.rows.columns import IGNORED, columns_chunks, stored_parts
from dataflex.rows.lengths import row_lengths
from dataflex.rows.score_columns import column_names
from dataflex.rows.token_lists import TokenLists
from dataflex.scoring.passes.fingerprint import digest
from dataflex.utils.progress import tracked
from numpy.typing import NDArray

from dataflex_weighters.parts.given_token_weights import DENOMINATORS, GivenTokenWeights


@register_weighter("token_column")
class TokenColumnWeighter(GivenTokenWeights):
    """A weight for each token, from a column of the data.

    Args:
        dataset: The train dataset, tokenised.
        column: The column: of the tokenised dataset, a number for each token; with LLaMA-Factory also of the raw data,
            a list with a number for each message, or ``LIST.KEY`` for the numbers in its entries.
        default: The weight of the tokens of a row that has none; null refuses such a row.
        denominator: ``weights`` or ``tokens``, see :class:`GivenTokenWeights`.
        token_columns: Weights of tokens that were kept when rows were made: column -> lists.

    Raises:
        ConfigError: A parameter has another value, there is no such column, or a row has other numbers than one of 0 or
            more for each of its tokens.
    """

    token_column_in = "column"

    def __init__(
        self,
        dataset: Any,
        column: str = "token_weights",
        default: float | None = None,
        denominator: str = "weights",
        token_columns: Mapping[str, TokenLists] | None = None,
    ) -> None:
        super().__init__(dataset, denominator)
        require(
            "token_column weighter",
            text("column", column),
            None if default is None else within("default", default, 0, FLOAT32_MOST),
            one_of("denominator", denominator, DENOMINATORS),
        )
        self.column, self.default = column, default
        kept = (token_columns or {}).get(column)
        if kept is None:
            require("token_column weighter", _no_column(dataset, column))
        self._lists = kept if kept is not None else TokenLists([dataset], column)
        self._lengths_N = row_lengths(dataset)
        self._digest = self._checked()

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """Weights are looked up. See the base class."""
        return Cost()

    @classmethod
    def needs_token_column(cls, params: Mapping[str, Any]) -> str | None:
        """Its column. See the base class."""
        column = params.get("column", "token_weights")
        return column if isinstance(column, str) else None

    def weights_of(self, rows_X: NDArray[np.int64]) -> Sequence[NDArray[np.floating[Any]]]:
        """Returns the weights of some rows. See the base class."""
        found = self._lists.of(rows_X)
        return [self._of_row(row, own) for row, own in zip(rows_X.tolist(), found, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """Returns a digest of the weights: a resumed run reads them again, and they must be the same."""
        return {"weights": self._digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Compares the weights with those of :meth:`state_dict`.

        Raises:
            CheckpointError: They are others.
        """
        if state["weights"] != self._digest:
            raise CheckpointError(
                f"column: the weights of tokens under {self.column!r} differ from those of the checkpoint -> give the "
                "run the data that it had"
            )

    def _of_row(self, row: int, own_n: NDArray[Any]) -> NDArray[np.floating[Any]]:
        if len(own_n) or self.default is None:
            return own_n
        return np.full(self._lengths_N[row], self.default, dtype=np.float32)

    def _checked(self) -> str:
        """Returns a digest of all weights, after a look at each.

        Raises:
            ConfigError: It names the first row whose weights are wrong.
        """
        parts, some = list[str](), False
        reading = tracked(self._lists.chunks(), "reading the weights of tokens", len(self._lists), size=len)
        row = 0
        for chunk in reading:
            for number, own_n in enumerate(chunk, start=row):
                require("token_column weighter", self._problem(number, own_n))
            some = some or self._trains(row, chunk)
            row += len(chunk)
            parts.append(digest(*(np.asarray(own_n, dtype=np.float64).tobytes().hex() for own_n in chunk)))
        if not some:
            what = f"every weight under {self.column!r} of a token that is trained on is 0, so nothing would be learnt"
            require("token_column weighter", Problem("column", what, "give some tokens a weight above 0"))
        return digest(*parts, self.default)

    def _trains(self, first: int, chunk: Sequence[NDArray[Any]]) -> bool:
        """Returns whether a token of these rows, ``first`` and on, is trained on and has a weight above 0."""
        rows = np.arange(first, first + len(chunk), dtype=np.int64)
        labels = (row for part in columns_chunks(self.dataset, ("labels",), rows) for row in part)
        for row, own_n, (labels_n,) in zip(rows.tolist(), chunk, labels, strict=True):
            weights_n = self._of_row(row, own_n)
            trained = len(labels_n) != len(weights_n) or labels_n[1:] != IGNORED  # without labels, all tokens
            if bool(((weights_n[1:] > 0) & trained).any()):  # the first token is predicted from nothing
                return True
        return False

    def _problem(self, row: int, own_n: NDArray[Any]) -> Problem | None:
        tokens = int(self._lengths_N[row])
        if not own_n.size and tokens and self.default is None:
            return Problem("column", f"row {row} has no weights under {self.column!r}", "give it some, or set default")
        if own_n.size and (own_n.ndim != 1 or own_n.dtype.kind not in "fiu" or len(own_n) != tokens):
            what = f"row {row} has {_seen(own_n)} under {self.column!r} and {tokens} tokens"
            return Problem("column", what, "give each token of input_ids one number")
        if own_n.size and not ((own_n >= 0) & (own_n <= FLOAT32_MOST)).all():
            bad = own_n[~((own_n >= 0) & (own_n <= FLOAT32_MOST))][0]
            return Problem("column", f"row {row} has the weight {bad}", f"give numbers from 0 to {FLOAT32_MOST:.3g}")
        return None


def _seen(own_n: NDArray[Any]) -> str:
    return f"{len(own_n)} numbers" if own_n.ndim == 1 and own_n.dtype.kind in "fiu" else "no list of numbers"


def _no_column(dataset: Any, column: str) -> Problem | None:
    """Returns a problem where no row of the dataset has the column."""
    names = list(_names(dataset))
    if column in names:
        return None
    what = f"the tokenised train dataset has no column {column!r} but {listed(dict.fromkeys(names))}"
    way_out = "add it, a number for each token of input_ids; TRL drops other columns when it packs or tokenises"
    return Problem("column", what, nearest(column, names) or way_out)


def _names(dataset: Any) -> Iterator[str]:
    for part, _ in stored_parts(dataset):
        yield from column_names(part)
