"""``mixture_by`` with LLaMA-Factory: sources of its datasets by a column, a file and clusters."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
import numpy as np
import pytest
from dataflex.cli.main import run
from dataflex.config.check import check
from dataflex.config.load import read_config
from dataflex.core.errors import ConfigError
from dataflex.integrations.llamafactory.raw_labels import RawLabels
from dataflex.rows.score_columns import ScoreColumns
from dataflex.rows.split_sources import SplitSources

pytestmark = pytest.mark.llamafactory

TOPICS = ("maths", "code", "talk")


def topic(number: int) -> str:
    return TOPICS[number % 3]


def alpaca(number: int, drop: bool = False) -> dict[str, Any]:
    answer = None if drop else f"answer {number}"
    row = {"instruction": f"row {number} end", "input": "", "output": answer, "topic": topic(number)}
    return row | {"year": 2000 + number % 2, "level": number / 4, "same": "x", "some": "y" if number % 4 else None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Rows with numbers of their own over all datasets, some of which LLaMA-Factory drops."""
    folder = tmp_path_factory.mktemp("data")
    rows = {
        "first": [alpaca(number, number % 7 == 3) for number in range(100, 130)],
        "second": [alpaca(number) for number in range(200, 217)],
        "plain": [{k: v for k, v in alpaca(number).items() if k != "topic"} for number in range(300, 309)],
    }
    for name, content in rows.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "dataset_info.json").write_text(json.dumps({name: {"file_name": f"{name}.json"} for name in rows}))
    return folder


LEFT = [number for number in range(100, 130) if number % 7 != 3]
SECOND = list(range(200, 217))


