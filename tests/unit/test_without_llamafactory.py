"""What core is without LLaMA-Factory: every module can be imported, and each command says what it can and cannot do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from dataflex.config.arguments import DataflexArguments
from dataflex.config.known_keys import SOURCES, argument_sources, llamafactory_keys
from dataflex.core.errors import nearest

ROOT = Path(__file__).parents[2]
EXTRA = 'pip install "dataflex-core[llamafactory]"'
RUN = """\
train_type: dynamic_select
component_name: loss
warmup_step: 2
update_step: 2
update_times: 2
output_dir: out
do_train: true
learning_rate: 1.0e-4
model_name_or_path: some/model
dataset: rows
dataset_dir: data
template: qwen
"""
THROUGH_LLAMAFACTORY = ["train", "score", "doremi", "regmix"]


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str
    seconds: float
    heavy: list[str]


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> dict[str, Done]:
    """Command line -> how it ended where nothing is to be had but what the four packages declare."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "run.yaml").write_text(RUN, encoding="utf-8")
    (folder / "data").mkdir()
    (folder / "data" / "dataset_info.json").write_text('{"rows": {"file_name": "rows.json"}}', encoding="utf-8")
    row = {"instruction": "How?", "input": "", "output": "So."}
    (folder / "data" / "rows.json").write_text(json.dumps([row] * 99), encoding="utf-8")
    lines = [
        *(f"{command} missing.yaml" for command in THROUGH_LLAMAFACTORY),
        "validate run.yaml",
        "validate run.yaml update_stp=3",
        "validate run.yaml update_step=-1",
        'validate run.yaml learning_rate="fast"',
        "version",
        "list",
        "help",
        "help doremi",
        "compare out missing",
        "compare missing.yaml",
        "init run.yaml",
        "plan run.yaml",  # last: it imports torch
    ]
    ended = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "declared.py"), "commands"], cwd=folder, capture_output=True, text=True,
        input="".join(f"{json.dumps(line.split())}\n" for line in lines), check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return {line: Done(*json.loads(text)) for line, text in zip(lines, ended.stdout.splitlines(), strict=True)}


def test_a_run_is_planned_without_llamafactory_and_without_its_model(done):
    planned = done["plan run.yaml"]
    assert (planned.code, planned.heavy) == (0, ["torch", "transformers"])
    assert "6 steps of 8 rows: 48 rows" in planned.out
    assert "the configuration of some/model is not to be had here" in planned.out
    assert planned.out.splitlines()[-1].startswith("deciding will take about ")


@pytest.mark.slow
def test_every_module_can_be_imported_where_only_what_is_declared_is_to_be_had():
    ended = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "declared.py"), "modules"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    core, *strategies = ended.stdout.splitlines()
    assert int(core.split()[1]) > 190
    assert [line.partition(":")[0] for line in strategies] == [
        "dataflex-weighters",
        "dataflex-selectors",
        "dataflex-mixers",
    ]


@pytest.mark.parametrize("command", THROUGH_LLAMAFACTORY)
def test_a_command_that_trains_ends_with_one_line_before_it_reads_or_imports_anything(done, command):
    code, out, err, seconds, heavy = done[f"{command} missing.yaml"]
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(
        f"error: dataflex-cli {command} works through LLaMA-Factory, which is not installed -> {EXTRA}"
    )
    assert "from dataflex import dynamic (docs/plain-transformers.md)" in err
    assert "torchaudio" not in err
    assert "missing.yaml" not in err
    assert seconds < 1
    assert heavy == []


def test_validate_says_which_keys_were_not_checked_and_not_that_the_run_can_start(done):
    code, out, err, _, heavy = done["validate run.yaml"]
    assert code == 0, err
    assert "can be run" not in out
    first, *rest = out.splitlines()
    assert first == (
        "run.yaml: no mistake found, but LLaMA-Factory is not installed, so 4 of its keys were not checked and the run "
        f"cannot start here -> {EXTRA}"
    )
    assert "  unchecked:  model_name_or_path, dataset, dataset_dir, template" in rest
    assert "  schedule:   2 warm-up steps; 2 updates, each followed by 2 steps; 6 steps in all" in rest
    assert heavy == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("update_stp=3", "update_stp: there is no such key -> did you mean 'update_step'?"),
        ("update_step=-1", "update_step: found -1"),
        ('learning_rate="fast"', "learning_rate: found"),
    ],
)
def test_validate_still_refuses_what_can_be_told_wrong(done, change, words):
    code, out, err, *_ = done[f"validate run.yaml {change}"]
    assert code == 2
    assert out == ""
    assert words in err


def test_a_comparison_that_would_train_says_the_same_and_imports_nothing(done):
    code, out, err, _, heavy = done["compare missing.yaml"]
    assert (code, out, heavy) == (2, "", [])
    assert err.startswith("error: dataflex-cli compare FILE works through LLaMA-Factory, which is not installed -> ")


def test_the_other_commands_work_as_ever(done):
    assert done["list"].code == done["help"].code == done["help doremi"].code == done["version"].code == 0
    assert "selector  less" in done["list"].out
    assert "not installed" not in done["list"].err
    assert "validate" in done["help"].out
    for package in ("llamafactory", "torchaudio"):
        assert [line.split(maxsplit=1)[1] for line in done["version"].out.splitlines() if line.startswith(package)] == [
            "not installed"
        ]
    for line in ("compare out missing", "init run.yaml"):
        assert done[line].code == 2
        assert "LLaMA-Factory" not in done[line].err


def test_no_key_of_llamafactory_is_a_misspelt_one_of_ours():
    known = llamafactory_keys()
    if known is None:
        pytest.skip("needs LLaMA-Factory's source text")
    assert len(argument_sources()) == len(SOURCES)
    ours = set(DataflexArguments.names())
    transformers = {key for key in known if key in {"warmup_steps"}}  # its own: known also without LLaMA-Factory
    assert {key: hint for key in known - transformers if (hint := nearest(key, ours))} == {}
