"""A column of the raw data stays with its row, whatever LLaMA-Factory samples, merges, holds out or drops."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from dataflex.config.arguments import DataflexArguments
from dataflex.config.check import check
from dataflex.config.checks.kept_columns import column_problems
from dataflex.config.load import read_config
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.errors import ConfigError
from dataflex.core.kinds import SELECTOR
from dataflex.core.registry import register_selector
from dataflex.rows.score_columns import ScoreColumns
from dataflex.rows.views import MixedSources
from dataflex.scoring.named_scores import NamedScores
from dataflex.scoring.score_sources import fixed_sources
from dataflex.testing import pad_collate
from dataflex.train.selector.base_selector import Selector

pytestmark = pytest.mark.llamafactory

NONE = 5
"""The value of every row whose number is a multiple of it is missing."""


def level(number: int) -> float | None:
    """The value of the row with that number in the column ``level``."""
    return None if number % NONE == 0 else number / 4


def alpaca(number: int, drop: bool) -> dict[str, Any]:
    answer = None if drop else f"answer {number}"
    return {"instruction": f"row {number} end", "input": "", "output": answer, "level": level(number), "word": "high"}


def sharegpt(number: int, drop: bool) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"row {number} end"}, {"from": "gpt", "value": f"answer {number}"}]
    return {"conversations": turns[:1] if drop else turns, "level": level(number)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Rows with numbers of their own over all datasets, some of which LLaMA-Factory drops."""
    folder = tmp_path_factory.mktemp("data")
    rows: dict[str, list[dict[str, Any]]] = {
        "first": [alpaca(number, number % 7 == 3) for number in range(100, 130)],
        "turns": [sharegpt(number, number % 6 == 2) for number in range(200, 217)],
        "plain": [
            {k: v for k, v in alpaca(number, False).items() if k not in ("level", "word")} for number in range(300, 309)
        ],
        "whole": [alpaca(number, False) | {"level": number} for number in range(400, 409)],
        "text": [alpaca(number, False) | {"level": "hard" if number == 502 else None} for number in range(500, 504)],
    }
    entries: dict[str, dict[str, Any]] = {name: {"file_name": f"{name}.json"} for name in rows}
    entries["turns"] |= {"formatting": "sharegpt", "columns": {"messages": "conversations"}}
    entries["some"] = {"file_name": "first.json", "num_samples": 11}
    entries["more"] = {"file_name": "whole.json", "num_samples": 23}
    for name, content in rows.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "dataset_info.json").write_text(json.dumps(entries))
    return folder