@pytest.fixture
def load(workspace: Path, folder: Path, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """``load(*keys)`` returns what the workflow gives the trainer, and the tokenizer."""
    import llamafactory.train.sft.workflow as sft
    from dataflex.integrations.llamafactory import data
    from dataflex.integrations.llamafactory.patches import installed
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    own = [
        f"dataset_dir={folder}", f"output_dir={tmp_path / 'out'}", "cutoff_len=64", "do_eval=false", "val_size=0",
        "eval_dataset=null", "per_device_train_batch_size=1", "warmup_step=1", "update_step=1", "update_times=1",
        "init_mixture_proportions=null", "mixture_sample_rule=uniform", "stage=sft", "mixture_by=column:topic",
    ]  # fmt: skip

    def load_(*keys: str, columns: tuple[str, ...] = ()) -> Any:
        spec = check(read_config(workspace / "mix_random.yaml", [*own, *keys]), workspace)
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
    texts = [tokenizer.decode(row["input_ids"]) for row in dataset]
    return [int(re.search(r"row (\d+) end", text).group(1)) for text in texts]


def by_topic(dataset: Any, tokenizer: Any, named: Callable[[int], Any] = topic) -> list[int]:
    """Requires that each row is in the source of its own label; returns their numbers in the given order."""
    assert isinstance(dataset, SplitSources)
    for name, source in zip(dataset.names, dataset.sources, strict=True):
        assert {str(named(number)) for number in numbers_of(source, tokenizer)} == {name}
    numbers = np.empty(len(dataset), dtype=np.int64)
    numbers[dataset.given] = numbers_of(dataset, tokenizer)
    return numbers.tolist()


@pytest.mark.parametrize(
    ("keys", "numbers"),
    [
        pytest.param(["dataset=first"], LEFT, id="rows without an answer are dropped"),
        pytest.param(["dataset=first", "preprocessing_batch_size=4"], LEFT, id="in small batches"),
        pytest.param(["dataset=first", "preprocessing_num_workers=2"], LEFT, id="in two processes"),
        pytest.param(["dataset=first", "max_samples=9"], LEFT[:7], id="max_samples"),
        pytest.param(["dataset=second,first"], [*SECOND, *LEFT], id="several datasets"),
        pytest.param(["dataset=second", "stage=pt", "packing=false"], SECOND, id="pt"),
    ],
)
def test_a_row_is_in_the_source_of_its_own_label_whatever_is_dropped_or_merged(load, keys, numbers):
    module, tokenizer = load(*keys)
    assert module["train_dataset"].names == ("code", "maths", "talk")
    assert by_topic(module["train_dataset"], tokenizer) == numbers
    assert "topic" not in module["train_dataset"].sources[0].column_names
    assert not any("dataflex" in name for name in module["train_dataset"].sources[0].column_names)
    assert "row_sources" not in module


def test_whole_numbers_are_labels_too_and_keep_their_order(load):
    module, tokenizer = load("dataset=second", "mixture_by=column:year")
    assert module["train_dataset"].names == ("2000", "2001")
    assert by_topic(module["train_dataset"], tokenizer, lambda number: 2000 + number % 2) == SECOND


def test_a_column_of_scores_stays_with_its_row_in_the_order_of_the_sources(load):
    module, tokenizer = load("dataset=first,second", columns=("level",))
    dataset = module["train_dataset"]
    found = ScoreColumns(dataset, module["score_columns"]).read("level")
    assert found.tolist() == [number / 4 for number in numbers_of(dataset, tokenizer)]


def test_what_val_size_holds_out_is_held_out_of_each_source_by_name(load):
    module, tokenizer = load("dataset=first,second", "val_size=0.3")
    held_out = module["eval_dataset"]
    assert list(held_out) == ["code", "maths", "talk"]
    for name, rows in held_out.items():
        assert {topic(number) for number in numbers_of(rows, tokenizer)} == {name}
    rest = by_topic(module["train_dataset"], tokenizer)
    evaluated = [number for rows in held_out.values() for number in numbers_of(rows, tokenizer)]
    assert sorted(rest + evaluated) == sorted([*LEFT, *SECOND])


def test_rows_held_out_of_a_label_that_no_train_row_has_are_told(caplog):
    labels = RawLabels("topic")
    codes_n = labels.read(datasets.Dataset.from_dict({"topic": ["a", "b", "rare", "a"]}), "first")
    with caplog.at_level("WARNING", logger="dataflex"):
        found = labels.by_name(datasets.Dataset.from_dict({"row": [0, 1, 2, 3]}), codes_n, ["a", "b"])
    assert {name: rows["row"] for name, rows in found.items()} == {"a": [0, 3], "b": [1]}
    assert "1 rows that val_size holds out are left out of the evaluation" in caplog.text
    assert "no train row has their label: rare" in caplog.text


def test_another_evaluation_set_is_left_as_it_is(load):
    module, tokenizer = load("dataset=first", "eval_dataset=plain")
    assert numbers_of(module["eval_dataset"], tokenizer) == list(range(300, 309))


def test_tokenised_rows_on_disk_keep_their_labels_and_refuse_another_column(load, tmp_path):
    keys = ("dataset=first,second", f"tokenized_path={tmp_path / 'kept'}")
    first, tokenizer = load(*keys)
    again, _ = load(*keys)
    assert by_topic(again["train_dataset"], tokenizer) == by_topic(first["train_dataset"], tokenizer)
    assert again["train_dataset"].digest == first["train_dataset"].digest
    with pytest.raises(ConfigError, match="tokenised without the column year of mixture_by"):
        load(*keys, "mixture_by=column:year")


def test_a_label_file_is_for_the_rows_that_are_left(load, tmp_path):
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps([topic(number) for number in LEFT]))
    module, tokenizer = load("dataset=first", f"mixture_by=file:{labels}")
    assert by_topic(module["train_dataset"], tokenizer) == LEFT
    labels.write_text(json.dumps([topic(number) for number in range(100, 130)]))
    with pytest.raises(ConfigError, match="30 labels, and the train dataset 25 rows once it is tokenised and rows"):
        load("dataset=first", f"mixture_by=file:{labels}")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["dataset=first", "mixture_by=column:topics"], "the dataset 'first' has no column 'topics'"),
        (["dataset=first,plain"], "the dataset 'plain' has no column 'topic'"),
        (["dataset=second", "mixture_by=column:same"], "all 17 rows of the train dataset have the label x, so there"),
        (["dataset=second", "mixture_by=column:some"], "row 0 of what is read of the dataset .* has no label"),
        (["dataset=second", "mixture_by=column:level"], "row 0 of what is read .* has the label 50.0; every row needs"),
        (["dataset=second", "packing=true"], "packing: found true .* a packed row is made of several -> set packing"),
        (["dataset=second", "streaming=true", "max_steps=3"], "streaming: found true, but mixture_by sorts the rows"),
        (["dataset=second", "mixer_eval_dataset=plain"], "mixer_eval_dataset: names a dataset for each dataset"),
        (
            ["dataset=second", "mixture_sample_rule=mixture", "init_mixture_proportions={a: 1, code: 2}"],
            "init_mixture_proportions: found the source a, and the sources are code, maths, talk",
        ),
        (["dataset=second", "objective_proportions=[1, 2]"], "objective_proportions: found 2 numbers for 3 datasets"),
    ],
)  # fmt: skip
def test_what_cannot_be_split_is_refused_before_a_model_is_loaded(load, keys, said):
    with pytest.raises(ConfigError, match=said):
        load(*keys)


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


