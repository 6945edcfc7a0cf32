"""``USE_V1=1``, LLaMA-Factory's next trainer: dynamic runs refuse it by name, static ones are handed on to it."""

from __future__ import annotations

import ast
import stat
import sys
from pathlib import Path

import pytest
import yaml
from dataflex.cli.main import run
from dataflex.config.arguments import TRAIN_TYPES
from dataflex.config.check import check
from dataflex.config.known_keys import next_trainer_trains
from dataflex.core.errors import InvalidConfigError
from dataflex.discovery.installed import version_of
from dataflex.discovery.source_files import module
from dataflex.launch import next_trainer
from packaging.version import Version

pytestmark = pytest.mark.llamafactory  # whose next trainer it is
STATIC = """\
train_type: static
model: some/model  # a key of the next trainer's
train_dataset: data.yaml
learning_rate: 1e-5
peft_config: {name: lora, r: 8}
"""
DOREMI = """\
common: {stage: pt, do_train: true, finetuning_type: full, dataset: "a,b", output_dir: out, model_name_or_path: a/b}
reference: {train_step: 5}
proxy: {train_step: 5}
final: {train_step: 5}
"""


@pytest.fixture
def handed(tmp_path, monkeypatch):
    """The programs that were started, with what their files held: ``(command, keys, mode of the file)``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("USE_V1", "1")
    monkeypatch.setenv("DISABLE_VERSION_CHECK", "1")
    (tmp_path / "static.yaml").write_text(STATIC, encoding="utf-8")
    (tmp_path / "doremi.yaml").write_text(DOREMI, encoding="utf-8")
    started = []

    def supervised(command, environ):
        file = Path(command[-1])
        assert environ["USE_V1"] == "1"
        started.append((command[:-1], yaml.safe_load(file.read_text()), stat.S_IMODE(file.parent.stat().st_mode)))
        return 7

    monkeypatch.setattr(next_trainer, "supervised", supervised)
    monkeypatch.setattr("dataflex.config.check.next_trainer_trains", lambda: True)  # of 0.9.4 it is not so
    return started


def test_a_static_run_is_llamafactorys_own_program_with_the_keys_that_are_not_ours(handed):
    assert run(["train", "static.yaml", "learning_rate=2e-5", "peft_config.r=4"]) == 7
    ((command, keys, mode),) = handed
    assert command == [sys.executable, "-m", "llamafactory.cli", "train"]
    assert keys == {
        "model": "some/model",
        "train_dataset": "data.yaml",
        "learning_rate": 2e-5,
        "peft_config": {"name": "lora", "r": 4},
    }
    assert mode == 0o700  # no other user reads a token that stands in the file


def test_a_rank_of_a_torchrun_of_ones_own_is_one_of_theirs(handed, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert run(["train", "static.yaml"]) == 7
    assert handed[0][0] == [sys.executable, "-m", "llamafactory.v1.launcher", "train"]


@pytest.mark.parametrize(("name", "function"), [(next_trainer.PROGRAM, "main"), (next_trainer.WORKER, "main")])
def test_the_installed_llamafactory_has_the_programs_and_chooses_by_the_variable(name, function):
    if not next_trainer_trains():
        pytest.skip("its next trainer does not train yet")
    tree = module(name).tree
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert "if __name__ == '__main__'" in ast.unparse(tree)
    assert name != next_trainer.PROGRAM or "USE_V1" in ast.unparse(tree)


def test_validate_says_who_reads_the_keys(handed, capsys):
    assert run(["validate", "static.yaml"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == (
        "static.yaml: no mistake found, but 4 of the keys were not checked: with USE_V1=1 LLaMA-Factory's next trainer "
        "reads them"
    )
    assert "  unchecked:  model, train_dataset, learning_rate, peft_config" in out
    assert handed == []


def test_plugin_files_that_nobody_would_import_are_refused(handed, capsys):
    assert run(["train", "static.yaml", "plugins=[mine.py]"]) == 2
    assert (
        "plugins: USE_V1=1 leaves the run to LLaMA-Factory's next trainer, which imports none"
        in capsys.readouterr().err
    )
    assert handed == []


@pytest.mark.parametrize("command", ["train", "validate"])
def test_a_next_trainer_that_would_exit_as_if_it_had_trained_is_refused(handed, monkeypatch, capsys, command):
    monkeypatch.setattr("dataflex.config.check.next_trainer_trains", lambda: False)
    assert run([command, "static.yaml"]) == 2
    assert "USE_V1: the next trainer of the installed LLaMA-Factory has no command train" in capsys.readouterr().err
    assert handed == []


def test_the_next_trainer_trains_since_0_9_5():
    assert next_trainer_trains() == (Version(version_of("llamafactory")) >= Version("0.9.5"))


@pytest.mark.parametrize("train_type", [name for name in TRAIN_TYPES if name != "static"])
@pytest.mark.parametrize("yes", ["1", "true", "Y"])
def test_a_dynamic_run_is_refused_by_the_variables_name(tmp_path, monkeypatch, train_type, yes):
    monkeypatch.setenv("USE_V1", yes)
    with pytest.raises(InvalidConfigError) as caught:
        check({"train_type": train_type, "output_dir": "out", "nonsense": 1}, tmp_path)
    found = {problem.where: problem for problem in caught.value.problems}
    assert f"which train_type: {train_type} cannot reach" in found["USE_V1"].what
    assert "nonsense" in found, "the other problems are still told"
    monkeypatch.setenv("USE_V1", "0")
    with pytest.raises(InvalidConfigError) as caught:
        check({"train_type": train_type, "output_dir": "out", "nonsense": 1}, tmp_path)
    assert "USE_V1" not in {problem.where for problem in caught.value.problems}


@pytest.mark.parametrize("command", ["train", "validate", "score"])
def test_each_command_refuses_it_before_anything_is_loaded(handed, capsys, command):
    assert run([command, "static.yaml", "train_type=dynamic_select"]) == 2
    assert "USE_V1: hands the training to LLaMA-Factory's next trainer, a loop of its own" in capsys.readouterr().err
    assert handed == []


def test_doremi_refuses_it_for_each_of_its_steps(handed, capsys):
    assert run(["doremi", "doremi.yaml"]) == 2
    err = capsys.readouterr().err
    for step in ("reference", "proxy", "final"):
        assert f"{step}: USE_V1: hands the training" in err
    assert handed == []
