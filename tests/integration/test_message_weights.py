"""Weights of messages become those of their tokens as LLaMA-Factory makes them, and nothing else of a row changes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
import numpy as np
import pytest
from dataflex.config.check import check
from dataflex.config.load import read_config
from dataflex.core.errors import ConfigError
from dataflex.rows.token_lists import by_rows_of
from dataflex.rows.views import MixedSources

pytestmark = pytest.mark.llamafactory

IGNORED = -100
TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}


def chat(number: int, turns: int = 2, system: bool = False) -> dict[str, Any]:
    """Row ``number``: message i has weight (number + i) % 4 / 2, in the messages and in a column."""
    messages = [{"role": "system", "content": f"rules {number}", "weight": 0.0}] if system else []
    for turn in range(turns):
        messages.append({"role": "user", "content": f"question {number} {turn} " + "so " * (number % 5), "weight": 9.0})
        weight = (number + 2 * turn) % 4 / 2
        messages.append({"role": "assistant", "content": f"answer {number} {turn} " + "yes " * turn, "weight": weight})
    kind = "odd" if number % 2 else "even"
    return {"messages": messages, "per_message": [m["weight"] for m in messages], "kind": kind}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("chats")
    rows: dict[str, list[dict[str, Any]]] = {
        "chats": [chat(number, 1 + number % 3, number % 2 == 0) for number in range(20)],
        "dropped": [
            chat(number) if number % 3 else {**chat(number), "messages": chat(number)["messages"][:1]}
            for number in range(9)
        ],
        "few": [chat(number) | {"per_message": [1.0]} for number in range(3)],
        "words": [chat(number) | {"per_message": ["a"]} for number in range(3)],
        "none": [chat(0), chat(1) | {"per_message": None}],
        "bare": [
            {"messages": [{"role": m["role"], "content": m["content"]} for m in chat(i)["messages"]]} for i in range(3)
        ],
    }
    for name, content in rows.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    shared = {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": TAGS}
    info = {name: {"file_name": f"{name}.json", **shared} for name in rows}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


@pytest.fixture
def load(workspace: Path, folder: Path, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """``load(*keys, column)`` returns what the workflow gives the trainer, and the tokenizer."""
    import llamafactory.train.sft.workflow as sft
    from dataflex.integrations.llamafactory import data
    from dataflex.integrations.llamafactory.patches import installed
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    own = [
        f"dataset_dir={folder}", f"output_dir={tmp_path / 'out'}", "cutoff_len=256", "do_eval=false", "val_size=0",
        "eval_dataset=null", "per_device_train_batch_size=1", "warmup_step=1", "update_step=1", "update_times=1",
    ]  # fmt: skip

    def load_(*keys: str, column: str | None = "messages.weight", file: str = "select_loss") -> Any:
        spec = check(read_config(workspace / f"{file}.yaml", [*own, "stage=sft", *keys]), workspace)
        model_args, data_args, training_args, finetuning_args, _ = get_train_args(dict(spec.llamafactory))
        loaded = load_tokenizer(model_args)
        template = sft.get_template_and_fix_tokenizer(loaded["tokenizer"], data_args)
        given = (template, model_args, data_args, training_args)
        with patch.object(data, "wanted_column", lambda spec: column), installed(spec):
            module = sft.get_dataset(*given, stage=finetuning_args.stage, **loaded)
        return module, loaded["tokenizer"]

    with patch("llamafactory.hparams.parser._check_extra_dependencies", lambda *args: None):
        yield load_


def require_right(module: Any, tokenizer: Any, column: str = "messages.weight") -> None:
    """Each stretch of labels is an answer, and has the weight of the answer that it is."""
    dataset, lists = module["train_dataset"], module["token_columns"][column]
    weights = lists.of(np.arange(len(dataset)))
    seen = 0
    for row, own in zip(dataset, weights, strict=True):
        assert set(row) == {"input_ids", "attention_mask", "labels", "images", "videos", "audios"}
        assert len(own) == len(row["input_ids"])
        ids, labels = np.array(row["input_ids"]), np.array(row["labels"])
        edges = np.flatnonzero(np.diff(np.concatenate([[False], labels != IGNORED, [False]])))
        for first, last in edges.reshape(-1, 2):
            words = re.search(r"answer (\d+) (\d+) ", tokenizer.decode(ids[first:last]) + " ")
            if words is None:  # cut off
                continue
            number, turn = map(int, words.groups())
            assert set(own[first:last].tolist()) == {(number + 2 * turn) % 4 / 2}
            seen += 1
    assert seen


@pytest.mark.parametrize("keys", [(), ("mask_history=true",), ("cutoff_len=40",), ("preprocessing_num_workers=2",)])
def test_each_token_of_an_answer_has_the_weight_of_its_message(load, keys):
    module, tokenizer = load("dataset=chats", *keys)
    require_right(module, tokenizer)
    plain, _ = load("dataset=chats", *keys, column=None)
    assert "token_columns" not in plain
    assert plain["train_dataset"][:] == module["train_dataset"][:]


def test_a_question_has_its_weight_where_it_is_trained_on(load):
    module, _ = load("dataset=chats", "train_on_prompt=true")
    dataset, lists = module["train_dataset"], module["token_columns"]["messages.weight"]
    for row, own in zip(dataset, lists.of(np.arange(len(dataset))), strict=True):
        assert 9.0 in own.tolist()
        assert len(own) == len(row["input_ids"])


def test_a_column_of_lists_is_the_same_as_weights_in_messages_and_rows_that_are_dropped_take_theirs_along(load):
    module, tokenizer = load("dataset=chats,dropped", column="per_message")
    require_right(module, tokenizer, "per_message")
    assert len(module["train_dataset"]) == 26


def test_sources_that_are_tokenised_one_by_one_have_their_own(load):
    mixing = ["init_mixture_proportions=null", "mixture_sample_rule=uniform"]
    module, tokenizer = load("dataset=chats,dropped", "max_samples=7", *mixing, file="mix_random")
    assert isinstance(module["train_dataset"], MixedSources)
    require_right(module, tokenizer)


@pytest.mark.parametrize(
    ("keys", "column", "message"),
    [
        (("dataset=few",), "per_message", "has 4 messages and 1 weights under 'per_message' -> give each message one"),
        (("dataset=words",), "per_message", "row 0 of the dataset 'words.json' has .*; allowed: a list with a number"),
        (
            ("dataset=chats",),
            "per_massage",
            "the dataset 'chats.json' has no column 'per_massage' but .* -> did you mean",
        ),
        (("dataset=bare",), "messages.weight", "no message of the dataset 'bare.json' has a 'weight'"),
        (("dataset=chats", "packing=true"), "messages.weight", "packing: true makes a row of several"),
        (("dataset=chats", "tokenized_path=kept"), "messages.weight", "tokenized_path keeps no weights of messages"),
    ],
)
def test_what_cannot_be_mapped_is_refused_before_a_model_is_loaded(load, tmp_path, monkeypatch, keys, column, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load(*keys, column=column)


def test_tokenised_rows_with_weights_of_tokens_keep_the_source_of_each_row(load, tmp_path):
    without, kept = tmp_path / "without", tmp_path / "kept"
    plain, _ = load("dataset=chats,dropped", f"tokenized_path={without}", column=None)
    rows = datasets.load_from_disk(str(without))["train"]
    ones = [[1.0] * len(ids) for ids in rows["input_ids"]]
    datasets.DatasetDict({"train": rows.add_column("w", ones)}).save_to_disk(str(kept))
    shutil.copy(without / "dataflex_columns.npz", kept)
    module, _ = load("dataset=chats,dropped", f"tokenized_path={kept}", column="w")
    names, codes_N = plain["row_sources"]
    assert module["train_dataset"][:] == plain["train_dataset"][:]
    assert [own.tolist() for own in module["token_columns"]["w"].of(np.arange(len(ones)))] == ones
    assert module["row_sources"][0] == names
    np.testing.assert_array_equal(module["row_sources"][1], codes_N)


def test_what_else_is_kept_of_the_raw_data_stays_with_the_rows_whose_weights_are_taken_out(load):
    several = ("dataset=chats,dropped",)
    names, codes_N = load(*several, column=None)[0]["row_sources"]
    found = load(*several, column="per_message")[0]["row_sources"]
    assert found[0] == names
    np.testing.assert_array_equal(found[1], codes_N)

    mixing = ["mixture_by=column:kind", "val_size=6", "init_mixture_proportions=null", "mixture_sample_rule=uniform"]
    plain, _ = load("dataset=chats", *mixing, column=None, file="mix_random")
    module, tokenizer = load("dataset=chats", *mixing, column="per_message", file="mix_random")
    for key in ("train_dataset", "eval_dataset"):
        whole = plain[key] if key == "eval_dataset" else dict(zip(plain[key].names, plain[key].sources, strict=True))
        same = module[key] if key == "eval_dataset" else dict(zip(module[key].names, module[key].sources, strict=True))
        assert {name: rows[:] for name, rows in same.items()} == {name: rows[:] for name, rows in whole.items()}
        assert sorted(whole) == ["even", "odd"]
    lists = by_rows_of(module["train_dataset"], module["token_columns"])
    require_right(module | {"token_columns": lists}, tokenizer, "per_message")


def test_a_row_without_weights_is_empty_for_the_weighter_to_refuse(load):
    module, _ = load("dataset=none", column="per_message")
    lengths = [len(own) for own in module["token_columns"]["per_message"].of(np.arange(2))]
    assert lengths == [len(module["train_dataset"][0]["input_ids"]), 0]


def test_a_run_through_the_command_line_trains_on_them(train, folder, tmp_path):
    components = tmp_path / "own.yaml"
    components.write_text(
        "weighters:\n  answers:\n    name: token_column\n    params: {column: messages.weight}\n"
        "  alone:\n    name: spans\n    params: {between: [{start: answer, end: 'yes', weight: 0.5}]}\n"
    )
    keys = [
        f"dataset_dir={folder}",
        "dataset=chats",
        "eval_dataset=null",
        "do_eval=false",
        "val_size=0",
        f"components_cfg_file={components}",
        "warmup_step=1",
        "train_step=3",
    ]
    assert train("weight_loss", *keys, "component_name=answers") == 0
    trace = (tmp_path / "run" / "dataflex_trace.jsonl").read_text()
    lines = [json.loads(line) for line in trace.splitlines()]
    weights = [line for line in lines if line["kind"] == "weight"]
    assert weights
    assert weights[0]["min"] >= 0
    assert weights[0]["max"] <= 1.5
    assert train("weight_loss", *keys, "component_name=alone", out="spans") == 0
