"""Sources that are tokenised one by one: each key of LLaMA-Factory's data means what it means in a static run."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from dataflex.config.check import check
from dataflex.config.checks.tokenized import EVALUATION
from dataflex.config.load import read_config
from dataflex.core.errors import ConfigError, InvalidConfigError
from dataflex.rows.held_out import in_words

pytestmark = pytest.mark.llamafactory

SIZES = {"a": 7, "b": 3, "c": 12}
ALL = "dataset=a,b,c"

SAME: dict[str, list[str]] = {
    "template": ["template=qwen"],
    "dataset": ["dataset=c,a"],
    "dataset_dir": [],
    "media_dir": ["media_dir=."],
    "eval_dataset": ["eval_dataset=b,c"],
    "eval_on_each_dataset": ["eval_dataset=b,c", "eval_on_each_dataset=true"],
    "cutoff_len": ["cutoff_len=24"],
    "train_on_prompt": ["train_on_prompt=true"],
    "mask_history": ["mask_history=true"],
    "overwrite_cache": ["overwrite_cache=true"],
    "preprocessing_batch_size": ["preprocessing_batch_size=2"],
    "preprocessing_num_workers": ["preprocessing_num_workers=1"],
    "max_samples": ["max_samples=4"],
    "eval_num_beams": ["eval_num_beams=2"],
    "ignore_pad_token_for_loss": ["ignore_pad_token_for_loss=false"],
    "tool_format": ["tool_format=default"],
    "default_system": ["default_system=Be short."],
    "enable_thinking": ["enable_thinking=false"],
    "preserve_thinking": ["preserve_thinking=true"],
    "data_shared_file_system": ["data_shared_file_system=true"],
}
"""Key -> overrides with which both have the same rows."""

OTHERWISE = {
    "val_size": "as many rows, apportioned over the sources",
    "packing": "a packed row is of one source",
    "neat_packing": "a packed row is of one source",
    "tokenized_path": "a folder for each source",
    "streaming": "each source is a stream, shuffled in blocks of buffer_size",
    "buffer_size": "rows of such a block",
    "mix_strategy": "refused unless concat",
    "interleave_probs": "refused with mix_strategy",
}
"""Key -> what it means; each has a test below, streams in test_streaming.py."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three small datasets, some rows with a history, and three that give no rows."""
    folder = tmp_path_factory.mktemp("data")
    columns = {"prompt": "instruction", "query": "input", "response": "output", "history": "history"}
    rows: dict[str, list[dict[str, Any]]] = {
        name: [
            {
                "instruction": f"say {name} {i} " * (1 + i % 3),
                "input": "",
                "output": f"{name} {i} " * (2 + i % 4),
                "history": [[f"what is {i}", "yes"]] * (i % 2),
            }
            for i in range(size)
        ]
        for name, size in SIZES.items()
    }
    rows |= {"short": rows["b"][:1], "mute": [row | {"output": None} for row in rows["b"]], "one": rows["b"][:1]}
    info: dict[str, Any] = {}
    for name, content in rows.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
        info[name] = {"file_name": f"{name}.json", "columns": columns}
    info |= {"x/../y": info["a"], "..": info["c"]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


@pytest.fixture
def load(workspace: Path, folder: Path, tmp_path: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """``load(file, *keys, checked=True)`` returns what the workflow gives the trainer; ``static`` as LLaMA-Factory."""
    import llamafactory.train.sft.workflow as sft
    from dataflex.integrations.llamafactory.patches import installed
    from dataflex.integrations.llamafactory.stream_datasets import keys_for_llamafactory
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    own = [
        f"dataset_dir={folder}",
        f"output_dir={tmp_path / 'out'}",
        "cutoff_len=64",
        "do_eval=false",
        "eval_dataset=null",
    ]
    own += ["val_size=0", "per_device_train_batch_size=1", "init_mixture_proportions=null"]
    own += ["mixture_sample_rule=uniform", ALL]

    def load_(file: str, *keys: str) -> dict[str, Any]:
        static = file == "static"
        more = [] if static else ["warmup_step=1", "update_step=1", "update_times=1"]
        config = read_config(workspace / f"{'mix_random' if static else file}.yaml", [*own, *more, *keys])
        spec = check(config, workspace)
        model_args, data_args, training_args, finetuning_args, _ = get_train_args(keys_for_llamafactory(spec))
        loaded = load_tokenizer(model_args)
        template = sft.get_template_and_fix_tokenizer(loaded["tokenizer"], data_args)
        given = (template, model_args, data_args, training_args)
        if static:
            return dict(sft.get_dataset(*given, stage=finetuning_args.stage, **loaded))
        with installed(spec):
            return dict(sft.get_dataset(*given, stage=finetuning_args.stage, **loaded))

    with patch("llamafactory.hparams.parser._check_extra_dependencies", lambda *args: None):
        yield load_


def counted(rows: Any) -> Counter[tuple[Any, ...]]:
    return Counter((*row["input_ids"], -1, *row["labels"]) for row in rows)


def test_every_key_of_the_data_is_in_one_of_the_tables():
    from llamafactory.hparams import DataArguments

    fields = {field.name for field in dataclasses.fields(DataArguments)}
    assert not SAME.keys() & OTHERWISE.keys()
    assert fields <= SAME.keys() | OTHERWISE.keys()


@pytest.mark.parametrize("key", SAME)
def test_a_key_gives_the_rows_of_the_static_run(load, key):
    from llamafactory.hparams import DataArguments

    if key not in {field.name for field in dataclasses.fields(DataArguments)}:
        pytest.skip(f"the installed llamafactory has no {key}")
    keys = ["stage=sft", *SAME[key]]
    ours, theirs = load("mix_random", *keys), load("static", *keys)
    assert counted(ours["train_dataset"]) == counted(theirs["train_dataset"])
    assert ("eval_dataset" in ours) == ("eval_dataset" in theirs)
    if isinstance(theirs.get("eval_dataset"), dict):
        assert list(ours["eval_dataset"]) == list(theirs["eval_dataset"])
        for name, rows in theirs["eval_dataset"].items():
            assert counted(ours["eval_dataset"][name]) == counted(rows)
    elif "eval_dataset" in theirs:
        assert counted(ours["eval_dataset"]) == counted(theirs["eval_dataset"])


@pytest.mark.parametrize(
    ("val_size", "counts"),
    [("15", {"a": 5, "b": 2, "c": 8}), ("1", {"c": 1}), ("2", {"a": 1, "c": 1}), ("0.5", {"a": 4, "b": 2, "c": 6})],
)
def test_val_size_holds_out_as_many_rows_as_a_static_run(load, val_size, counts, caplog):
    with caplog.at_level("INFO", "dataflex"):
        module = load("mix_random", "stage=sft", f"val_size={val_size}")
    told = in_words({name: counts.get(name, 0) for name in SIZES})
    assert f"val_size: {float(val_size):g} holds out {told}" in caplog.text
    held_out = {name: len(rows) for name, rows in module["eval_dataset"].items()}
    assert held_out == counts
    assert len(module["train_dataset"]) == sum(SIZES.values()) - sum(counts.values())
    if float(val_size) > 1:
        static = load("static", "stage=sft", f"val_size={val_size}")
        assert len(static["eval_dataset"]) == sum(held_out.values())
    rows = counted(module["train_dataset"])
    for part in module["eval_dataset"].values():
        rows += counted(part)
    assert rows == counted(load("static", "stage=sft")["train_dataset"])


def test_val_size_that_leaves_a_source_no_row_names_it(load):
    with pytest.raises(ConfigError, match=r"val_size: 20 rows .*b \(3 rows\).* -> set val_size to 19 or less"):
        load("mix_random", "stage=sft", "val_size=20")
    with pytest.raises(ConfigError, match=r"val_size: 0.5 .*one \(1 row\)"):
        load("mix_random", "stage=sft", "val_size=0.5", "dataset=a,one")


@pytest.mark.parametrize("file", ["mix_random", "weight_dataset"])
@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["stage=pt", "dataset=c,short", "cutoff_len=16"], [r"'short'", "short.json", "cutoff_len", "packing: false"]),
        (["stage=sft", "dataset=a,mute"], ["'mute'", "mute.json", "answer"]),
    ],
)
@pytest.mark.parametrize("first_rank", [True, False])
def test_a_source_without_rows_is_named_on_every_rank(load, keys, words, first_rank, file, monkeypatch):
    from dataflex.config.checks import datasets as data
    from llamafactory.hparams import TrainingArguments

    monkeypatch.setattr(data, "MOST", 0)  # else validate finds it
    monkeypatch.setattr(TrainingArguments, "should_log", first_rank)
    if file == "weight_dataset":
        file, keys = "weight_loss", [*keys, "component_name=dataset", "train_step=3"]
    with pytest.raises(ConfigError) as caught:
        load(file, *keys)
    for word in [*words, " -> "]:
        assert word in str(caught.value)