KEYS = (
    "mixture_sample_rule=mixture", "warmup_step=1", "update_step=1", "update_times=2", "val_size=0",
    "eval_dataset=null", "do_eval=false", "component_name=loss",
)  # fmt: skip


def test_a_run_by_a_column_has_its_sources_in_record_trace_and_report(train, folder, tmp_path):
    shares = "init_mixture_proportions={maths: 2, code: 1, talk: 1}"
    own = (f"dataset_dir={folder}", "stage=sft", "template=default", "dataset=first,second", "mixture_by=column:topic")
    assert train("mix_random", *KEYS, *own, shares, "objective_proportions=[1, 1, 1]") == 0
    lines = read(tmp_path / "run", "dataflex_trace.jsonl")
    mixes = [line for line in lines if line.get("kind") == "mix"]
    assert list(mixes[0]["proportions"]) == ["code", "maths", "talk"]
    weights = mixes[0]["objective_weights"]
    assert weights == {name: pytest.approx(1 / 3 / share) for name, share in mixes[0]["proportions"].items()}
    about = json.loads((tmp_path / "run" / "dataflex_run.json").read_text())
    assert [source["name"] for source in about["sources"]] == ["code", "maths", "talk"]
    with np.load(tmp_path / "run" / "dataflex_sources.npz") as kept:
        assert kept["names"].tolist() == ["code", "maths", "talk"]
        assert sorted(kept["given"].tolist()) == list(range(len(LEFT) + len(SECOND)))
    assert run(["report", str(tmp_path / "run")]) == 0
    assert "maths" in (tmp_path / "run" / "dataflex_report.html").read_text()


def test_clusters_of_one_dataset_are_kept_and_a_resumed_run_has_the_same(train, folder, tmp_path, capsys):
    own = (f"dataset_dir={folder}", "stage=sft", "template=default", "dataset=first,second", "mixture_by=cluster:3")
    own += ("init_mixture_proportions=null", "mixture_sample_rule=uniform", "save_strategy=steps", "save_steps=2")
    own = (*KEYS[1:], *own, "save_only_model=false")
    assert train("mix_random", *own) == 0
    about = json.loads((tmp_path / "run" / "dataflex_run.json").read_text())
    assert [source["name"] for source in about["sources"]] == ["cluster_1", "cluster_2", "cluster_3"]
    assert all(source["words"] for source in about["sources"])
    resumed = f"resume_from_checkpoint={tmp_path / 'run' / 'checkpoint-2'}"
    capsys.readouterr()
    code = train("mix_random", *own, resumed, out="again")
    assert code == 0, capsys.readouterr().err[-2000:]
    with (
        np.load(tmp_path / "run" / "dataflex_sources.npz") as before,
        np.load(tmp_path / "again" / "dataflex_sources.npz") as after,
    ):
        np.testing.assert_array_equal(before["codes"], after["codes"])
    last = [read(tmp_path / out, "dataflex_trace.jsonl")[-1] for out in ("run", "again")]
    same = [{key: value for key, value in line.items() if key not in ("seconds", "at")} for line in last]
    assert same[0] == same[1]
    capsys.readouterr()
    assert train("mix_random", *own, "mixture_by=cluster:2", resumed, out="other") == 1
    assert "mixture_by: cluster:3 in the checkpoint, cluster:2 now" in capsys.readouterr().err


def test_validate_knows_clusters_by_name(workspace, tmp_path, capsys):
    own = ["mixture_by=cluster:2", "dataset=code", "mixture_sample_rule=mixture", f"output_dir={tmp_path}"]
    file = str(workspace / "mix_random.yaml")
    assert run(["validate", file, *own, "init_mixture_proportions={cluster_1: 1, cluster_2: 3}"]) == 0
    assert run(["plan", file, *own, "init_mixture_proportions={cluster_1: 1, cluster_2: 3}"]) == 0
    assert run(["validate", file, *own, "init_mixture_proportions={cluster_1: 1, cluster_3: 3}"]) == 2
    assert "found the source cluster_3, and the sources are cluster_1, cluster_2" in capsys.readouterr().err
