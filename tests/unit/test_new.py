"""``dataflex-cli new``: names that cannot be are refused, nothing is written over, and what is written is whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from dataflex.cli.main import run
from dataflex.config.load import split
from dataflex.core.errors import ConfigError
from dataflex.core.kinds import KINDS, MIXER, SELECTOR, WEIGHTER
from dataflex.workspace.new_package import write_package

ROOT = Path(__file__).parents[2]
IDS = [kind.name for kind in KINDS]


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_a_package_holds_a_component_its_tests_a_run_and_a_licence_and_leaves_nothing_to_fill_in(kind, tmp_path):
    made = write_package(kind, "My-Own.thing", tmp_path)
    assert (made.name, made.distribution, made.package) == (
        "my_own_thing",
        "dataflex-my-own-thing",
        "dataflex_my_own_thing",
    )
    assert made.folder == tmp_path / made.distribution
    project = tomllib.loads((made.folder / "pyproject.toml").read_text())["project"]
    target = f"{made.package}.my_own_thing:MyOwnThing{kind.name.capitalize()}"
    assert project["entry-points"] == {f"dataflex.{kind.section}": {"my_own_thing": target}}
    assert made.cls == target.partition(":")[2]
    assert (made.folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert (made.folder / "src" / made.package / "py.typed").read_text() == ""
    for file in [path for path in made.folder.rglob("*") if path.is_file() and path.parent.name != "model"]:
        assert "$" not in file.read_text(), file
    for file in made.folder.rglob("*.py"):
        compile(file.read_text(), str(file), "exec")
    text = (made.folder / "src" / made.package / "my_own_thing.py").read_text()
    assert f"class {made.cls}(" in text
    assert f'@register_{kind.name}("my_own_thing")' in text


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_a_component_named_as_its_kind_has_another_class_than_its_base(kind, tmp_path):
    assert write_package(kind, kind.name, tmp_path).cls == kind.name.capitalize() * 2
    assert write_package(kind, f"my_{kind.name}", tmp_path).cls == f"My{kind.name.capitalize()}"


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_the_run_of_a_package_is_checked_as_every_run_and_finds_nothing_wrong(kind, tmp_path, monkeypatch, capsys):
    made = write_package(kind, f"quick_{kind.name}", tmp_path)
    monkeypatch.chdir(made.folder)
    ours, _ = split(yaml.safe_load(Path("try/run.yaml").read_text()))
    assert ours["train_type"] == kind.train_type
    plugin = f"plugins=src/{made.package}/{made.name}.py"  # it is not installed here
    assert run(["validate", "try/run.yaml", plugin]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        (SELECTOR, "loss", "'loss' is a selector of dataflex-selectors -> a name such as my_loss"),
        (WEIGHTER, "Loss", "'loss' is a weighter of dataflex-weighters"),
        (MIXER, "9lives", "found '9lives', allowed: letters and digits"),
        (MIXER, "dataflex-9lives", "'9lives' does not begin with a letter -> a name such as mixer_9lives"),
        (MIXER, "a/b", "found 'a/b', allowed"),
        (MIXER, "../up", "found '../up', allowed"),
        (MIXER, "", "found '', allowed"),
        (MIXER, "Zählt", "found 'Zählt', allowed"),
        (MIXER, "x" * 41, "at most 40"),
        (MIXER, "lambda", "'lambda' is a word of Python -> a name such as lambda_mixer"),
        (MIXER, "mixers", "dataflex-mixers is a package of dataflex -> a name such as my_mixers"),
        (MIXER, "dataflex-core", "dataflex-core is a package of dataflex"),
    ],
)
def test_a_name_that_cannot_be_is_refused_with_one_that_can(kind, name, said, tmp_path):
    with pytest.raises(ConfigError) as caught:
        write_package(kind, name, tmp_path)
    assert said in str(caught.value)
    assert " -> " in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_name_of_another_kind_is_free(tmp_path):
    assert write_package(MIXER, "trim", tmp_path).name == "trim"


def test_nothing_is_written_over(tmp_path):
    folder = tmp_path / "dataflex-mine"
    folder.mkdir()
    (folder / "README.md").write_text("mine")
    with pytest.raises(ConfigError, match=r"dataflex-mine: it is there already.* -> .*--into DIR"):
        write_package(SELECTOR, "mine", tmp_path)
    assert [path.name for path in folder.iterdir()] == ["README.md"]
    assert (folder / "README.md").read_text() == "mine"


def test_a_folder_that_cannot_be_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(["new", "selector", "mine", "--into", str(tmp_path / "file")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["selctor", "mine"], "found the kind 'selctor', allowed: selector, mixer, order, weighter"),
        (["selector"], "NAME -> dataflex-cli new"),
        (["selector", "mine", "--out", "x"], "--out x -> dataflex-cli new"),
    ],
)
def test_a_command_line_that_cannot_be_is_refused(arguments, said, capsys):
    assert run(["new", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_the_command_prints_what_to_run_next_and_imports_no_torch(tmp_path):
    code = (
        "import sys; from dataflex.cli.main import run; code = run(['new', 'order', 'mine']); "
        "heavy = {'torch', 'transformers', 'llamafactory'} & set(sys.modules); sys.exit(code or len(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *_, install, test, train = done.stdout.splitlines()
    assert "  cd dataflex-mine" in done.stdout.splitlines()
    assert (test, train) == ("  pytest", "  dataflex-cli train try/run.yaml")
    assert "pip install -e" in install
    assert os.listdir(tmp_path) == ["dataflex-mine"]


def test_the_tiny_model_has_a_token_for_each_byte_and_the_data_are_the_same_each_time(tmp_path):
    from transformers import AutoConfig, AutoTokenizer

    one, two = (write_package(SELECTOR, "mine", tmp_path / name).folder / "try" for name in "ab")
    for file in one.rglob("*.json"):
        assert file.read_bytes() == (two / file.relative_to(one)).read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(one / "model")
    text = "ünï ☃ 7 + 8\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert AutoConfig.from_pretrained(one / "model").vocab_size == len(tokenizer)
    info = json.loads((one / "data" / "dataset_info.json").read_text())
    sizes = {name: len(json.loads((one / "data" / entry["file_name"]).read_text())) for name, entry in info.items()}
    assert sizes == {"sums": 80, "words": 80, "held_out": 16}
