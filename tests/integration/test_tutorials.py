"""Each command, each program and each quoted output of the tutorials is what happens, with fewer steps and rows; so are
the commands of the questions and of moving a run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PAGES = sorted((HERE.parents[1] / "docs" / "tutorials").glob("*.md"))
OTHERS = [HERE.parents[1] / "docs" / name for name in ("faq.md", "moving-a-run.md")]  # commands without their output
NAMES = [page.stem for page in PAGES]
EVERY = [*NAMES, *(page.stem for page in OTHERS)]

_PIECE = re.compile(
    r"^(?:(?P<verb>Save as|Add to) `(?P<file>[^`]+)`[^\n]*:\n\n(?P<body>(?:    [^\n]*\n|\n)+)"
    r"|```python\n(?P<python>.*?)^```"
    r"|    (?P<command>dataflex-cli [^\n]*))",
    flags=re.MULTILINE | re.DOTALL,
)
_QUOTED = re.compile(r"^```text\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r"[-+]?\d[\d,.]*(?<![,.])")

pytestmark = [pytest.mark.slow, pytest.mark.llamafactory]


def jobs_of(page: Path) -> list[tuple[str, str, str]]:
    """Returns what a reader of the page does in the workspace, in order: (page, kind, text).

    A command that names nothing of the workspace, as `dataflex-cli train run.yaml`, is an example of the reader's own.
    """
    jobs = []
    for found in _PIECE.finditer(page.read_text(encoding="utf-8")):
        if found["python"]:
            jobs.append((page.stem, "python", found["python"]))
        elif found["command"]:
            if re.search(r"\btry\b", found["command"]):
                jobs.append((page.stem, "command", found["command"]))
        else:
            body = re.sub(r"^    ", "", found["body"].strip("\n") + "\n", flags=re.MULTILINE)
            jobs.append((page.stem, f"{'save' if found['verb'] == 'Save as' else 'add'}:{found['file']}", body))
    return jobs


def plain(text: str) -> str:
    """Returns a text without its numbers, and with one blank where there are several."""
    return re.sub(r"\s+", " ", _NUMBER.sub("0", text)).strip()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, int, str]]]:
    """Page -> (text, exit code, output) of each thing that is done. One workspace for all: `init` runs once."""
    place = tmp_path_factory.mktemp("tutorials")
    jobs = [job for page in [*PAGES, *OTHERS] for job in jobs_of(page)]
    inits = [job for job in jobs if job[2].startswith("dataflex-cli init")]
    assert {text for _, _, text in inits} == {"dataflex-cli init try"}
    jobs = [inits[0], *(job for job in jobs if job not in inits)]
    (place / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    command = [sys.executable, str(HERE / "tutorial_commands.py"), "jobs.json", "results.json"]
    run = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-4000:]
    found: dict[str, list[tuple[str, int, str]]] = {name: [] for name in EVERY}
    for page, text, code, output in json.loads((place / "results.json").read_text(encoding="utf-8")):
        found[page].append((text, code, output.replace(f"{place}{os.sep}", "").replace("\r", "\n")))
    return found


def test_there_is_a_tutorial_for_each_axis_and_one_for_all_of_them():
    assert NAMES == ["combine", "mix", "order", "select", "weigh"]


@pytest.mark.parametrize("page", EVERY)
def test_each_command_of_the_tutorial_runs(page, results):
    failed = {text: (code, output[-2000:]) for text, code, output in results[page] if code != 0}
    assert not failed
    assert len(results[page]) >= 3


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_each_line_that_the_tutorial_quotes_is_printed_by_its_commands(page, results):
    printed = plain(" ".join(output for _, _, output in results[page.stem]))
    lines = [line for block in _QUOTED.findall(page.read_text(encoding="utf-8")) for line in block.splitlines()]
    assert len(lines) >= 8
    assert [line for line in lines if plain(line) not in printed] == []


def test_a_run_that_is_moved_decides_as_the_one_that_stayed(results):
    lines = [line.split() for line in results["moving-a-run"][-1][2].splitlines()]
    stayed, moved = ({step: found for run, step, found in lines if run == name} for name in ("move", "moved"))
    assert moved
    assert moved.items() <= stayed.items()