@pytest.mark.parametrize("first_rank", [True, False])
def test_a_stream_without_rows_is_named_on_every_rank(load, first_rank, monkeypatch):
    from dataflex.config.checks import datasets as data
    from llamafactory.hparams import TrainingArguments

    monkeypatch.setattr(data, "MOST", 0)
    monkeypatch.setattr(TrainingArguments, "should_log", first_rank)
    with pytest.raises(ConfigError, match=r"'mute' .*mute.json.* gives no rows"):
        load("mix_random", "stage=sft", "dataset=a,mute", "streaming=true", "mixture_sample_rule=uniform")


def test_tokenised_sources_have_a_folder_each_whatever_their_names(load, tmp_path):
    path = tmp_path / "kept" / "here"
    keys = ["stage=sft", "dataset=x/../y,b,..", f"tokenized_path={path}", "eval_dataset=b"]
    first = load("mix_random", *keys)
    assert {part.name for part in (tmp_path / "kept").iterdir()} == {"here"}
    assert {part.name for part in path.iterdir()} == {"x%2F%2E%2E%2Fy", "b", "%2E%2E", EVALUATION}
    again = load("mix_random", *keys)
    for key in ("train_dataset", "eval_dataset"):
        assert counted(first[key]) == counted(again[key])
    assert again["train_dataset"].names == ("x/../y", "b", "..")


