"""The rows of the real-model benchmark: who is in the pool, what is aimed at, and what is held out.

All is drawn by the seed from a folder in LLaMA-Factory's format (``dataset_info.json``) with the datasets
``gsm8k_train``, ``gsm8k_test``, ``alpaca_en_demo`` and ``c4_demo``; a seed and a size give the same rows again. No row
is in two of the parts. What is written goes to the work folder.

kind     the pool is alpaca with a fifth of GSM8K; the target is GSM8K. Words give it away: numbers, dollars, "####".
answers  the pool is GSM8K alone, and half of its rows have the answer of another row of that half. The target is GSM8K
         with its own answers. Questions and answers come from the same texts in both halves, so no list of words can
         tell them apart: only whether an answer belongs to its question.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = Mapping[str, str]
CASES = ("kind", "answers")
SHARE = {"kind": 0.2, "answers": 0.5}
"""Case -> share of the pool that is of the target's kind."""

HELD_OUT = ("gsm8k", "alpaca")
SOURCES = ("gsm8k", "alpaca", "web")


@dataclass(frozen=True)
class Part:
    """What a run of the benchmark reads.

    Attributes:
        folder: The folder with its dataset_info.json: pool, target, reference, held_gsm8k and held_alpaca.
        of_kind: For each row of the pool whether it is of the target's kind.
    """

    folder: Path
    of_kind: list[bool]


@dataclass(frozen=True)
class Sizes:
    """How many rows of each part: of the pool, the target, rho_loss's reference, and of each held-out set."""

    pool: int
    target: int
    reference: int
    held_out: int


def read(data: Path, name: str) -> list[Row]:
    """Returns the rows of a dataset of ``data`` in which instruction, input and output are texts."""
    info = json.loads((data / "dataset_info.json").read_text(encoding="utf-8"))
    if name not in info:
        raise SystemExit(f"{data}/dataset_info.json has no {name} -> name a folder that has gsm8k_train, gsm8k_test, "
                         "alpaca_en_demo and c4_demo")  # fmt: skip
    file = data / info[name]["file_name"]
    text = file.read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()] if file.suffix == ".jsonl" else json.loads(text)
    prompt = info[name].get("columns", {}).get("prompt", "instruction")
    return [
        {"instruction": row[prompt], "input": row.get("input", ""), "output": row.get("output", "")} for row in rows
    ]


def selection_part(case: str, data: Path, folder: Path, sizes: Sizes, seed: int) -> Part:
    """Writes the rows of a case and a seed, and returns them."""
    draw = random.Random(seed)
    gsm8k, tests, alpaca = (
        _shuffled(read(data, name), draw) for name in ("gsm8k_train", "gsm8k_test", "alpaca_en_demo")
    )
    wanted = round(sizes.pool * SHARE[case])
    right, target = _taken(gsm8k, wanted), _taken(gsm8k, sizes.target)
    reference, held_alpaca = _taken(gsm8k, sizes.reference), _taken(alpaca, sizes.held_out)
    others = sizes.pool - wanted
    rest = _taken(alpaca, others) if case == "kind" else _exchanged(_taken(gsm8k, others))
    pool = _shuffled([(row, True) for row in right] + [(row, False) for row in rest], draw)
    parts = {
        "pool": [row for row, _ in pool],
        "target": target,
        "reference": reference,
        "held_gsm8k": _taken(tests, sizes.held_out),
        "held_alpaca": held_alpaca,
    }
    _write(folder, parts, {"columns": {"prompt": "instruction", "query": "input", "response": "output"}})
    return Part(folder, [of_kind for _, of_kind in pool])


def mixture_part(data: Path, folder: Path, sizes: Sizes, seed: int) -> Part:
    """Writes three sources as plain texts, of 1, 4 and 4 parts of nine of the pool, and held-out rows of each."""
    draw = random.Random(seed)
    found = dict(zip(SOURCES, ("gsm8k_train", "alpaca_en_demo", "c4_demo"), strict=True))
    parts: dict[str, Sequence[Row]] = {}
    for source, name in found.items():
        rows = _shuffled(read(data, name), draw)
        held_out = _taken(rows, sizes.held_out)
        parts[source] = _texts(_taken(rows, sizes.pool * (1 if source == "gsm8k" else 4) // 9))
        parts[f"held_{source}"] = _texts(held_out)
    _write(folder, parts, {"columns": {"prompt": "text"}})
    return Part(folder, [])


def _texts(rows: Sequence[Row]) -> list[Row]:
    return [{"text": "\n".join(filter(None, (row["instruction"], row["input"], row["output"])))} for row in rows]


def _exchanged(rows: Sequence[Row]) -> list[Row]:
    """Returns the questions, each with the answer of the next row: every answer is that of another question."""
    answers = [row["output"] for row in [*rows[1:], *rows[:1]]]
    return [{**row, "output": answer} for row, answer in zip(rows, answers, strict=True)]


def _shuffled(rows: Sequence[Any], draw: random.Random) -> list[Any]:
    return draw.sample(rows, len(rows))


def _taken(rows: list[Row], count: int) -> list[Row]:
    """Takes ``count`` rows off the end of the list, so that none is taken twice."""
    if len(rows) < count:
        raise SystemExit(f"{count} rows more are asked for where {len(rows)} are left -> smaller --rows")
    taken = rows[len(rows) - count :]
    del rows[len(rows) - count :]
    return taken


def _write(folder: Path, parts: Mapping[str, Sequence[Row]], entry: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    info = {name: {"file_name": f"{name}.json", **entry} for name in parts}
    for name, content in (*((f"{name}.json", rows) for name, rows in parts.items()), ("dataset_info.json", info)):
        text = json.dumps(content, ensure_ascii=False, indent=1)
        file = folder / name
        if file.is_file() and file.read_text(encoding="utf-8") == text:
            continue  # another process may be reading it
        temporary = folder / f".{os.getpid()}-{name}"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(file)
