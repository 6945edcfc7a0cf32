"""The tree of the repository holds what belongs to the project, and nothing that a run of its tests left there."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {".ci", "benchmarks", "docs", "examples", "packages", "tests"}


def test_each_folder_at_the_top_is_one_of_the_project():
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no checkout of git")
    done = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = {line.partition("/")[0] for line in done.stdout.splitlines() if "/" in line}
    assert found == FOLDERS
