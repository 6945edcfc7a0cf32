"""A run that another command starts: its words go to a file, and an earlier start of it is waited for."""

from __future__ import annotations

import subprocess
import sys

import pytest
from dataflex.core.errors import ConfigError
from dataflex.launch.logged_run import run_logged


def test_what_a_run_says_is_added_to_its_log_and_its_exit_code_comes_back(tmp_path, capfd):
    file, log = tmp_path / "none.yaml", tmp_path / "none.log"
    log.write_text("before\n")
    assert run_logged(["a=1"], file, log, "=== start", {"DATAFLEX_STOP_SECONDS": "1"}) == 2
    first, heading, said = log.read_text().splitlines()
    assert (first, heading) == ("before", "=== start")
    assert said.startswith("error: ")
    assert capfd.readouterr() == ("", "")


def earlier(file, seconds):
    """Returns a process that looks like an earlier start of a run."""
    return subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({seconds})", "train", str(file)])


def test_an_earlier_start_of_the_same_run_is_waited_for(tmp_path):
    file = tmp_path / "run.yaml"
    process = earlier(file, 1)
    assert run_logged([], file, tmp_path / "run.log", "=== start", {}) == 2
    assert process.wait(0) is not None


def test_one_that_does_not_end_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("DATAFLEX_STOP_SECONDS", "0.2")
    process = earlier(tmp_path / "run.yaml", 60)
    try:
        with pytest.raises(ConfigError, match=rf"run.yaml is being trained by process {process.pid} -> wait"):
            run_logged([], tmp_path / "run.yaml", tmp_path / "run.log", "=== start", {})
        assert not (tmp_path / "run.log").exists()
    finally:
        process.kill()
        process.wait()
