"""Log lines and progress bars share a terminal, and the last line of a run leads to what the run left."""

from __future__ import annotations

import io
import json
import logging
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from dataflex.core.errors import ComponentError
from dataflex.core.files import CONFIG, METRICS, RUN, SELECTIONS, TRACE
from dataflex.run.rows_seen import rows_seen
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


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("terminal", "variables", "coloured"),
    [(True, {}, True), (False, {}, False), (True, {"NO_COLOR": "1"}, False), (True, {"TERM": "dumb"}, False),
     (True, {"NO_COLOR": ""}, True)],
)  # fmt: skip
def test_our_lines_stand_out_on_a_terminal_alone_and_not_against_the_users_will(
    stderr, monkeypatch, terminal, variables, coloured
):
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    screen = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    logger.info("found among hundreds")
    text = screen.getvalue()
    assert ("\033[1;36m[INFO|dataflex]\033[0m " in text) == coloured
    assert re.sub(r"\033\[[0-9;]*m", "", text).startswith("[INFO|dataflex] ")
    assert ("\033" in text) == coloured


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
        write(folder, TRACE, '{"step": 2, "update": 0}\n{"step": 2, "update": 0}\n{"step": 4, "update": 1}\n')
    assert caplog.messages == [f"ended: 2 updates; {record_in(folder)}"]


def record_in(folder):
    return f"the record is in {folder} -> dataflex-cli report {shlex.quote(str(folder))}"


FACTS = {
    "status": "finished", "step": 4, "total_steps": 4, "updates": 1, "batch": 2, "rows": 1000,
    "seconds": {"training": 6.0, "deciding": 3.0, "saving": 0.5, "evaluating": 0.5},
}  # fmt: skip
METRIC_LINES = [{"step": 2, "loss": 3.25}, {"step": 4, "loss": 2.0}, {"step": 4, "eval_loss": 1.5, "eval_runtime": 9}]


def recorded(folder, facts, metrics=METRIC_LINES, rows=(range(4), range(2, 8))):
    write(folder, CONFIG)
    write(folder, RUN, json.dumps(facts))
    write(folder, TRACE, '{"step": 2, "update": 0}\n')
    write(folder, METRICS, "".join(json.dumps(line) + "\n" for line in metrics))
    for number, indices in enumerate(rows):
        np.savez(folder / SELECTIONS / f"step_{2 * number:08d}.npz", indices=np.array(indices))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "finished: 4 steps, 1 update, 30 % of the time deciding (3.0 of 10.0 s), 6 of 1,000 rows seen"),
        (
            {"status": "failed", "step": 3, "updates": 2},
            "failed: 3 of 4 steps, 1 of 2 updates, 30 % of the time deciding (3.0 of 10.0 s), 4 of 1,000 rows seen",
        ),
        (
            {"status": "stopped", "step": 0, "seconds": {}, "updates": 1},
            "stopped: 0 of 4 steps, 1 update, 0 of 1,000 rows seen",
        ),
        (
            {"updates": 3, "seconds": {"training": 6.0, "deciding": 0.0}, "rows": None},
            "finished: 4 steps, 1 update, 6.0 s, 6 rows seen",
        ),
    ],
    ids=["finished", "failed", "stopped", "a stream, and updates at which every axis rests"],
)
def test_the_last_line_says_what_happened_as_far_as_the_record_knows(folder, caplog, changes, said):
    with caplog.at_level("INFO", "dataflex"), saying_where(str(folder)):
        recorded(folder, FACTS | changes)
    assert caplog.messages == [f"{said}, loss 2, eval_loss 1.5; {record_in(folder)}"]


@pytest.mark.parametrize("damage", ["{", "[]", '{"status": 3, "step": "x", "seconds": [1], "updates": null}', ""])
def test_a_record_that_cannot_be_read_takes_nothing_from_the_last_line_but_its_words(folder, caplog, damage):
    with caplog.at_level("INFO", "dataflex"), saying_where(str(folder)):
        recorded(folder, FACTS, metrics=[])
        write(folder, RUN, damage)
        (folder / METRICS).write_bytes(b'\xff\n[1]\n{"loss": "nan"}\n{"loss')
        (folder / SELECTIONS / "step_00000000.npz").write_bytes(b"PK")
    assert caplog.messages == [f"ended: 1 update; {record_in(folder)}"]


def test_rows_of_a_damaged_segment_or_of_very_many_are_not_counted(folder, monkeypatch):
    recorded(folder, FACTS)
    assert rows_seen(folder / SELECTIONS, 4, 2) == 6
    monkeypatch.setattr("dataflex.run.rows_seen.MOST_BYTES", 10)
    assert rows_seen(folder / SELECTIONS, 4, 2) is None
    monkeypatch.undo()
    (folder / SELECTIONS / "step_00000002.npz").write_bytes(b"PK")
    assert rows_seen(folder / SELECTIONS, 4, 2) is None
    assert rows_seen(folder / "missing", 4, 2) is None


def test_a_weighted_run_has_no_updates_to_lead_to(folder, caplog):
    with caplog.at_level("INFO", "dataflex"), saying_where(str(folder)):
        write(folder, CONFIG)
    assert caplog.messages == [f"ended; {record_in(folder)}"]


@pytest.mark.parametrize("error", [ComponentError, KeyboardInterrupt])
def test_an_error_does_not_hide_the_record(folder, caplog, error):
    def stopped():
        with saying_where(str(folder)):
            write(folder, CONFIG)
            raise error("in the middle")

    with caplog.at_level("INFO", "dataflex"), pytest.raises(error):
        stopped()
    assert caplog.messages == [f"ended early; {record_in(folder)}"]


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
