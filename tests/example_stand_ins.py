"""What stands in for LLaMA-Factory's demo data, and for what other commands leave, under the names in `examples/`.

The files have the form and as many rows as LLaMA-Factory's, and words of our own.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

CHAT = {"messages": "messages"}
TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
PAIRS = {
    "ranking": True,
    "formatting": "sharegpt",
    "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
}
DATASETS: dict[str, tuple[int, dict[str, Any]]] = {
    "identity": (91, {"file_name": "identity.json"}),
    "alpaca_en_demo": (999, {"file_name": "alpaca_en_demo.json"}),
    "alpaca_zh_demo": (1000, {"file_name": "alpaca_zh_demo.json"}),
    "c4_demo": (300, {"file_name": "c4_demo.jsonl", "columns": {"prompt": "text"}}),
    "wiki_demo": (30, {"file_name": "wiki_demo.txt", "columns": {"prompt": "text"}}),
    "dpo_en_demo": (300, {"file_name": "dpo_en_demo.json"} | PAIRS),
    "dpo_zh_demo": (300, {"file_name": "dpo_zh_demo.json"} | PAIRS),
    "kto_en_demo": (
        300,
        {
            "file_name": "kto_en_demo.json",
            "formatting": "sharegpt",
            "columns": CHAT | {"kto_tag": "label"},
            "tags": TAGS,
        },
    ),
}
"""Dataset -> its rows, and its entry in dataset_info.json."""

_WORDS = ["add", "two", "and", "three", "sort", "the", "words", "find", "a", "city", "write", "one", "line", "river"]


def sentence(draw: random.Random) -> str:
    """Returns some words."""
    return " ".join(draw.choice(_WORDS) for _ in range(draw.randint(3, 12)))


def write_data(folder: Path) -> None:
    """Writes a `dataset_dir`."""
    folder.mkdir(parents=True)
    draw = random.Random(0)
    for rows, entry in DATASETS.values():
        path = folder / entry["file_name"]
        content = [_row(entry, draw, number) for number in range(rows)]
        if path.suffix == ".json":
            path.write_text(json.dumps(content), encoding="utf-8")
        elif path.suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        else:
            path.write_text("".join(row["text"] + "\n" for row in content), encoding="utf-8")
    info = {name: entry for name, (_, entry) in DATASETS.items()}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")


def _row(entry: dict[str, Any], draw: random.Random, number: int) -> dict[str, Any]:
    columns = entry.get("columns", {})
    if "prompt" in columns:
        return {"text": ". ".join(sentence(draw) for _ in range(8))}
    if "ranking" in entry:
        turns = [{"from": "human", "value": sentence(draw)}]
        answers = {key: {"from": "gpt", "value": sentence(draw)} for key in ("chosen", "rejected")}
        return {"conversations": turns, **answers}
    if "kto_tag" in columns:
        turns = [{"role": "user", "content": sentence(draw)}, {"role": "assistant", "content": sentence(draw)}]
        return {"messages": turns, "label": number % 2 == 0}
    return {"instruction": sentence(draw), "input": "", "output": sentence(draw)}


def write_results(folder: Path) -> None:
    """Writes what `score` and former runs would have left, as far as the files of `examples/` name it."""
    import pyarrow
    import pyarrow.parquet

    scores = folder / "saves/qwen2.5-0.5b/scores/dataflex_scores.parquet"
    scores.parent.mkdir(parents=True)
    rows = DATASETS["alpaca_en_demo"][0]
    draw = random.Random(1)
    table = {"row": list(range(rows)), "score": [draw.uniform(0.5, 3.0) for _ in range(rows)]}
    pyarrow.parquet.write_table(pyarrow.table(table), scores)
    for model in ("full/doremi/reference", "full/held_out"):
        path = folder / "saves/qwen2.5-0.5b" / model
        path.mkdir(parents=True)
        (path / "config.json").write_text(json.dumps({"model_type": "qwen2"}), encoding="utf-8")
