"""The text of tokens, and which token each character of it is of.

Most tokens have the same text alone and among others: their texts are looked up and joined. Where that is not the text
of the row (bytes of one character in several tokens, blanks that a tokenizer leaves out), tokens are added one by one.

Letters: T tokens of a row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from dataflex.core.errors import ConfigError
from dataflex.scoring.model_beside import text_tokenizer
from numpy.typing import NDArray

_UNFINISHED = "\ufffd"
_BACK = 8  # tokens before the present one that are decoded with it: more than a character has bytes


class TokenTexts:
    """The texts of tokens.

    Args:
        tokenizer: A tokenizer, or a processor that has one.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = text_tokenizer(tokenizer)
        self._alone: dict[int, str] = {}

    def of(self, ids_T: NDArray[np.int64], row: int) -> tuple[str, NDArray[np.int64]]:
        """Returns the text of a row, special tokens included, and how much of it there is up to each token's end.

        Args:
            ids_T: (T,) tokens.
            row: The row, for messages.

        Returns:
            The text, and (T,) int64 numbers of characters, which do not fall. A token that ends within a character
            ends before it, and the token that completes the character has all of it.

        Raises:
            ConfigError: The texts of the tokens do not make up that of the row.
        """
        ids = ids_T.tolist()
        whole = self._decoded(ids)
        pieces = [self._of_one(token) for token in ids]
        if "".join(pieces) != whole:
            pieces = self._one_by_one(ids)
            if "".join(pieces) != whole:
                raise ConfigError(
                    f"row {row}: the text of its tokens one by one is not the text of the row, so nobody knows which "
                    "token a marker is of -> give its weights in a column (the weighter token_column)"
                )
        return whole, np.cumsum([len(piece) for piece in pieces], dtype=np.int64)

    def _of_one(self, token: int) -> str:
        found = self._alone.get(token)
        if found is None:
            found = self._alone[token] = self._decoded([token])
        return found

    def _decoded(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _one_by_one(self, ids: list[int]) -> list[str]:
        """Returns what each token adds to the text of those shortly before it."""
        pieces, start, done = list[str](), 0, 0  # start: a place where a character begins; done: told so far
        for end in range(1, len(ids) + 1):
            before, now = self._decoded(ids[start:done]), self._decoded(ids[start:end])
            if now.endswith(_UNFINISHED) and end < len(ids):
                pieces.append("")
                continue
            pieces.append(now[len(before) :])
            done = end
            start = done - 1 if done - start > _BACK else start
        return pieces
