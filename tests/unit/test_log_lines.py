"""Log lines and progress bars share a terminal, and the last line of a run leads to what the run left."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
from dataflex.core.errors import ComponentError
from dataflex.core.files import CONFIG, SELECTIONS, TRACE
from dataflex.run.whereabouts import saying_where
from dataflex.utils.logging import log_to_stderr, logger
from tqdm.auto import tqdm


@pytest.fixture
def stderr(monkeypatch, capsys):
    """``stderr()`` returns what was written to it since the last call."""
    monkeypatch.setattr(logger, "level", logger.level)
    monkeypatch.setattr(logger, "propagate", logger.propagate)
    monkeypatch.setattr(logger, "handlers", list(logger.handlers))
    log_to_stderr()
    return lambda: capsys.readouterr().err


def on_a_screen(text: str) -> list[str]:
    """Returns what a terminal shows of the text: a carriage return goes back to the start of the line."""
    lines = []
    for line in text.split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return lines


def test_a_log_line_does_not_break_the_progress_bar_that_stands(stderr):
    with tqdm(total=3, desc="training", mininterval=0) as bar:
        bar.update(1)
        logger.info("between two steps")
        bar.update(1)
    lines = on_a_screen(stderr())
    (line,) = [line for line in lines if "between two steps" in line]
    assert line.startswith("[INFO|dataflex] ")
    assert line.endswith(">> between two steps")
    assert lines[-2].startswith("training:"), "the bar is drawn again below"


def test_a_log_line_without_a_bar_is_a_line(stderr):
    logger.info("alone")
    assert on_a_screen(stderr())[0].endswith(">> alone")


def test_a_record_that_cannot_be_formatted_ends_nothing(stderr, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)
    logger.info("%d", "no number")
    logger.info("after it")
    assert stderr().endswith(">> after it\n")


def test_logging_imports_no_progress_bar():
    code = "import sys; from dataflex.utils.logging import log_to_stderr, logger; log_to_stderr(); logger.info('x'); "
    code += "assert not any(name.partition('.')[0] == 'tqdm' for name in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.endswith(">> x\n")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / SELECTIONS).mkdir()
    (tmp_path / TRACE).touch()
    return tmp_path


def write(folder, name, text="x\n"):
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_text(text)


@pytest.mark.parametrize("of_another", [False, True])
def test_the_last_line_of_a_run_leads_to_its_record(folder, caplog, of_another):
    if of_another:
        write(folder, CONFIG)
    with caplog.at_level("INFO", "dataflex"), saying_where(str(folder)):
        write(folder, CONFIG, "its own\n")
        write(folder, TRACE)
        write(folder, f"{SELECTIONS}/step_00000000.npz")
    assert caplog.messages == [f"the record of this run is in {folder}: {CONFIG}, {TRACE}, {SELECTIONS}/"]


def test_a_weighted_run_has_no_updates_to_lead_to(folder, caplog):
    with caplog.at_level("INFO", "dataflex"), saying_where(str(folder)):
        write(folder, CONFIG)
    assert caplog.messages == [f"the record of this run is in {folder}: {CONFIG}"]


@pytest.mark.parametrize("error", [ComponentError, KeyboardInterrupt])
def test_an_error_does_not_hide_the_record(folder, caplog, error):
    def stopped():
        with saying_where(str(folder)):
            write(folder, CONFIG)
            raise error("in the middle")

    with caplog.at_level("INFO", "dataflex"), pytest.raises(error):
        stopped()
    assert caplog.messages == [f"the record of this run is in {folder}: {CONFIG}"]


def test_a_refused_run_does_not_call_anothers_record_its_own(folder, caplog):
    write(folder, CONFIG)
    with caplog.at_level("INFO", "dataflex"), pytest.raises(ComponentError), saying_where(str(folder)):
        raise ComponentError("the folder is in use")
    assert not caplog.messages


@pytest.mark.parametrize("output_dir", [None, 3, "", "missing"])
def test_without_a_folder_there_is_nothing_to_lead_to(output_dir, caplog):
    with caplog.at_level("INFO", "dataflex"), saying_where(output_dir):
        pass
    assert not caplog.messages
