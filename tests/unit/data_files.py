"""Small data files that LLaMA-Factory cannot read, and odd ones that it reads.

Each case is (files, definition, words): path in ``dataset_dir`` -> content, the entry of dataset_info.json, and what
the message must hold. A case without words must be read.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

ALPACA = [{"instruction": "add one", "input": "", "output": "two"}] * 4
TURNS = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
CHATS = [{"conversations": TURNS}] * 4
OPENAI = [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}] * 4
OPENAI_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
PAIR = {"prompt": "instruction", "response": "output"}

Case = tuple[dict[str, Any], Any, list[str]]


def lines(rows: list[Any]) -> str:
    """Returns JSON lines."""
    return "\n".join(map(json.dumps, rows)) + "\n"


def write(folder: Path, case: Case) -> None:
    """Writes the files of a case and a dataset_info.json that defines ``bad``."""
    folder.mkdir(parents=True, exist_ok=True)
    files, definition, _ = case
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    (folder / "dataset_info.json").write_text(json.dumps({"bad": definition}), encoding="utf-8")


def _file(name: str, content: Any, *words: str, **more: Any) -> Case:
    return {name: content}, {"file_name": name, **more}, list(words)


BAD: dict[str, Case] = {
    "an entry that is a list": ({"a.json": ALPACA}, ["a.json"], ["dataset_info.json", "'bad'", "list"]),
    "an entry that is a text": ({"a.json": ALPACA}, "a.json", ["dataset_info.json", "'bad'", "text", "file_name"]),
    "an entry that is null": ({"a.json": ALPACA}, None, ["dataset_info.json", "'bad'", "null"]),
    "an empty file_name": ({"a.json": ALPACA}, {"file_name": ""}, ["file_name", "''"]),
    "a file_name that is a list": ({"a.json": ALPACA}, {"file_name": ["a.json"]}, ["file_name", "['a.json']"]),
    "columns that are a list": _file("a.json", ALPACA, "columns", "['prompt']", columns=["prompt"]),
    "a column that is a number": _file("a.json", ALPACA, "columns", "prompt", "5", columns={"prompt": 5}),
    "tags that are a text": _file("a.json", CHATS, "tags", "'role'", formatting="sharegpt", tags="role"),
    "num_samples that is a text": _file("a.json", ALPACA, "num_samples", "'3'", num_samples="3"),
    "num_samples of zero": _file("a.json", ALPACA, "num_samples", "0", num_samples=0),
    "a wrong formatting": _file("a.json", ALPACA, "formatting", "'alpacca'", "'alpaca'", formatting="alpacca"),
    "a formatting that is a list": _file("a.json", ALPACA, "formatting", "['alpaca']", formatting=["alpaca"]),
    "alpaca rows as sharegpt": _file("a.json", ALPACA, "a.json", "'conversations'", formatting="sharegpt"),
    "sharegpt rows as alpaca": _file("a.json", CHATS, "a.json", "'instruction'", "formatting"),
    "openai rows without tags": _file(
        "a.json", OPENAI, "a.json", "row 1", "'from'", "tags", formatting="sharegpt", columns={"messages": "messages"}
    ),
    "openai rows with another role": _file(
        "a.jsonl", lines([*OPENAI, {"messages": [{"role": "bot", "content": "x"}] * 2}]), "a.jsonl", "row 5", "'bot'",
        formatting="openai", columns={"messages": "messages"}, tags=OPENAI_TAGS,
    ),
    "rows whose messages are a text": _file(
        "a.json", [{"conversations": "hi"}], "a.json", "row 1", "'conversations'", "'hi'", formatting="sharegpt"
    ),
    "a row without messages": _file(
        "a.json", [*CHATS, {"conversations": None}], "a.json", "row 5", "'conversations'", "null", formatting="sharegpt"
    ),
    "truncated JSON lines": _file("a.jsonl", lines(ALPACA)[:-12], "a.jsonl", "line 4", "JSON"),
    "a broken line in the middle": _file(
        "a.jsonl", lines(ALPACA) + '{"instruction": "x",}\n' + lines(ALPACA), "a.jsonl", "line 5", "JSON"
    ),
    "a truncated list": _file("a.json", json.dumps(ALPACA, indent=1)[:-9], "a.json", "line", "JSON"),
    "rows without the declared column": _file(
        "a.json", ALPACA, "a.json", "'question'", "'prompt'", "instruction", columns={"prompt": "question"}
    ),
    "rows without an input column": _file("a.json", [{"instruction": "x", "output": "y"}] * 3, "a.json", "'input'"),
    "a history that is no pair": _file(
        "a.json", [{"instruction": "x", "output": "y", "history": [["a", "b", "c"]]}], "a.json", "row 1", "'history'",
        columns={**PAIR, "history": "history"},
    ),
    "a prompt that is a number": _file(
        "a.json", [{"instruction": 5, "input": "", "output": "y"}] * 3, "a.json", "row 1", "'instruction'", "5"
    ),
    "a prompt that is a list": _file(
        "a.json", [{"instruction": ["x"], "input": "", "output": "y"}] * 3, "a.json", "row 1", "'instruction'", "['x']"
    ),
    "a prompt that is a number here and there": _file(
        "a.jsonl", lines([*ALPACA, {"instruction": 5, "input": "", "output": "y"}]), "a.jsonl", "row 5", "'instruction'"
    ),
    "a text among the rows": _file("a.json", [*ALPACA, "x"], "a.json", "row 5", "'x'"),
    "a null among the rows": _file("a.json", [*ALPACA, None], "a.json", "row 5", "null"),
    "lists on lines": _file("a.jsonl", "[1, 2]\n[3, 4]\n", "a.jsonl", "JSON"),
    "texts on lines": _file("a.jsonl", '"x"\n"y"\n', "a.jsonl", "'x'", columns={"prompt": "text"}),
    "two lists": _file("a.json", json.dumps(ALPACA) + "\n" + json.dumps(ALPACA), "a.json", "line 2", "JSON"),
    "messages that are texts": _file(
        "a.json", [{"conversations": ["a", "b"]}], "a.json", "row 1", "'a'", formatting="sharegpt"
    ),
    "columns without messages": _file("a.json", CHATS, "messages", formatting="sharegpt", columns={"tools": "t"}),
    "a split that is none": _file("a.json", ALPACA, "split", "'test'", split="test"),
    "a formatting that is null": _file("a.json", ALPACA, "formatting", "null", formatting=None),
    "a hub name that is null": ({"a.json": ALPACA}, {"file_name": "a.json", "hf_hub_url": None}, ["hf_hub_url"]),
    "a ranking that is a text": _file("a.json", ALPACA, "ranking", "'false'", ranking="false"),
    "an empty folder": ({"d/e": ""}, {"file_name": "d/e/"}, ["d/e"]),
    "no UTF-8": _file("a.jsonl", b'{"instruction": "\xff", "input": "", "output": "y"}\n', "a.jsonl", "UTF-8"),
    "a list nested too deeply": _file(
        "a.jsonl", '{"instruction": "x", "input": "", "output": "y", "p": ' + "[" * 99999 + "]" * 99999 + "}", "nested"
    ),
    "numbers among the rows": _file("a.json", [1, 2, 3], "a.json", "row 1", "1"),
    "one object in place of a list": _file("a.json", {"data": ALPACA, "version": 1}, "a.json", "one object", "data"),
    "a number in place of a list": _file("a.json", 7, "a.json", "7"),
    "a text in place of a list": _file("a.json", '"rows"', "a.json", "'rows'"),
    "null in place of a list": _file("a.json", "null", "a.json", "null"),
    "garbage under .json": _file("a.json", "garbage {", "a.json", "line 1", "JSON"),
    "garbage under .parquet": _file("a.parquet", b"not parquet at all", "a.parquet", "Parquet"),
    "truncated .parquet": _file("a.parquet", b"PAR1" + b"\0" * 40, "a.parquet", "Parquet"),
    "garbage under .csv": _file("a.csv", bytes(range(128, 256)) * 4, "a.csv", "UTF-8"),
    "a .csv without the column": _file("a.csv", "question,answer\na,b\n", "a.csv", "'instruction'", "question"),
    "a .csv with a row too wide": _file(
        "a.csv", "instruction,input,output\na,b,c\nd,e,f,g\n", "a.csv", "row 2", "4", "3"
    ),
    "a .csv with semicolons": _file("a.csv", "instruction;input;output\na;b;c\n", "a.csv", "'instruction'"),
    "a text without the column": _file("a.txt", "one\ntwo\n", "a.txt", "'instruction'", "text"),
    "a folder with .DS_Store": (
        {"d/a.json": ALPACA, "d/.DS_Store": b"\0\0\0\1Bud1"}, {"file_name": "d"}, [".DS_Store", "d"],
    ),
    "a folder of two types": ({"d/a.json": ALPACA, "d/b.txt": "x\n"}, {"file_name": "d"}, ["a.json", "b.txt"]),
    "a folder within a folder": ({"d/e/a.json": ALPACA}, {"file_name": "d"}, ["d", "folder"]),
    "an extension in capitals": _file("a.JSON", ALPACA, "a.JSON", "'JSON'"),
    "a ranking that is no pair": _file("a.json", ALPACA, "ranking", ranking=True),
    "a column of texts and numbers": _file(
        "a.json", [*ALPACA, ALPACA[0] | {"output": 5}], "a.json", "row 5", "'output'", "found 5, a number"
    ),
    "a column of texts and objects that is not declared": _file(
        "a.jsonl", lines([{**row, "id": "x"} for row in ALPACA] + [ALPACA[0] | {"id": {"n": 1}}]), "row 5", "'id'"
    ),
    "a message whose text is null": _file(
        "a.json", [*CHATS, {"conversations": [TURNS[0], {"from": "gpt", "value": None}]}], "a.json", "row 5",
        "'conversations'", "found null as 'value'", formatting="sharegpt",
    ),
    "conversations that are all empty": _file(
        "a.json", [{"conversations": []}] * 3, "a.json", "'conversations'", "turns", formatting="sharegpt"
    ),
    "turns that are out of order in all rows": _file(
        "a.json", [{"conversations": TURNS[::-1]}] * 3, "a.json", "'conversations'", "turns", formatting="sharegpt"
    ),
    "answers that are all null": _file(
        "a.json", [{"instruction": "x", "input": "", "output": None}] * 3, "'output'"
    ),
}  # fmt: skip

READ: dict[str, Case] = {
    "alpaca": _file("a.json", ALPACA),
    "JSON lines under .json": _file("a.json", lines(ALPACA)),
    "a list under .jsonl": _file("a.jsonl", ALPACA),
    "one row that is no list": _file("a.json", ALPACA[0]),
    "one row over several lines": _file("a.json", json.dumps(ALPACA[0], indent=2)),
    "blank lines": _file("a.jsonl", "\n\n" + lines(ALPACA).replace("\n", "\n\n")),
    "two rows on a line": _file("a.jsonl", lines(ALPACA).strip().replace("\n", " ")),
    "a list of texts": _file("a.json", ["one", "two"], columns={"prompt": "text"}),
    "no final newline": _file("a.jsonl", lines(ALPACA)[:-1]),
    "more columns than are declared": _file("a.json", [row | {"id": i} for i, row in enumerate(ALPACA)], columns=PAIR),
    "rows that lack a column here and there": _file("a.json", [*ALPACA, {"instruction": "x", "output": "y"}]),
    "the first rows lack a column": _file("a.jsonl", lines([{"instruction": "x", "output": "y"}, *ALPACA])),
    "an answer that is null": _file("a.json", [*ALPACA, {"instruction": "x", "input": None, "output": None}]),
    "a prompt that is null": _file("a.json", [*ALPACA, {"instruction": None, "input": "x", "output": "y"}]),
    "history": _file(
        "a.json",
        [{"instruction": "x", "output": "y", "history": [["a", "b"]]}, {"instruction": "x", "output": "y"}],
        columns={**PAIR, "history": "history"},
    ),
    "sharegpt": _file("a.json", CHATS, formatting="sharegpt"),
    "sharegpt with another role": _file(
        "a.json", [*CHATS, {"conversations": [{"from": "bot", "value": "x"}] * 2}], formatting="sharegpt"
    ),
    "sharegpt with an empty row": _file("a.json", [*CHATS, {"conversations": []}], formatting="sharegpt"),
    "sharegpt with a system turn": _file(
        "a.json", [{"conversations": [{"from": "system", "value": "s"}, *TURNS]}, *CHATS], formatting="sharegpt"
    ),
    "a message that lacks its role": _file(
        "a.json", [*CHATS, {"conversations": [{"value": "x"}, {"value": "y"}]}], formatting="sharegpt"
    ),
    "openai": _file("a.json", OPENAI, formatting="openai", columns={"messages": "messages"}, tags=OPENAI_TAGS),
    "a system message without a text": _file(
        "a.json", [*CHATS, {"conversations": [{"from": "system", "value": None}, *TURNS]}], formatting="sharegpt"
    ),
    "a column of whole and other numbers, and nulls": _file(
        "a.json", [row | {"id": id_} for row, id_ in zip(ALPACA, [1, 2.5, None, 4], strict=True)]
    ),
    "turns out of order here and there, and null in them": _file(
        "a.json", [*CHATS, {"conversations": [{"from": "gpt", "value": None}, TURNS[0]]}], formatting="sharegpt"
    ),
    "openai as sharegpt": _file(
        "a.jsonl", lines(OPENAI), formatting="sharegpt", columns={"messages": "messages"}, tags=OPENAI_TAGS
    ),
    "columns that are unknown": _file("a.json", ALPACA, columns={**PAIR, "id": "none", "query": None}),
    "subset, split and folder": _file("a.json", ALPACA, split="train", subset=None, folder=None, num_samples=2),
    "more samples than rows": _file("a.json", ALPACA, num_samples=9),
    "a text file": _file("a.txt", "one\n\ntwo\n", columns={"prompt": "text"}),
    "csv": _file("a.csv", 'instruction,input,output\n"a, b",,c\n\nd,e,"f\ng"\n'),
    "csv with short rows": _file("a.csv", "instruction,input,output\na,b,c\nd,e\n"),
    "csv with an index": _file("a.csv", ",instruction,input,output\n0,a,b,c\n1,d,e,f\n"),
    "compressed": _file("a.json", gzip.compress(json.dumps(ALPACA).encode())),
    "a byte order mark": _file("a.jsonl", "\ufeff" + lines(ALPACA)),
    "a value that is no number": _file("a.json", [ALPACA[0] | {"p": float("nan")}]),
    "prompts that are false or empty": _file(
        "a.json",
        [{"instruction": False, "input": "x", "output": "y"}, {"instruction": False, "input": "", "output": "y"}],
    ),
    "a history that is a text": _file(
        "a.json", [{"instruction": "x", "output": "y", "history": "abc"}], columns={**PAIR, "history": "history"}
    ),
    "numbers as texts": _file("a.json", [{"instruction": "5", "input": "", "output": "7"}] * 3),
    "a key twice": _file("a.json", '[{"instruction": "x", "instruction": "z", "input": "", "output": "y"}]'),
    "a message without a role, with partial tags": _file(
        "a.json",
        [*OPENAI, {"messages": [{"content": "x"}]}],
        formatting="openai",
        columns={"messages": "messages"},
        tags=OPENAI_TAGS,
    ),
    "openai without its system column": _file(
        "a.json",
        OPENAI,
        formatting="openai",
        columns={"messages": "messages", "system": "s", "tools": "t"},
        tags=OPENAI_TAGS,
    ),
    "a part of the rows": _file("a.json", ALPACA, split="train[:2]"),
    "csv whose first row is wide": _file("a.csv", "instruction,input,output\na,b,c,d\ne,f,g\n"),
    "csv after blank lines": _file("a.csv", "\n\ninstruction,input,output\na,b,c\n"),
    "csv with another line end in a field": _file("a.csv", "instruction,input,output\na\u2028b,c,d\n"),
    "rows without any column": _file("a.jsonl", "{}\n" + lines(ALPACA)),
    "a folder": ({"d/a.json": ALPACA, "d/b.jsonl": lines(ALPACA)}, {"file_name": "d"}, []),
}

KILLS = ("null in place of a list", "a list nested too deeply")
"""Bad files that end the process when they are read: pandas falls over them."""