@pytest.fixture
def load(workspace: Path, folder: Path, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """``load(*keys, file, columns)`` returns what the workflow gives the trainer, and the tokenizer."""
    import llamafactory.train.sft.workflow as sft
    from dataflex.integrations.llamafactory import data
    from dataflex.integrations.llamafactory.patches import installed
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    own = [
        f"dataset_dir={folder}", f"output_dir={tmp_path / 'out'}", "cutoff_len=64", "do_eval=false", "val_size=0",
        "eval_dataset=null", "per_device_train_batch_size=1", "warmup_step=1", "update_step=1", "update_times=1",
    ]  # fmt: skip

    def load_(*keys: str, file: str = "select_loss", columns: tuple[str, ...] = ("level",)) -> Any:
        mixes = ["init_mixture_proportions=null", "mixture_sample_rule=uniform"] if file == "mix_random" else []
        spec = check(read_config(workspace / f"{file}.yaml", [*own, *mixes, "stage=sft", *keys]), workspace)
        model_args, data_args, training_args, finetuning_args, _ = get_train_args(dict(spec.llamafactory))
        loaded = load_tokenizer(model_args)
        template = sft.get_template_and_fix_tokenizer(loaded["tokenizer"], data_args)
        given = (template, model_args, data_args, training_args)
        with patch.object(data, "wanted_columns", lambda spec: columns), installed(spec):
            module = sft.get_dataset(*given, stage=finetuning_args.stage, **loaded)
        return module, loaded["tokenizer"]

    with patch("llamafactory.hparams.parser._check_extra_dependencies", lambda *args: None):
        yield load_


def numbers_of(dataset: Any, tokenizer: Any) -> list[int]:
    """Returns the number that each row has in its text."""
    texts = [tokenizer.decode(row["input_ids"]) for row in dataset]
    return [int(re.search(r"row (\d+) end", text).group(1)) for text in texts]


def require_right(module: Any, tokenizer: Any, but: range = range(0)) -> list[int]:
    """Requires that each row of the train dataset has the value of its own number; returns the numbers.

    Rows with a number in ``but`` are of a dataset without the column.
    """
    dataset = module["train_dataset"]
    numbers = numbers_of(dataset, tokenizer)
    columns = ScoreColumns(dataset, module.get("score_columns"))
    found = NamedScores(dataset, pad_collate, sources=fixed_sources(dataset, columns)).of("column:level")
    expected = [None if number in but else number if number >= 400 else level(number) for number in numbers]
    np.testing.assert_array_equal(found, np.array(expected, dtype=np.float64))
    assert np.isfinite(found).any()
    return numbers


LEFT = [number for number in range(100, 130) if number % 7 != 3]
TURNS = [number for number in range(200, 217) if number % 6 != 2]


@pytest.mark.parametrize(
    ("keys", "numbers"),
    [
        pytest.param(["dataset=first"], LEFT, id="rows without an answer are dropped"),
        pytest.param(["dataset=turns"], TURNS, id="sharegpt, rows of an odd number of turns are dropped"),
        pytest.param(["dataset=first", "preprocessing_batch_size=4"], LEFT, id="in small batches, some of them whole"),
        pytest.param(["dataset=first", "preprocessing_num_workers=2"], LEFT, id="in two processes"),
        pytest.param(["dataset=first", "max_samples=9"], LEFT[:7], id="max_samples"),
        pytest.param(["dataset=whole,turns,first"], [*range(400, 409), *TURNS, *LEFT], id="several datasets"),
        pytest.param(["dataset=first,plain"], [*LEFT, *range(300, 309)], id="one without the column"),
        pytest.param(["dataset=whole", "stage=pt", "packing=false"], list(range(400, 409)), id="pt"),
        pytest.param(["dataset=first", "stage=pt", "packing=false"], list(range(100, 130)), id="pt drops nothing"),
        pytest.param(["dataset=first", "eval_dataset=text"], LEFT, id="an evaluation set with text in that column"),
    ],
)
def test_each_row_has_the_value_of_its_own(load, keys, numbers):
    module, tokenizer = load(*keys)
    assert require_right(module, tokenizer, but=range(300, 309)) == numbers


def test_a_dropped_row_is_told_of_once(load, caplog):
    theirs = logging.getLogger("llamafactory")
    theirs.addHandler(caplog.handler)  # it hands nothing on
    try:
        load("dataset=first")
    finally:
        theirs.removeHandler(caplog.handler)
    assert sum("'row 108 end'" in message for message in caplog.messages) == 1


@pytest.mark.parametrize("dataset", ["some", "more"])
def test_rows_that_were_sampled_have_the_value_of_their_own(load, dataset):
    module, tokenizer = load(f"dataset={dataset}")
    numbers = require_right(module, tokenizer)
    assert numbers != sorted(numbers)
    assert len(set(numbers)) < len(numbers) or dataset == "some"


@pytest.mark.parametrize("strategy", ["interleave_under", "interleave_over"])
def test_interleaved_datasets_keep_their_values(load, strategy):
    keys = [f"mix_strategy={strategy}", "interleave_probs='0.5,0.5'"]
    module, tokenizer = load("dataset=first,turns", *keys)
    numbers = require_right(module, tokenizer)
    assert {number // 100 for number in numbers} == {1, 2}
    assert numbers != sorted(numbers)


def test_rows_that_are_held_out_take_their_values_with_them(load):
    module, tokenizer = load("dataset=first,turns", "val_size=9")
    numbers = require_right(module, tokenizer)
    assert len(numbers) + len(module["eval_dataset"]) == len(LEFT) + len(TURNS)
    assert not set(numbers) & set(numbers_of(module["eval_dataset"], tokenizer))
    assert numbers != sorted(numbers)


@pytest.mark.parametrize("val_size", ["0", "8"])
def test_sources_that_are_tokenised_one_by_one_follow_each_other(load, val_size):
    module, tokenizer = load("dataset=turns,plain,first", f"val_size={val_size}", file="mix_random")
    assert isinstance(module["train_dataset"], MixedSources)
    numbers = require_right(module, tokenizer, but=range(300, 309))
    assert [number // 100 for number in numbers] == sorted((number // 100 for number in numbers), key=[2, 3, 1].index)


def test_the_rows_are_to_the_last_bit_those_of_a_run_without_a_column(load):
    keys = ["dataset=first,turns", "val_size=7"]
    ours, _ = load(*keys)
    theirs, _ = load(*keys, columns=())
    assert "score_columns" not in theirs
    for name in ("train_dataset", "eval_dataset"):
        assert ours[name].column_names == theirs[name].column_names
        assert ours[name].features == theirs[name].features
        assert list(ours[name]) == list(theirs[name])


@pytest.mark.parametrize("file", ["select_loss", "mix_random"])
def test_tokenised_rows_that_are_kept_keep_their_columns_beside_them(load, tmp_path, file):
    keys = ["dataset=first,turns", f"tokenized_path={tmp_path / 'kept'}"]
    first, tokenizer = load(*keys, file=file)
    again, _ = load(*keys, file=file)
    assert require_right(first, tokenizer) == require_right(again, tokenizer) == [*LEFT, *TURNS]
    without, _ = load(*keys, file=file, columns=())  # a run without columns reads the same folder
    assert list(without["train_dataset"]) == list(again["train_dataset"])
    with pytest.raises(ConfigError, match=r"tokenized_path: .* without the column other -> name another folder"):
        load(*keys, file=file, columns=("level", "other"))


def test_tokenised_rows_that_were_kept_without_the_column_are_refused(load, tmp_path):
    keys = ["dataset=first", f"tokenized_path={tmp_path / 'kept'}"]
    load(*keys, columns=())
    with pytest.raises(ConfigError, match=r"tokenized_path: .* without the column level -> name another folder"):
        load(*keys)


def test_columns_that_were_damaged_beside_the_rows_are_refused(load, tmp_path):
    from dataflex.integrations.llamafactory.raw_columns import FILE, PREFIX

    keys = ["dataset=first", f"tokenized_path={tmp_path / 'kept'}"]
    load(*keys)
    (tmp_path / "kept" / FILE).write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ConfigError, match=r"tokenized_path: .*cannot be read.* -> name another folder"):
        load(*keys)
    np.savez(tmp_path / "kept" / FILE, **{f"{PREFIX}level": np.zeros(3)})
    with pytest.raises(ConfigError, match=r"tokenized_path: .* -> name another folder"):
        load(*keys)


def test_data_that_was_tokenised_elsewhere_has_its_column_itself(load, tmp_path):
    from datasets import Dataset

    row = {"input_ids": [5, 6], "attention_mask": [1, 1], "labels": [5, 6]}
    Dataset.from_list([row | {"level": 2.5}, row | {"level": None}]).save_to_disk(tmp_path / "elsewhere")
    module, _ = load("dataset=first", f"tokenized_path={tmp_path / 'elsewhere'}")
    assert "score_columns" not in module
    np.testing.assert_array_equal(ScoreColumns(module["train_dataset"]).read("level"), [2.5, np.nan])


def test_a_component_names_the_columns_that_it_asks_for():
    from dataflex.integrations.llamafactory.raw_columns import wanted_columns

    @register_selector("asks_for_columns")
    class Asks(Selector):
        @classmethod
        def needs_columns(cls, params):
            return ("level", *params.get("more", ()))

        def select(self, model, step_id, num_samples, **kwargs):
            raise NotImplementedError

    def spec(name, params):
        keys = DataflexArguments(train_type="dynamic_select", component_name=name)
        return RunSpec(keys, ComponentSpec(SELECTOR, name, name, params))

    assert wanted_columns(spec("asks_for_columns", {"more": ["word"]})) == ("level", "word")
    assert wanted_columns(spec("loss", {})) == ()


# --- refused, before a model is loaded


@pytest.mark.parametrize(
    ("keys", "column", "words"),
    [
        (["dataset=text"], "level", r"row 2 of what is read of the dataset 'text.json' has 'hard', which is no number"),
        (
            ["dataset=first"],
            "word",
            r"row 0 of what is read of the dataset 'first.json' has 'high', which is no number",
        ),
        (
            ["dataset=first"],
            "leve",
            r"no dataset of the run has a column 'leve' \(first.json: input, .* -> did you mean",
        ),
        (
            ["dataset=plain"],
            "level",
            r"no dataset of the run has a column 'level' \(plain.json: .* -> name one that is",
        ),
        (["dataset=first", "packing=true"], "level", r"packing: found true .* -> set packing: false, or give"),
        (
            ["dataset=whole", "stage=pt"],
            "level",
            r"packing: found true \(as stage: pt has it\).* -> set packing: false",
        ),
    ],
)
def test_what_cannot_have_a_value_per_row_is_refused_with_the_way_out(load, keys, column, words):
    with pytest.raises(ConfigError, match=words):
        load(*keys, columns=(column,))


def test_a_stream_has_no_rows_to_look_a_value_up_for():
    assert column_problems((), streaming=True, packing=True) == []
    found = [str(problem) for problem in column_problems(("level",), streaming=True, packing=True)]
    assert [problem.split(":")[0] for problem in found] == ["streaming", "packing"]
    assert all(problem.endswith("give the scores as file:PATH, by row of the train dataset") for problem in found)


def test_what_is_patched_is_put_back(load):
    import llamafactory.data.loader as data_loader

    names = ("_get_merged_dataset", "align_dataset", "_get_dataset_processor", "_get_preprocessed_dataset")
    before = [getattr(data_loader, name) for name in names]
    load("dataset=first")
    with pytest.raises(ConfigError):
        load("dataset=text")
    assert [getattr(data_loader, name) for name in names] == before


SOURCE_OF = {1: "first", 2: "turns", 3: "plain", 4: "whole"}
"""Hundreds of a row's number -> its dataset."""


def require_right_sources(module: Any, tokenizer: Any) -> None:
    """Requires that each row of the train dataset is said to be of the dataset that its number is of."""
    names, codes = module["row_sources"]
    numbers = numbers_of(module["train_dataset"], tokenizer)
    assert [names[code] for code in codes] == [SOURCE_OF[number // 100] for number in numbers]
    assert "dataflex_source" not in module["train_dataset"].column_names


@pytest.mark.parametrize("columns", [(), ("level",)], ids=["alone", "beside a column"])
@pytest.mark.parametrize("keys", [["val_size=0.2"], ["max_samples=7"], ["preprocessing_batch_size=4"]], ids=str)
def test_the_dataset_of_each_row_is_known_where_several_are_trained_on_as_one(load, keys, columns):
    module, tokenizer = load("dataset=first,turns,plain", *keys, columns=columns)
    require_right_sources(module, tokenizer)
    if columns:
        require_right(module, tokenizer, but=range(300, 309))


def test_sources_are_kept_beside_tokenised_rows_and_those_of_other_datasets_are_not_believed(load, tmp_path, caplog):
    from dataflex.integrations.llamafactory.raw_columns import FILE

    kept = f"tokenized_path={tmp_path / 'kept'}"
    load("dataset=first,turns", kept, columns=())
    require_right_sources(*load("dataset=first,turns", kept, columns=()))
    assert "row_sources" not in load("dataset=plain,whole", kept, columns=())[0]
    (tmp_path / "kept" / FILE).write_bytes(b"PK\x03\x04 cut off")
    assert "row_sources" not in load("dataset=first,turns", kept, columns=())[0]
    assert "the source of a row is not known" in caplog.text


@pytest.mark.parametrize("keys", [["dataset=first"], ["dataset=first,turns", "packing=true"]], ids=["one", "packed"])
def test_rows_of_one_dataset_and_packed_rows_have_no_source_each(load, keys):
    assert "row_sources" not in load(*keys, columns=())[0]
