"""Signs of life: what long passes write where there is no terminal, and that short ones write nothing."""

from __future__ import annotations

import ast
import logging
import os
import pty
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest
from dataflex.utils import progress
from dataflex.utils.logging import logger
from dataflex.utils.progress import Progress, duration, tracked, without_bars
from transformers.utils import logging as hf_logging

PACKAGES = Path(__file__).parents[2] / "packages"


class Clock:
    """A clock that is set by hand, and goes on by itself by ``each`` seconds whenever it is read."""

    def __init__(self, each: float = 0.0) -> None:
        self.now, self.each = 1000.0, each

    def __call__(self) -> float:
        self.now += self.each
        return self.now


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(progress, "clock", found)
    monkeypatch.setattr(progress, "LOOK", 3600.0)  # the thread would look at a clock that stands
    monkeypatch.setattr(progress, "_mine", progress._Mine())  # what another test wrote was at other times
    return found


@pytest.fixture
def lines(caplog, monkeypatch):
    caplog.set_level("INFO", "dataflex")
    monkeypatch.setattr(progress.logger, "handlers", [])  # a command line in this process may have left one to stderr
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setattr(progress, "is_terminal", lambda: True)
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.enable_progress_bar()
    yield
    if not shown:
        hf_logging.disable_progress_bar()


def test_a_long_pass_writes_a_line_at_the_start_one_a_minute_and_one_at_the_end(clock, lines):
    with Progress("less", 300, about="61,440 tokens in 24 batches") as rows:
        for _ in range(300):
            clock.now += 0.25
            rows.done()
    assert lines() == [
        "less: 300 rows, 61,440 tokens in 24 batches",
        "less: 260 of 300 rows, 4 rows/s, 10 s left",
        "less: 300 rows in 1 min 15 s, 4 rows/s",
    ]


@pytest.mark.parametrize("count", [1, 10_000])
def test_what_is_over_in_seconds_writes_nothing_however_many_rows(clock, lines, count):
    with Progress("quick", count) as rows:
        for _ in range(count):
            clock.now += 4.9 / count
            rows.done()
    assert not lines()


def test_time_decides_and_not_the_number_of_rows(clock, lines):
    with Progress("slow", 10_000) as rows:
        for _ in range(10_000):
            clock.now += 0.06  # 10 minutes
            rows.done()
    assert len(lines()) == 1 + 9 + 1


def test_time_is_left_by_the_work_that_is_left(clock, lines):
    with Progress("longest first", 2, work=1000) as rows:
        clock.now += 90
        rows.done(1, work=900)
        clock.now += 60
        rows.done(0)
    assert lines()[1] == "longest first: 1 of 2 rows, 0.0067 rows/s, 17 s left"


def test_without_a_known_end_lines_say_how_long_it_runs(clock, lines):
    with Progress("tokenising gsm8k") as source:
        clock.now += 5
        source.done(0)
        clock.now += 60
        source.done(0)
        clock.now += 3600
    assert lines() == [
        "tokenising gsm8k: running for 5 s",
        "tokenising gsm8k: running for 1 min 5 s",
        "tokenising gsm8k: done in 1 h 1 min",
    ]


def test_a_pass_that_goes_on_counts_what_was_done_before_but_not_in_its_pace(clock, lines):
    with Progress("less", 300, before=180) as rows:
        for _ in range(120):
            clock.now += 1
            rows.done()
    assert lines() == [
        "less: 120 rows",
        "less: 245 of 300 rows, 1 rows/s, 55 s left",
        "less: 120 rows in 2 min, 1 rows/s",
    ]


def test_a_pass_that_fails_says_how_far_it_came(clock, lines):
    def failing():
        with Progress("less", 300) as rows:
            clock.now += 6
            rows.done(7)
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert lines()[-1] == "less: stopped at 7 of 300 rows after 6 s"


