"""What ``dataflex-cli new`` writes works for a stranger: built, installed from wheels, tested, trained; each kind.

The environment holds the wheels of this project and of the new packages, and what they need; nothing of this tree.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from dataflex.core.kinds import KINDS
from test_wheels import CORE, ONE_AFTER_THE_OTHER, PACKAGES, Environment, environment, wheels  # noqa: F401  # fixtures

pytestmark = [pytest.mark.slow, pytest.mark.llamafactory]

NAMES = {kind: f"a_strangers_{kind.name}" for kind in KINDS}


@pytest.fixture(scope="module")
def packages(environment, tmp_path_factory) -> dict[str, Path]:  # noqa: F811  # the fixture
    """Component -> the folder that ``dataflex-cli new`` has made of it, with core alone installed."""
    folder, made = tmp_path_factory.mktemp("strangers"), {}
    for kind, name in NAMES.items():
        done = environment(CORE).cli("new", kind.name, name, "--into", str(folder), cwd=folder)
        assert done.returncode == 0, done.stderr
        made[name] = folder / f"dataflex-{name.replace('_', '-')}"
        assert f"Made {made[name]}\n" in done.stdout
    return made


@pytest.fixture(scope="module")
def installed(packages, wheels, tmp_path_factory) -> Environment:  # noqa: F811  # the fixture
    """An environment with core and the four new packages, each from its wheel."""
    built = [wheels[CORE]]
    for folder in packages.values():
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        built += (folder / "dist").glob("*.whl")
    assert len(built) == 5
    return Environment(tmp_path_factory.mktemp("with strangers") / "venv", built)


def test_each_is_listed_with_its_parameters(installed, tmp_path):
    listed = installed.listed(tmp_path)
    assert set(listed) == {(kind.name, name) for kind, name in NAMES.items()}
    for item in listed.values():
        assert item["parameters"]
        assert item["package"] == f"dataflex-{item['name'].replace('_', '-')}"
        assert not item["summary"].startswith("(")


def test_the_tests_of_each_pass_with_the_fixtures_that_pytest_finds_by_itself(installed, packages, tmp_path):
    tests = [str(folder / "tests") for folder in packages.values()]
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "error", "--rootdir", str(tmp_path)]
    done = installed.python("-m", "pytest", *options, *tests, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "48 passed" in done.stdout


def test_each_trains_at_once(installed, packages, tmp_path):
    # One process for all: it takes eight seconds to start. Paths in a run.yaml are relative to the package's folder.
    script = ONE_AFTER_THE_OTHER.replace(
        "codes.append(run(arguments))", "os.chdir(arguments.pop())\n    codes.append(run(arguments))"
    )
    commands = [["train", "try/run.yaml", str(folder)] for folder in packages.values()]
    done = installed.python(
        "-c", script.replace("import json, sys", "import json, os, sys"), json.dumps(commands), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for name, folder in packages.items():
        out = folder / "try" / "saves" / name
        state = json.loads((out / "trainer_state.json").read_text(encoding="utf-8"))
        assert state["global_step"] == 16
        assert json.loads((out / "dataflex_run.json").read_text(encoding="utf-8"))["status"] == "finished"
        assert json.loads((out / "eval_results.json").read_text(encoding="utf-8"))["eval_loss"] > 0
