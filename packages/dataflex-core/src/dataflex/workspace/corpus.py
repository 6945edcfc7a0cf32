"""Writes the datasets of a workspace and the ``dataset_info.json`` that LLaMA-Factory finds them by."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dataflex.core.errors import ConfigError
from dataflex.workspace.library_text import Harvest, Piece
from dataflex.workspace.tasks import Material, make_target, make_tasks

SOURCE_ROWS = {"code": 900, "docstrings": 600, "prose": 400}
"""Rows of each source: unequal, so that proportions by size and equal shares are different mixtures."""

HELD_OUT_ROWS = 30
"""Rows of each source kept for evaluation."""

TASKS, HELD_OUT_TASKS = 100, 10
"""Instruction tasks of each family, to train on and kept for evaluation."""

TARGET, TARGET_TASKS = "sort", 60
"""The family that a selector may aim at, and how many of its tasks say so; as many more are for a test."""

_PRETRAIN_COLUMNS = {"prompt": "text"}
_ALPACA_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output"}


def write_data(folder: Path, harvest: Harvest, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Writes every dataset below ``folder`` and returns dataset name -> its rows, as they were written.

    Raises:
        ConfigError: This interpreter comes without the sources of its standard library.
    """
    train, held_out = _split(harvest.sources, seed)
    rows: dict[str, list[dict[str, Any]]] = {
        name: [{"text": piece.text, "origin": piece.origin} for piece in pieces] for name, pieces in train.items()
    }
    rows["pretrain_eval"] = [
        {"text": piece.text, "origin": piece.origin, "source": name}
        for name, pieces in held_out.items()
        for piece in pieces
    ]
    material = Material(_words(train["prose"]), harvest.summaries)
    tasks, clean = make_tasks(material, TASKS, HELD_OUT_TASKS, seed)
    target = make_target(material, TARGET, 2 * TARGET_TASKS, [*tasks, *clean], seed)
    asked = {
        "instructions": tasks,
        "instructions_eval": clean,
        "sorting_eval": target[:TARGET_TASKS],
        "sorting_test": target[TARGET_TASKS:],
    }
    rows |= {name: [task.to_row() for task in held] for name, held in asked.items()}

    info = {}
    for name, content in rows.items():
        instructions = name in asked
        file = folder / (f"{name}.json" if instructions else f"{name}.jsonl")
        file.write_text(_as_json(content) if instructions else _as_lines(content), encoding="utf-8")
        info[name] = {"file_name": file.name, "columns": _ALPACA_COLUMNS if instructions else _PRETRAIN_COLUMNS}
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    return rows


def _split(sources: Mapping[str, list[Piece]], seed: int) -> tuple[dict[str, list[Piece]], dict[str, list[Piece]]]:
    train, held_out = {}, {}
    for name, pieces in sources.items():
        if len(pieces) < 4 * HELD_OUT_ROWS:
            raise ConfigError(
                f"the source '{name}' has {len(pieces)} pieces of text and needs {4 * HELD_OUT_ROWS}: a workspace is "
                "made from the sources of Python's standard library, which this interpreter lacks -> run a Python that "
                "has them"
            )
        count = min(SOURCE_ROWS[name] + HELD_OUT_ROWS, len(pieces))
        drawn = random.Random(f"{seed}/{name}").sample(pieces, count)
        held_out[name], train[name] = drawn[:HELD_OUT_ROWS], drawn[HELD_OUT_ROWS:]
    return train, held_out


def _words(pieces: Iterable[Piece]) -> list[str]:
    """Returns the 400 most frequent words of four to eight letters."""
    counts = Counter(word for piece in pieces for word in re.findall(r"\b[a-z]{4,8}\b", piece.text))
    return sorted(counts, key=lambda word: (-counts[word], word))[:400]


def _as_json(rows: list[dict[str, Any]]) -> str:
    """Returns a JSON list with one row per line, so that it can be read and compared."""
    return "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"


def _as_lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
