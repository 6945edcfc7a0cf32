"""What dataflex_rows.jsonl says of a row: its text, or the parts of a pair of answers, within its room."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from dataflex.core.files import ROWS
from dataflex.run.row_texts import CHARACTERS, RowTexts


class Letters:
    """A tokenizer with a token for each letter."""

    def decode(self, token_ids: Any, **kwargs: Any) -> str:
        return "".join(map(chr, token_ids))


def tokens(text: str) -> Any:
    return np.array(list(map(ord, text)), dtype=np.int64)


def written(folder, prompt, chosen, rejected):
    """The line of a pair."""
    file = RowTexts(folder, Letters())
    file.begin("run", 1)
    file.add([(0, "a", {"prompt": tokens(prompt), "chosen": tokens(chosen), "rejected": tokens(rejected)})])
    return json.loads((folder / ROWS).read_text(encoding="utf-8").splitlines()[1])


def test_a_short_pair_is_written_whole(tmp_path):
    line = written(tmp_path, "two and two", "four", "five")
    assert line["text"] == "prompt: two and two\n\nchosen: four\n\nrejected: five"
    assert not line["cut"]
    assert line["tokens"] == 19


@pytest.mark.parametrize("length", [CHARACTERS, 5 * CHARACTERS])
def test_a_long_prompt_does_not_hide_the_answers(length, tmp_path):
    line = written(tmp_path, "p" * length, "four", "f" * length)
    assert "\n\nchosen: four\n\nrejected: fff" in line["text"]
    assert len(line["text"]) <= CHARACTERS
    assert line["cut"]
    assert line["tokens"] == 2 * length + 4
