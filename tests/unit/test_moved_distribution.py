"""OpenDCAI/DataFlex's distribution beside ours is told before anything runs. A folder of the path has its metadata."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from dataflex.discovery import other_distribution

WAY_OUT = "pip uninstall dataflex, and then pip install --force-reinstall --no-deps dataflex-core"


@pytest.fixture
def beside(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that finds the metadata of ``dataflex 1.1.0`` too."""
    folder = tmp_path / "dataflex-1.1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: dataflex\nVersion: 1.1.0\n")
    return os.environ | {"PYTHONPATH": str(tmp_path)}


def python(environment, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)


SCRIPT = "from dataflex.cli.main import main\n\nmain()\n"


@pytest.mark.parametrize("program", [("-m", "dataflex"), ("-mdataflex",), ("dataflex-cli",)], ids=" ".join)
@pytest.mark.parametrize("command", ["version", "train", "--help", ""])
def test_every_command_ends_before_it_does_anything_with_one_message(beside, tmp_path, monkeypatch, program, command):
    monkeypatch.chdir(tmp_path)
    Path("dataflex-cli").write_text(SCRIPT)  # as the installer writes it
    ended = python(beside, *program, *([command] if command else []))
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith(
        "error: the distribution dataflex 1.1.0 (OpenDCAI/DataFlex) is installed beside dataflex-core"
    )
    assert ended.stderr.rstrip().endswith(WAY_OUT)
    assert ended.stderr.count("1.1.0") == 1, "the import warns of what the command then says as an error"


def test_the_script_that_theirs_installs_ends_in_the_same_sentence(beside):
    ended = python(beside, "-W", "ignore", "-c", "from dataflex.cli import main; main()")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: the distribution dataflex 1.1.0")
    assert ended.stderr.rstrip().endswith(WAY_OUT)


def test_an_import_warns_and_one_without_the_other_is_silent_and_light(beside):
    code = "import sys, dataflex; print(dataflex.__version__, 'torch' in sys.modules)"
    warned, alone = python(beside, "-c", code), python(dict(os.environ), "-W", "error", "-c", code)
    assert "RuntimeWarning: the distribution dataflex 1.1.0" in warned.stderr
    assert warned.stderr.count("RuntimeWarning: the distribution") == 1
    assert alone.stderr == ""
    assert alone.stdout.split() == [version("dataflex-core"), "False"]


def test_their_script_runs_our_command_line_where_ours_is_alone():
    ended = python(
        dict(os.environ), "-c", "import sys; sys.argv[1:] = ['version']; from dataflex.cli import main; main()"
    )
    assert ended.returncode == 0
    assert "dataflex-core" in ended.stdout


def test_ours_has_another_name_than_theirs():
    assert version(other_distribution.OURS)
    assert other_distribution.OTHER != other_distribution.OURS
    assert other_distribution.other_distribution() is None
