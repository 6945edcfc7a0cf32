"""``validate`` names a data file that LLaMA-Factory cannot read, with row and column, and refuses none that it reads.

``tests/integration/test_unreadable_data.py`` gives the same files to LLaMA-Factory.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from data_files import ALPACA, BAD, CHATS, OPENAI_TAGS, READ, lines, write
from dataflex.config.check import check
from dataflex.config.checks import data_files as files
from dataflex.config.checks import datasets as data
from dataflex.core.errors import InvalidConfigError

KTO_COLUMNS = {"prompt": "instruction", "response": "output", "kto_tag": "label"}
KTO = ({"a.json": [row | {"label": True} for row in ALPACA]}, {"file_name": "a.json", "columns": KTO_COLUMNS}, [])
PLAIN = ({"a.json": ALPACA}, {"file_name": "a.json"}, [])


PAIRS = {"file_name": "a.json", "ranking": True, "columns": {"prompt": "q", "chosen": "good", "rejected": "bad"}}


@pytest.mark.parametrize("stage", ["rm", "dpo"])
@pytest.mark.parametrize("wrong", ["good", "bad"])
def test_pairs_of_which_none_has_two_texts_are_refused_with_what_stands_there(stage, wrong):
    """As in LLaMA-Factory 4717: an answer is an object, each row is dropped, and nothing is left."""
    rows = [{"q": "1 + 1", "good": "2", "bad": "3"} for _ in range(4)]
    assert problems(({"a.json": rows}, PAIRS, []), stage=stage) == []
    (problem,) = problems(({"a.json": [row | {wrong: {"answer": "2"}} for row in rows]}, PAIRS, []), stage=stage)
    assert "'bad' (a.json) gives no rows to train on: no row has a text in both 'good' and 'bad'" in problem
    assert f"row 1, column '{wrong}': found" in problem


@pytest.mark.parametrize("train_type", ["static", "dynamic_select", "dynamic_mix"])
def test_a_dataset_whose_rows_a_stage_drops_one_and_all_is_refused(train_type):
    """LLaMA-Factory warns of each row that it drops; where no row is left, or no row of a source, the run ends."""
    assert any("'bad' (a.json) gives no rows to train on" in p for p in problems(PLAIN, train_type, stage="kto"))
    assert any("stage: sft drops a row with one" in p for p in problems(KTO, train_type))


def test_tags_are_as_the_stage_needs_them():
    assert problems(KTO, stage="kto") == []
    words = ({"a.json": [row | {"label": "yes"} for row in ALPACA]}, KTO[1], [])
    assert "no row has true or false in the column 'label'" in problems(words, stage="kto")[0]
    assert problems(words) == []  # a tag that is no tag is not read
    assert problems(KTO, dataset="bad,good") == []  # the other dataset has rows


@pytest.mark.parametrize("train_type", ["static", "dynamic_select", "dynamic_mix"])
def test_a_pair_stage_needs_pairs_whatever_the_type_of_the_run(train_type):
    assert any("has no ranking: true" in problem for problem in problems(PLAIN, train_type, stage="dpo"))


SCHEDULE = {"warmup_step": 1, "update_step": 1, "update_times": 1, "component_name": "random"}
TYPES = {
    "static": {},
    "dynamic_select": SCHEDULE,
    "dynamic_mix": SCHEDULE | {"dataset": "bad,good", "mixture_sample_rule": "uniform"},
    "dynamic_weight": SCHEDULE | {"component_name": "loss"},
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "good.json").write_text(json.dumps(ALPACA * 4))
    return tmp_path


def problems(case, train_type="static", **keys):
    write_with_good(case)
    base = {"model_name_or_path": "./model", "stage": "sft", "do_train": True, "dataset": "bad", "dataset_dir": "data"}
    base |= {"output_dir": "out", "template": "default", "per_device_train_batch_size": 1, "train_type": train_type}
    try:
        check(base | TYPES[train_type] | keys, Path())
    except InvalidConfigError as error:
        return [str(problem) for problem in error.problems]
    return []


def write_with_good(case):
    write(Path("data"), case)
    info = json.loads(Path("data/dataset_info.json").read_text())
    Path("data/dataset_info.json").write_text(json.dumps(info | {"good": {"file_name": "../good.json"}}))


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_cannot_be_read_is_named_with_row_and_column(case):
    (problem,) = problems(BAD[case])
    assert problem.startswith("dataset: ")
    assert " -> " in problem
    for words in BAD[case][2]:
        assert words in problem, problem


@pytest.mark.parametrize("case", READ)
def test_a_file_that_is_read_is_not_refused(case):
    stage = "pt" if READ[case][1].get("columns") == {"prompt": "text"} else "sft"
    assert problems(READ[case], stage=stage) == []


@pytest.mark.parametrize("train_type", TYPES)
def test_every_train_type_looks_into_its_files(train_type):
    (problem,) = problems(BAD["truncated JSON lines"], train_type)
    assert "a.jsonl, line 4" in problem


@pytest.mark.parametrize("train_type", TYPES)
def test_answers_that_are_all_null_are_refused_where_no_other_dataset_has_rows(train_type):
    case = BAD["answers that are all null"]
    assert len(problems(case, train_type)) == 1
    assert len(problems(case, train_type, dataset="bad,good")) == (train_type == "dynamic_mix")
    assert problems(case, train_type, stage="pt") == []


@pytest.mark.parametrize("key", ["hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name"])
def test_rows_that_are_elsewhere_are_not_looked_for(key):
    more = {"subset": "en", "split": "validation", "folder": "x", "num_samples": 3, "columns": {"prompt": "text"}}
    assert problems(({}, {key: "someone/some", **more}, []), stage="pt") == []


def test_a_row_that_is_not_certain_to_be_read_is_not_refused():
    wrong = {"instruction": 5, "input": "", "output": "y"}
    case = ({"a.jsonl": lines([*ALPACA, wrong])}, {"file_name": "a.jsonl"}, [])
    assert len(problems(case)) == 1
    assert len(problems(case, max_samples=5)) == 1
    assert problems(case, max_samples=4) == []
    assert problems((case[0], case[1] | {"num_samples": 4}, [])) == []
    assert len(problems((case[0], case[1] | {"num_samples": 9}, []))) == 1


def test_files_beyond_the_bound_are_left_to_the_time_when_they_are_read(monkeypatch):
    assert len(problems(BAD["truncated JSON lines"])) == 1
    monkeypatch.setattr(data, "MOST", 100)
    assert problems(BAD["truncated JSON lines"]) == []


def test_a_pair_stage_needs_pairs():
    pairs = ({"a.json": [{"instruction": "x", "chosen": "y", "rejected": "z"}]}, {"file_name": "a.json"}, [])
    columns = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
    assert "ranking" in problems((pairs[0], pairs[1] | {"columns": columns}, []), stage="dpo")[0]
    assert problems((pairs[0], pairs[1] | {"columns": columns, "ranking": True}, []), stage="dpo") == []


def test_a_formatting_that_a_plugin_file_may_bring_is_left_to_it(folder):
    (folder / "mine.py").write_text("")
    case = ({"a.json": CHATS}, {"file_name": "a.json", "formatting": "mine"}, [])
    assert len(problems(case, "dynamic_select")) == 1
    assert problems(case, "dynamic_select", plugins=["mine.py"]) == []


def test_a_pipe_is_no_data_file(folder):
    (folder / "data").mkdir()
    os.mkfifo(folder / "data" / "a.json")
    (problem,) = problems(({}, {"file_name": "a.json"}, []))
    assert "neither a file nor a folder" in problem


def test_only_the_datasets_of_the_run_are_looked_at():
    case = ({"a.json": ALPACA}, {"file_name": "a.json"}, [])
    write_with_good(case)
    assert problems(case, dataset="good") == []


def test_the_look_into_16_MB_takes_less_than_a_second(folder):
    rows = lines([ALPACA[0] | {"output": "word " * 200}] * 100)
    text = rows * (files.LARGEST // len(rows))
    began = time.process_time()
    assert problems(({"a.jsonl": text}, {"file_name": "a.jsonl", "tags": OPENAI_TAGS}, [])) == []
    assert time.process_time() - began < 1
