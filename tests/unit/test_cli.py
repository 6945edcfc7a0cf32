"""The command line as a user meets it: output, exit codes, and what it does not import."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from dataflex.cli import commands, llamafactory_commands
from dataflex.cli.commands import BUILT_IN, LLAMAFACTORY, Command
from dataflex.cli.list import table
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import RunSpec
from dataflex.discovery import plugins
from dataflex.discovery.catalog import components

main = import_module("dataflex.cli.main")  # the package has a function of that name too

CONFIG = {
    "model_name_or_path": "./model",
    "stage": "sft",
    "do_train": True,
    "dataset": "a",
    "dataset_dir": "data",
    "output_dir": "out",
    "per_device_train_batch_size": 2,
    "train_type": "dynamic_mix",
    "component_name": "random",
    "warmup_step": 1,
    "update_step": 2,
    "update_times": 3,
}


def cli(*argv, cwd=None, env=()):
    command = [sys.executable, "-m", "dataflex", *argv]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **dict(env)}, check=False
    )


@pytest.fixture
def workspace(tmp_path):
    for folder in ("model", "data"):
        (tmp_path / folder).mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "data" / "a.json").write_text(json.dumps([{"instruction": "x", "input": "", "output": "y"}] * 20))
    info = {name: {"file_name": "a.json"} for name in "ab"}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info))
    (tmp_path / "my run.json").write_text(json.dumps(CONFIG | {"dataset": "a,b"}))
    return tmp_path


@pytest.mark.parametrize(
    "argv", [(), ("lst",), ("list", "--jsn"), ("list", "--kind", "mixr"), ("version", "x"), ("validate",), ("train",)]
)
def test_a_wrong_command_line_ends_with_2_and_prints_nothing_to_stdout(argv):
    done = cli(*argv)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "usage" in done.stderr or "->" in done.stderr


def test_an_unknown_command_gets_the_nearest_one():
    assert "no command 'lst'" in (text := cli("lst").stderr)
    assert "did you mean 'list'?" in text


@pytest.mark.parametrize("name", LLAMAFACTORY)
def test_a_command_of_llamafactorys_reaches_it_with_every_argument_and_its_exit_code(name, monkeypatch):
    seen: list[list[str]] = []

    def theirs() -> None:
        seen.append(list(sys.argv))
        raise SystemExit(3)

    monkeypatch.setattr(llamafactory_commands, "require_llamafactory", lambda name: None)
    monkeypatch.setattr(llamafactory_commands, "require_working_packages", lambda: None)
    monkeypatch.setattr(llamafactory_commands, "import_module", lambda name: SimpleNamespace(main=theirs))
    before = list(sys.argv)
    with pytest.raises(SystemExit, match="3"):
        main.run([name, "my run.yaml", "export_dir=out", "--help"])
    assert seen == [["llamafactory-cli", name, "my run.yaml", "export_dir=out", "--help"]]
    assert sys.argv == before


def test_a_command_of_llamafactorys_without_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("dataflex.launch.packages.has_package", lambda name: False)
    assert main.run(["export", "file.yaml"]) == 2
    assert "dataflex-cli export works through LLaMA-Factory, which is not installed -> pip" in capsys.readouterr().err


def test_predict_is_a_key_of_train(capsys):
    assert main.run(["predict", "file.yaml"]) == 2
    assert "do_predict: true and eval_dataset in it, and run dataflex-cli train FILE" in capsys.readouterr().err


@pytest.mark.llamafactory
def test_the_commands_of_llamafactory_are_all_known():
    package = Path(importlib.util.find_spec("llamafactory").origin).parent  # read, not imported
    source = (package / "launcher.py").read_text() + (package / "cli.py").read_text()
    theirs = set(re.findall(r"""command (?:==|in) ["'](\w+)""", source)) | set(
        re.findall(r"\| +llamafactory-cli (\w+)", source)
    )
    assert theirs >= {"train", "export"}
    assert theirs <= {*LLAMAFACTORY, *BUILT_IN, "help"}


def test_a_plugins_command_of_that_name_comes_first(monkeypatch):
    mine = Command("exports", "dataflex-cli export", lambda argv: 0)
    monkeypatch.setattr(commands, "_from_plugins", lambda: {"export": mine})
    assert main.run(["export"]) == 0


@pytest.mark.parametrize("argv", [("help",), ("-h",), ("--help",)])
def test_help_shows_every_command(argv):
    done = cli(*argv)
    assert done.returncode == 0
    for name in [*BUILT_IN, "help"]:
        assert f"\n  {name} " in done.stdout


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_command_explains_itself(name):
    for argv in ((name, "--help"), ("help", name)):
        done = cli(*argv)
        assert done.returncode == 0
        assert done.stdout.startswith(f"usage: dataflex-cli {name}")


