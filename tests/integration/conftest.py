"""A demo workspace for the whole session, in a folder with a blank in its name, and the command line in this
process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dataflex.cli.main import run
from dataflex.workspace.build import create
from quick_keys import QUICK


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that ``dataflex-cli init`` writes."""
    folder = tmp_path_factory.mktemp("with blank") / "work space"
    create(folder)
    return folder


@pytest.fixture
def train(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """``train(name, *overrides, out="run")`` runs one of the workspace's files, made short; returns the exit code."""
    monkeypatch.chdir(tmp_path)

    def train_(name: str, *overrides: str, out: str = "run") -> int:
        file = name if "." in name else str(workspace / f"{name}.yaml")
        return run(["train", file, *QUICK, f"output_dir={tmp_path / out}", *overrides])

    return train_