FORKED = """
import logging, os, threading
from dataflex.utils import progress
progress.logger.setLevel(logging.INFO)
held = threading.Event()
def hold(voice):
    with voice._lock:
        held.set()
        threading.Event().wait()
threading.Thread(target=hold, args=(progress._voice(),), daemon=True).start()
held.wait()
child = os.fork()
if not child:
    with progress.Progress("in a worker", 1) as rows:
        rows.done()
    os._exit(0)
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_worker_that_is_forked_while_the_thread_looks_does_not_wait_for_it():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], timeout=60, check=False)
    assert done.returncode == 0


def test_the_innermost_long_pass_speaks_for_those_around_it(clock, lines):
    with Progress("less: update 0 at step 50"), Progress("less: gradients", 10) as rows:
        for _ in range(10):
            clock.now += 10
            rows.done()
    assert [line.partition(": ")[2].partition(":")[0] for line in lines()] == ["gradients"] * 3


def test_many_short_passes_in_a_long_one_have_one_voice(clock, lines):
    with Progress("zeroth", 64, "directions") as directions:
        for number in range(64):
            with Progress(f"direction {number}", 10) as rows:
                clock.now += 4
                rows.done(10)
            directions.done()
    assert all(line.startswith("zeroth: ") for line in lines())
    assert lines()[1] == "zeroth: 16 of 64 directions, 0.24 directions/s, 3 min 24 s left"
    assert len(lines()) == 1 + 4 + 1


def test_long_passes_one_after_the_other_do_not_flood(clock, lines):
    with Progress("whole"):
        for number in range(100):  # 10 minutes
            with Progress(f"part {number}", 1) as rows:
                clock.now += 6
                rows.done()
    assert len(lines()) <= 10 * progress.MOST + 1


def test_what_an_error_left_open_is_over_with_what_is_around_it(clock, lines):
    def left_open():
        for _ in tracked(range(3), "inside", 3):
            clock.now += 7
            raise KeyError

    with Progress("around"):
        try:
            left_open()
        except KeyError as error:
            kept = error  # and with its traceback the loop
    clock.now += 100
    with Progress("later", 1) as later:
        clock.now += 100
        later.done()
    assert kept.__traceback__ is not None
    assert lines() == ["later: 1 rows", "later: 1 rows in 1 min 40 s, 0.01 rows/s"]


def test_leaving_a_loop_early_is_no_failure(clock, lines):
    for number in tracked(range(100), "rounds", unit="rounds"):
        clock.now += 10
        if number == 2:
            break
    assert lines()[-1] == "rounds: 2 rounds in 30 s, 0.067 rounds/s"


def test_a_batch_that_takes_minutes_has_signs_of_life_from_the_thread(monkeypatch, lines):
    monkeypatch.setattr(progress, "_mine", progress._Mine())
    monkeypatch.setattr(progress, "clock", Clock(each=70.0))
    monkeypatch.setattr(progress, "LOOK", 0.001)
    written = threading.Semaphore(0)
    monkeypatch.setattr(logger, "info", lambda *args: (logger.log(logging.INFO, *args), written.release()))
    with Progress("less", 300):
        for _ in range(2):
            assert written.acquire(timeout=10), "the thread writes while the batch is computed"
    assert lines()[0] == "less: 300 rows"
    assert lines()[1].startswith("less: 0 of 300 rows, running for ")
    assert not any(thread.name == "dataflex-life" for thread in threading.enumerate())


def test_nothing_is_done_where_nobody_listens(clock, caplog):
    caplog.set_level("WARNING", "dataflex")
    with Progress("less", 3) as rows:
        assert not any(thread.name == "dataflex-life" for thread in threading.enumerate())
        clock.now += 100
        rows.done()
    assert not caplog.records


def test_other_ranks_are_silent(clock, lines, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with Progress("less", 3) as rows:
        clock.now += 100
        rows.done()
    assert not lines()


def test_on_a_terminal_the_bar_stands_and_no_line_doubles_it(clock, lines, terminal, capsys):
    with Progress("less", 300, bar=0) as rows:
        clock.now += 100
        rows.done(120)
    assert "less:  40%" in capsys.readouterr().err
    assert not lines()


@pytest.mark.parametrize("bar", [progress.QUIET, None])
def test_what_had_no_bar_has_none_for_what_is_short(clock, lines, terminal, capsys, bar):
    with Progress("quick", 300, bar=bar) as rows:
        rows.done(120)
    assert not capsys.readouterr().err
    assert not lines()


def test_disable_tqdm_has_lines_on_a_terminal_too(clock, lines, terminal, capsys):
    with without_bars(), Progress("less", 3) as rows:
        clock.now += 6
        rows.done()
    assert len(lines()) == 2
    assert not capsys.readouterr().err
    assert progress.bars_are_shown()


def test_transformers_own_switch_has_lines_on_a_terminal_too(clock, lines, terminal):
    hf_logging.disable_progress_bar()
    with Progress("less", 3) as rows:
        clock.now += 6
        rows.done()
    assert len(lines()) == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"), (44.4, "44 s"), (59.7, "1 min"), (200, "3 min 20 s"), (3599.6, "1 h"), (3900, "1 h 5 min"),
        (7170, "2 h"), (7200, "2 h"), (100 * 3600, "100 h"),
    ],
)  # fmt: skip
def test_times_are_said_as_people_say_them(seconds, text):
    assert duration(seconds) == text


def test_no_bar_is_drawn_outside_of_the_module():
    found = []
    for file in sorted(PACKAGES.glob("*/src/**/*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            name = node.func if isinstance(node, ast.Call) else None
            called = name.attr if isinstance(name, ast.Attribute) else name.id if isinstance(name, ast.Name) else ""
            if called in ("tqdm", "trange"):
                found.append(file.name)
    assert found == ["progress.py"]


SCRIPT = """
from dataflex.utils import progress
from dataflex.utils.logging import log_to_stderr, logger
from dataflex.utils.progress import Progress
log_to_stderr()
with Progress("less: update 0", bar=None), Progress("less: gradients", 4, bar=0) as rows:
    for _ in range(4):
        rows.done()
    logger.info("a line")
"""


def test_a_real_terminal_shows_a_bar_and_no_line_of_it():
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    slow = SCRIPT.replace("log_to_stderr()\nwith", "log_to_stderr()\nprogress.QUIET = progress.EVERY = 0.0\nwith")
    done = subprocess.run([sys.executable, "-c", slow], stderr=theirs, check=True)
    os.close(theirs)
    text = os.read(ours, 65536).decode()
    os.close(ours)
    assert done.returncode == 0
    assert "less: gradients: 100%" in text
    assert text.count("INFO|dataflex") == 1, text
    assert "a line" in text