def test_the_tokenised_rows_of_one_kind_of_run_are_no_input_for_the_other(load, tmp_path):
    whole, parts = f"tokenized_path={tmp_path / 'whole'}", f"tokenized_path={tmp_path / 'parts'}"
    load("static", "stage=sft", whole)
    load("mix_random", "stage=sft", parts)
    before = sorted((tmp_path / "whole").rglob("*"))
    with pytest.raises(InvalidConfigError, match=r"tokenized_path: .*forgets which source"):
        load("mix_random", "stage=sft", whole)
    weights = ["component_name=dataset", "train_step=3", "stage=sft"]
    with pytest.raises(ConfigError, match=r"tokenized_path: .*forgets which source"):
        load("weight_loss", *weights, whole)
    with pytest.raises(InvalidConfigError, match=r"tokenized_path: .*tokenised one by one .a, b, c"):
        load("select_loss", "stage=sft", parts)
    with pytest.raises(InvalidConfigError, match=r"tokenized_path: .*tokenised one by one"):
        load("mix_random", "train_type=static", "stage=sft", parts)
    with pytest.raises(ConfigError, match=r"tokenized_path: .*tokenised one by one"):
        load("weight_loss", "stage=sft", "train_step=3", parts)
    assert sorted((tmp_path / "whole").rglob("*")) == before
    assert load("select_loss", "stage=sft", whole)["train_dataset"]
    assert load("weight_loss", *weights, parts)["train_dataset"].names == ("a", "b", "c")


def test_a_folder_that_was_not_written_to_its_end_is_named(load, tmp_path):
    path = tmp_path / "kept"
    load("mix_random", "stage=sft", f"tokenized_path={path}")
    (path / "b" / "dataset_dict.json").unlink()
    with pytest.raises(ConfigError, match=r"tokenized_path: .*kept/b holds no whole .* -> remove the folder"):
        load("mix_random", "stage=sft", f"tokenized_path={path}")


def test_what_validate_checks_of_the_sources_it_checks_beside_tokenised_ones(load, tmp_path):
    path = f"tokenized_path={tmp_path / 'kept'}"
    load("mix_random", "stage=sft", "dataset=a,b", path)
    with pytest.raises(InvalidConfigError, match="dataset: 'd' is not defined"):
        load("mix_random", "stage=sft", "dataset=a,d", path)


def test_the_best_model_is_found_among_evaluations_of_the_sources(train, tmp_path):
    """``eval_loss`` is there in training, at the end and in the plots."""
    keys = ["val_size=15", "eval_strategy=steps", "eval_steps=1", "save_strategy=steps", "save_steps=1", "do_eval=true"]
    keys += [
        "load_best_model_at_end=true",
        "metric_for_best_model=eval_loss",
        "early_stopping_steps=9",
        "plot_loss=true",
    ]
    steps = ["warmup_step=1", "update_step=1", "update_times=1", "cutoff_len=16", "init_mixture_proportions=null"]
    assert train("mix_random", "mixture_sample_rule=uniform", *keys, *steps) == 0
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    losses = [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry]
    assert len(losses) == 2
    assert state["best_metric"] == min(losses)
    assert json.loads((tmp_path / "run" / "eval_results.json").read_text())["eval_loss"] == pytest.approx(min(losses))
    assert (tmp_path / "run" / "training_eval_loss.png").exists()


def test_prediction_takes_the_held_out_rows_of_all_sources():
    from dataflex.integrations.llamafactory.predicting import predicting
    from datasets import Dataset

    class Trainer:
        def predict(self, test_dataset, **kwargs):
            return test_dataset["x"]

        def save_predictions(self, dataset, found):
            return list(dataset["x"]), list(found)

    trainer, rows = predicting(Trainer)(), {"a": Dataset.from_dict({"x": [1, 2]}), "b": Dataset.from_dict({"x": [3]})}
    assert trainer.save_predictions(rows, trainer.predict(rows)) == ([1, 2, 3], [1, 2, 3])
    assert list(trainer.predict(rows["a"], metric_key_prefix="predict")) == [1, 2]


@pytest.mark.parametrize("packing", ["packing", "neat_packing"])
def test_a_packed_row_is_of_one_source(load, packing):
    module = load("mix_random", "stage=sft", f"{packing}=true", "val_size=3")
    mixed = module["train_dataset"]
    assert sum(map(len, mixed.sources)) < sum(SIZES.values())
    assert len(module["eval_dataset"]) >= 1


@pytest.mark.parametrize("file", ["mix_random", "weight_loss"])
def test_another_way_to_mix_is_refused(load, file):
    keys = ["component_name=dataset", "train_step=3"] if file == "weight_loss" else []
    with pytest.raises(ConfigError, match="mix_strategy: found 'interleave_under'"):
        load(file, "stage=sft", "mix_strategy=interleave_under", "interleave_probs='0.2,0.3,0.5'", *keys)