def test_version_shows_dataflex_and_what_it_runs_on():
    lines = dict(line.split(maxsplit=1) for line in cli("version").stdout.splitlines())
    assert lines["dataflex-core"]
    assert {
        "dataflex-selectors",
        "dataflex-mixers",
        "dataflex-weighters",
        "llamafactory",
        "transformers",
        "torch",
    } <= lines.keys()


def test_list_shows_every_component_with_its_defaults(monkeypatch):
    monkeypatch.setattr("dataflex.core.registry._registered", {})  # the other process has only what is installed
    done = cli("list", env={"COLUMNS": "100"}.items())
    assert done.returncode == 0
    for info in components():
        assert f"{info.kind.name:<8}  {info.name}" in done.stdout
    assert "strategy='linupper', delta=1.0, temperature=1.0" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_list_as_json_is_for_programs_and_can_be_one_kind():
    found = json.loads(cli("list", "--json", "--kind", "weighter").stdout)
    assert {item["kind"] for item in found} == {"weighter"}
    (loss,) = [item for item in found if item["name"] == "loss"]
    assert loss["parameters"].items() >= {"strategy": "linupper", "delta": 1.0, "temperature": 1.0}.items()
    assert loss["package"] == "dataflex-weighters"
    assert loss["summary"]


def test_list_without_strategy_packages_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("dataflex.core.registry._registered", {})
    monkeypatch.setattr("dataflex.core.registry.entry_points", lambda group: [])
    assert main.run(["list"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    for package in ("dataflex-selectors", "dataflex-mixers", "dataflex-weighters"):
        assert f"-> pip install {package}\n" in err
    assert main.run(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_the_table_marks_what_is_required():
    info = components()[0]
    changed = type(info)(info.kind, "x", "p", "1", "Does.", {"a": None}, ("b",))
    assert table([changed], 80) == "selector  x  p 1\n    Does.\n    b (required), a=None\n"


@pytest.mark.llamafactory  # tests/unit/test_without_llamafactory.py has what it says without
def test_validate_says_what_the_run_would_be(workspace):
    done = cli("validate", "my run.json", "warmup_step=0", cwd=workspace)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "my run.json can be run",
        "  train_type: dynamic_mix",
        "  mixer:      random: concentration=1.0",
        "  run:        shares by random",
        "  schedule:   3 updates, each followed by 2 steps; 6 steps in all",
        "  output:     out",
        "  datasets:   a, b",
    ]


def test_validate_lists_every_problem_on_stderr_and_ends_with_2(workspace):
    done = cli("validate", "my run.json", "update_step=0", "warmup_stp=1", cwd=workspace)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: 2 problems in the configuration:\n")
    assert "did you mean 'warmup_step'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.llamafactory
def test_train_refuses_the_same_configuration_with_the_same_words(workspace):
    change = ["my run.json", "update_step=0"]
    assert cli("train", *change, cwd=workspace).stderr == cli("validate", *change, cwd=workspace).stderr


@pytest.mark.parametrize("argv", [["version"], ["list"], ["list", "--json"], ["help"], ["validate", "my run.json"]])
def test_no_heavy_package_is_imported(workspace, argv):
    code = (
        "import sys\nfrom dataflex.cli.main import run\n"
        f"assert run({argv!r}) == 0\n"
        "heavy = {'torch', 'transformers', 'llamafactory', 'accelerate', 'datasets', 'numpy'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=workspace, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_dataflex_imports_pluggy_and_nothing_heavy():
    code = "import sys, dataflex; assert dataflex.hookimpl and dataflex.__version__\n"
    code += "print(sorted({'torch', 'numpy', 'yaml', 'transformers', 'llamafactory'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.fixture
def crashing(monkeypatch):
    """Returns a function that makes the command ``boom`` raise."""

    def install(error):
        def run(argv):
            raise error

        monkeypatch.setattr(commands, "_from_plugins", lambda: {"boom": Command("goes off", "dataflex-cli boom", run)})

    return install


def test_ctrl_c_is_one_line_and_130(crashing, capsys):
    crashing(KeyboardInterrupt())
    assert main.run(["boom"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_an_error_that_nobody_foresaw_keeps_its_traceback(crashing):
    crashing(RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        main.run(["boom"])


def test_the_exit_code_is_that_of_the_error(crashing, capsys):
    from dataflex.core.errors import ComponentError, ConfigError

    for error, code in ((ComponentError("bad answer"), 1), (ConfigError("bad key"), 2)):
        crashing(error)
        assert main.run(["boom"]) == code
        assert capsys.readouterr().err == f"error: {error}\n"


def test_a_plugin_adds_a_command_but_cannot_take_a_name_of_ours(monkeypatch, capsys):
    class Plugin:
        @plugins.hookspecs.pluggy.HookimplMarker("dataflex")
        def dataflex_cli_commands(self):
            hello = Command("say hello", "dataflex-cli hello", lambda argv: print("hello", *argv) or 0)
            return {"hello": hello, "list": hello}

    monkeypatch.setattr(plugins, "entry_points", lambda group: [])
    plugins.plugin_manager.cache_clear()
    try:
        plugins.plugin_manager().register(Plugin())
        assert main.run(["hello", "you"]) == 0
        assert capsys.readouterr().out == "hello you\n"
        assert main.run(["help"]) == 0
        assert "\n  hello     say hello\n" in capsys.readouterr().out
        assert main.run(["list"]) == 0
        assert "hello" not in capsys.readouterr().out
    finally:
        plugins.plugin_manager.cache_clear()


def test_validate_and_plan_leave_a_file_of_a_plugins_command_to_it(monkeypatch, capsys, tmp_path):
    class Plugin:
        @plugins.hookspecs.pluggy.HookimplMarker("dataflex")
        def dataflex_cli_commands(self):
            return {
                "brew": Command(
                    "brew tea", "dataflex-cli brew FILE", lambda argv: 1, owns=lambda content: "tea" in content,
                    validate=lambda argv: print("checked", *argv[1:]) or 0, plan=lambda argv: print("planned") or 0,
                )
            }  # fmt: skip

    (tmp_path / "tea.yaml").write_text("tea: green")
    (tmp_path / "run.yaml").write_text("tea: green\ntrain_type: dynamic_select")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [])
    plugins.plugin_manager.cache_clear()
    try:
        plugins.plugin_manager().register(Plugin())
        assert main.run(["validate", str(tmp_path / "tea.yaml"), "a=1"]) == 0
        assert main.run(["plan", str(tmp_path / "tea.yaml")]) == 0
        assert capsys.readouterr().out == "checked a=1\nplanned\n"
        assert main.run(["validate", str(tmp_path / "run.yaml")]) == 2, "a run has a train_type"
    finally:
        plugins.plugin_manager.cache_clear()


SCHEDULES = [
    (
        {"warmup_step": 10, "update_step": 5, "update_times": 2},
        None,
        "10 warm-up steps; 2 updates, each followed by 5 steps; 20 steps in all",
    ),
    (
        {"update_step": 5, "update_times": 1},
        2.0,
        "1 update, each followed by 5 steps; 5 steps, repeated for num_train_epochs: 2",
    ),
    ({"update_step": 5, "train_step": 30}, None, "an update every 5 steps until the end; 30 steps in all"),
    ({"update_step": 5}, 1.0, "an update every 5 steps until the end; 1 epoch of the data"),
    (
        {"train_type": "dynamic_weight", "warmup_step": 3},
        None,
        "3 warm-up steps; then every step is weighted; 3 epochs of the data",
    ),
    ({"train_type": "dynamic_weight", "train_step": 9}, None, "every step is weighted; 9 steps in all"),
    ({"train_type": "dynamic_mix", "static_mix": True, "warmup_step": 3}, 2.0, "no updates, 2 epochs of the data"),
    (
        {"train_type": "dynamic_mix", "static_mix": True, "warmup_step": 3, "update_step": 1, "update_times": 4},
        None,
        "no updates, 7 steps in all",
    ),
    ({"update_times": 0}, None, "no updates; 3 epochs of the data"),
]


@pytest.mark.parametrize(("keys", "epochs", "words"), SCHEDULES, ids=lambda value: str(value)[:50])
def test_the_schedule_in_words(keys, epochs, words):
    from dataflex.cli.validate import schedule_in_words

    arguments = DataflexArguments(**{"train_type": "dynamic_select"} | keys)
    assert schedule_in_words(RunSpec(arguments, epochs=epochs)) == words


def test_a_seed_is_a_decimal_number(tmp_path, capsys):
    for seed in ("1_0", "0x10", "\u0663", "-1", "1.5", "010"):
        assert main.run(["init", str(tmp_path / "new"), f"--seed={seed}"]) == 2
        assert "allowed: a whole number from 0 to 999999999" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
