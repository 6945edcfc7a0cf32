"""What ``dataflex-cli init`` writes is honest: real text, known noise, configurations that can be run as they are."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from dataflex.cli.main import run
from dataflex.config.check import check
from dataflex.config.load import read_config
from dataflex.config.presets import read_components
from dataflex.core import registry
from dataflex.core.errors import ConfigError
from dataflex.core.kinds import KINDS
from dataflex.experiments.experiment_arms import arms_of
from dataflex.experiments.experiment_file import read_experiment
from dataflex.workspace.build import create
from dataflex.workspace.configs import RUNS
from dataflex.workspace.example_presets import _section
from dataflex.workspace.tasks import FAMILIES, Material, make_tasks
from transformers import AutoModelForCausalLM, AutoTokenizer

SOURCES = ("code", "docstrings", "prose")
PATH_KEYS = ("model_name_or_path", "dataset_dir", "components_cfg_file")

WRITE_DATA = """
import sys
from pathlib import Path
from dataflex.workspace.corpus import write_data
from dataflex.workspace.library_text import harvest
write_data(Path(sys.argv[1]), harvest(), 42)
"""


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def instructions(workspace: Path, name: str = "instructions") -> list[dict]:
    return json.loads((workspace / "data" / f"{name}.json").read_text(encoding="utf-8"))


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def test_every_dataset_is_declared_and_full(workspace):
    info = json.loads((workspace / "data" / "dataset_info.json").read_text())
    declared = {entry["file_name"] for entry in info.values()}
    assert declared == {*os.listdir(workspace / "data")} - {"dataset_info.json"}
    sizes = {name: len(lines(workspace / "data" / f"{name}.jsonl")) for name in SOURCES}
    assert sizes == {"code": 900, "docstrings": 600, "prose": 400}
    assert all(len(row["text"]) >= 120 for name in SOURCES for row in lines(workspace / "data" / f"{name}.jsonl"))
    assert len(instructions(workspace)) == 1000


def test_sources_differ_in_entropy(workspace):
    ratio = {}
    for name in SOURCES:
        text = "\n".join(row["text"] for row in lines(workspace / "data" / f"{name}.jsonl")).encode()[:100_000]
        ratio[name] = len(text) / len(lzma.compress(text))
    assert ratio["code"] > 1.03 * ratio["prose"]
    assert ratio["prose"] > 1.03 * ratio["docstrings"]


def test_held_out_text_is_not_trained_on(workspace):
    trained = {row["text"] for name in SOURCES for row in lines(workspace / "data" / f"{name}.jsonl")}
    held_out = lines(workspace / "data" / "pretrain_eval.jsonl")
    assert Counter(row["source"] for row in held_out) == dict.fromkeys(SOURCES, 30)
    assert not trained & {row["text"] for row in held_out}


def test_three_tenths_of_each_familys_answers_are_wrong(workspace):
    rows = instructions(workspace)
    assert Counter(row["family"] for row in rows) == dict.fromkeys(FAMILIES, 100)
    assert Counter(row["family"] for row in rows if row["noisy"]) == dict.fromkeys(FAMILIES, 30)


def test_an_answer_is_wrong_exactly_where_it_says_so(workspace):
    right = {
        "sum": lambda text: str(sum(map(int, text.split(" and ")))),
        "reverse": lambda text: text[::-1],
        "uppercase": str.upper,
        "copy": str,
        "sort": lambda text: ", ".join(sorted(text.split(", "), key=int)),
    }
    checked = [row for row in instructions(workspace) if row["family"] in right]
    assert len(checked) == 500
    for row in checked:
        assert (right[row["family"]](row["input"]) != row["output"]) == row["noisy"], row


def test_held_out_tasks_are_right_and_new(workspace):
    held_out = instructions(workspace, "instructions_eval")
    trained = {(row["instruction"], row["input"]) for row in instructions(workspace)}
    assert len(held_out) == 100
    assert not any(row["noisy"] for row in held_out)
    assert not trained & {(row["instruction"], row["input"]) for row in held_out}


def test_what_a_selector_aims_at_is_right_of_one_family_and_nowhere_else(workspace):
    names = ("instructions", "instructions_eval", "sorting_eval", "sorting_test")
    asked = {name: [(row["instruction"], row["input"]) for row in instructions(workspace, name)] for name in names}
    every = [task for tasks in asked.values() for task in tasks]
    assert len(set(every)) == len(every), "a task is in two datasets"
    for name in ("sorting_eval", "sorting_test"):
        rows = instructions(workspace, name)
        assert len(rows) == 60
        assert {(row["family"], row["noisy"]) for row in rows} == {("sort", False)}
        assert all(row["output"] == ", ".join(sorted(row["input"].split(", "), key=int)) for row in rows)


def test_the_first_two_runs_differ_in_nothing_but_the_strategy(workspace):
    baseline, selector = (yaml.safe_load((workspace / f"{name}.yaml").read_text()) for name in list(RUNS)[:2])
    unlike = {key for key in baseline.keys() | selector.keys() if baseline.get(key) != selector.get(key)}
    assert unlike == {"component_name", "output_dir"}
    assert baseline["component_name"] == "random"
    assert selector["eval_dataset"] == "sorting_eval"


def test_no_example_prefers_what_a_model_finds_hard(workspace):
    """With wrong answers among the rows, a preference for high losses is one for the wrong answers."""
    entries = read_components(workspace / "components.yaml")["selectors"]
    used = {yaml.safe_load((workspace / f"{name}.yaml").read_text()).get("component_name") for name in RUNS}
    assert [name for name, entry in entries.items() if name in used and entry.params.get("focus") == "high"] == []


def test_a_family_that_runs_dry_gives_what_it_has():
    few = Material(words=["only", "five", "words", "this", "time"], summaries={"a.b": "Does b.", "a.c": "Does c."})
    rows, clean = make_tasks(few, train=4, held_out=1, seed=0)
    found = Counter(task.family for task in (*rows, *clean))
    assert found["library"] == 2
    assert found["sum"] == 5


def test_tokenizer_and_model_fit_each_other_and_the_text(workspace):
    tokenizer = AutoTokenizer.from_pretrained(workspace / "model")
    model = AutoModelForCausalLM.from_pretrained(workspace / "model")
    assert len(tokenizer) == model.config.vocab_size == 2048
    assert 1_000_000 <= model.num_parameters() <= 2_000_000
    assert not model.config.tie_word_embeddings
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    for name in SOURCES:
        text = lines(workspace / "data" / f"{name}.jsonl")[0]["text"]
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert len(ids) < 0.7 * len(text.encode())
    assert tokenizer.decode(tokenizer("<|endoftext|>x", add_special_tokens=False)["input_ids"][:1]) == "<|endoftext|>"


def test_the_saved_tokenizer_names_a_class_of_every_transformers(workspace):
    assert json.loads((workspace / "model" / "tokenizer_config.json").read_text())["tokenizer_class"] == (
        "PreTrainedTokenizerFast"
    )


def test_there_is_one_file_per_kind_of_run(workspace):
    assert {file.stem for file in workspace.glob("*.yaml")} == {*RUNS, "components", "compare"}
    kinds = {name: yaml.safe_load((workspace / f"{name}.yaml").read_text(encoding="utf-8")) for name in RUNS}
    found = {(config["train_type"], config["stage"], config.get("static_mix", False)) for config in kinds.values()}
    assert found >= {
        ("dynamic_select", "sft", False),
        ("dynamic_mix", "pt", False),
        ("dynamic_mix", "pt", True),
        ("dynamic_weight", "sft", False),
        ("static", "sft", False),
        ("static", "pt", False),
    }


@pytest.mark.parametrize("name", RUNS)
def test_configuration_can_be_run_from_anywhere(workspace, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = workspace / f"{name}.yaml"
    config = read_config(file)
    check(config, file.parent)
    for path in (Path(config[key]) for key in PATH_KEYS if key in config):
        assert path.is_absolute()
        assert path.exists()
    assert Path(config["output_dir"]) == workspace / "saves" / name


def test_the_comparison_can_be_run_from_anywhere(workspace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = read_experiment(workspace / "compare.yaml")
    assert experiment.output_dir == workspace / "saves" / "compare"
    assert {arm.name: arm.against for arm in arms_of(experiment)} == {
        "random": None,
        "static": "random",
        "less": "random",
        "loss": "random",
    }


def test_components_file_holds_every_installed_component_with_its_comments(workspace):
    file = workspace / "components.yaml"
    entries = read_components(file)
    for kind in KINDS:
        assert {point.name for point in registry.provided(kind)} <= {e.name for e in entries[kind.section].values()}
    assert "focus: low  # low | medium | high" in file.read_text(encoding="utf-8")


def test_a_section_is_taken_with_its_comments_but_not_its_neighbours():
    text = "# head\nmixers:\n    # about a\n    a:\n        name: a  # note\n\n# about the next\nselectors:\n  b: {}\n"
    assert _section(text, "mixers") == "  # about a\n  a:\n      name: a  # note\n"
    assert _section(text, "selectors") == "  b: {}\n"
    assert _section("mixers: {a: {}}\n", "mixers") == ""


def test_the_readme_names_every_file_and_dataset(workspace):
    text = (workspace / "README.md").read_text(encoding="utf-8")
    datasets = (*SOURCES, "instructions", "instructions_eval", "sorting_eval", "sorting_test")
    for name in (*(f"{file}.yaml" for file in RUNS), "components.yaml", *datasets):
        assert f"`{name}`" in text, name
    assert "$" not in text


def test_the_same_seed_gives_the_same_data_and_model(workspace, tmp_path):
    again = create(tmp_path / "again")
    assert digests(again.directory / "data") == digests(workspace / "data")
    assert digests(again.directory / "model") == digests(workspace / "model")


def test_the_data_do_not_depend_on_hash_order(workspace, tmp_path):
    command = [sys.executable, "-c", WRITE_DATA, str(tmp_path)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert digests(tmp_path) == digests(workspace / "data")


def test_another_seed_gives_other_data(workspace, tmp_path):
    other = create(tmp_path / "other", seed=1)
    mine, others = digests(workspace / "data"), digests(other.directory / "data")
    assert [name for name in mine if mine[name] == others[name]] == ["dataset_info.json"]


def test_a_directory_in_use_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"not empty.*-> name a directory that does not exist yet"):
        create(tmp_path)
    assert os.listdir(tmp_path) == ["mine.txt"]
    with pytest.raises(ConfigError, match="this is a file"):
        create(tmp_path / "mine.txt")


@pytest.mark.parametrize("name", ["a[1]", "${HOME}", "a*", "a::b"])
def test_a_path_that_would_be_read_as_a_pattern_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="choose another directory"):
        create(tmp_path / name)
    assert not os.listdir(tmp_path)


def test_a_python_without_sources_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setattr("dataflex.workspace.library_text.MODULES", "sys no_such_module")
    with pytest.raises(ConfigError, match=r"'code' has 0 pieces.*-> run a Python that has them"):
        create(tmp_path / "new")


def test_the_command_says_what_it_made_and_what_to_run_next(tmp_path, capsys):
    assert run(["init", str(tmp_path / "my demo"), "--seed", "5"]) == 0
    out = capsys.readouterr().out
    assert "instructions 1000" in out
    root = tmp_path / "my demo"
    said = out.splitlines()
    if find_spec("llamafactory") is None:
        assert said.pop().startswith("Training in it needs LLaMA-Factory, which is not installed: pip install ")
    assert said[-4:] == [
        "Next, a baseline, a selector, and what they came to:",
        f"  dataflex-cli train '{root / 'select_random.yaml'}'",
        f"  dataflex-cli train '{root / 'select_less.yaml'}'",
        f"  dataflex-cli compare '{root / 'saves' / 'select_random'}' '{root / 'saves' / 'select_less'}'",
    ]
    for line in said[-3:]:
        assert line.removeprefix("  ") in (root / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("argv", "said"), [([], "required: DIR"), (["x", "--seed", "a"], "--seed: found 'a'")])
def test_bad_arguments_end_with_two(argv, said, capsys):
    assert run(["init", *argv]) == 2
    assert said in capsys.readouterr().err
