"""Signals to ``dataflex-cli`` where it waits for another program: nothing of that program outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from dataflex.core.errors import ConfigError
from dataflex.launch.supervised import Programs, stop_seconds, supervised

LATE = """
import sys
from dataflex.launch.supervised import supervised
ignores = "import os, signal; signal.signal(signal.SIGINT, signal.SIG_IGN); os.kill(os.getppid(), signal.SIGINT)"
sys.exit(supervised([sys.executable, "-c", ignores], more_follows=sys.argv[1] == "more"))
"""

CLI = """
import sys
from dataflex.launch.supervised import supervised, pass_on
from dataflex.launch.torchrun import _to_ranks
sys.exit(supervised([sys.executable, sys.argv[1], *sys.argv[2:]], to=_to_ranks if "direct" in sys.argv else pass_on))
"""

# Stands for torchrun: its rank is in a session of its own, and gets the signals that come here.
TORCHRUN = """
import os, signal, subprocess, sys
rank = subprocess.Popen([sys.executable, sys.argv[1], *sys.argv[2:], "dataflex"], start_new_session=True)
def ended(number, frame):
    if "direct" in sys.argv:
        os.write(1, b"torchrun was signalled")
    rank.send_signal(number)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, ended)
sys.exit(1 if rank.wait() else 0)
"""

RANK = """
import os, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
def told(number, frame):
    (folder / "told").write_text(signal.Signals(number).name)
    if "saves" in sys.argv:
        time.sleep(0.3)
        (folder / "saved").touch()
    if "deaf" not in sys.argv:
        os._exit(0 if "done" in sys.argv else 143)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, told)
(folder / "rank").write_text(str(os.getpid()))
while True:
    time.sleep(0.05)
"""


class Started:
    """A command line that waits for its rank."""

    def __init__(self, folder: Path, *how: str, **environ: str) -> None:
        for name, text in (("cli.py", CLI), ("torchrun.py", TORCHRUN), ("rank.py", RANK)):
            (folder / name).write_text(text)
        command = [sys.executable, "cli.py", "torchrun.py", "rank.py", str(folder), *how]
        self.cli = subprocess.Popen(
            command, cwd=folder, env=os.environ | environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.folder = folder
        while not (folder / "rank").exists() or not (folder / "rank").read_text():
            assert self.cli.poll() is None
            time.sleep(0.02)
        self.everyone = psutil.Process(self.cli.pid).children(recursive=True)

    def ended(self) -> tuple[int, str]:
        """Returns the exit code and what was said; no process may be left."""
        out, err = self.cli.communicate(timeout=30)
        _, left = psutil.wait_procs(self.everyone, timeout=5)
        for process in left:
            process.kill()
        assert len(self.everyone) == 2
        assert left == []
        return self.cli.returncode, out + err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_command_line_alone_reaches_the_ranks_and_nothing_is_left(number, tmp_path):
    started = Started(tmp_path, "saves")
    started.cli.send_signal(number)
    code, said = started.ended()
    assert code == 128 + number
    assert (tmp_path / "told").read_text() == number.name
    assert (tmp_path / "saved").exists()  # it was waited for
    assert f"{number.name}: passed on" in said


def test_sigterm_to_ranks_that_save_does_not_go_through_torchrun_which_would_kill_them_in_30_seconds(tmp_path):
    started = Started(tmp_path, "saves", "direct")
    started.cli.send_signal(signal.SIGTERM)
    code, said = started.ended()
    assert code == 143
    assert (tmp_path / "saved").exists()
    assert "torchrun was signalled" not in said


def test_a_run_that_ends_as_if_nothing_had_been_is_a_success(tmp_path):
    started = Started(tmp_path, "done")
    started.cli.send_signal(signal.SIGTERM)
    assert started.ended()[0] == 0


def test_what_does_not_end_in_time_is_killed_with_its_ranks(tmp_path):
    started = Started(tmp_path, "deaf", DATAFLEX_STOP_SECONDS="0.5")
    started.cli.send_signal(signal.SIGTERM)
    assert started.ended()[0] == 143


def test_a_second_signal_kills_the_group(tmp_path):
    started = Started(tmp_path, "deaf")
    started.cli.send_signal(signal.SIGINT)
    time.sleep(1.1)
    started.cli.send_signal(signal.SIGINT)
    assert started.ended()[0] == 130


def test_the_exit_code_is_the_programs_and_a_signal_that_ended_it_is_one_as_in_a_shell():
    for code, text in ((0, ""), (7, "raise SystemExit(7)"), (137, "import os; os.kill(os.getpid(), 9)")):
        assert supervised([sys.executable, "-c", text]) == code


def test_a_signal_that_is_ignored_stays_ignored_and_the_others_get_their_handlers_back():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        code = "import os, signal; os.kill(os.getppid(), signal.SIGHUP)"
        assert supervised([sys.executable, "-c", code]) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf", ""])
def test_a_time_to_stop_that_is_no_number_is_refused(text):
    with pytest.raises(ConfigError, match=r"DATAFLEX_STOP_SECONDS: found .* allowed: a number of seconds, 0 or more"):
        stop_seconds({"DATAFLEX_STOP_SECONDS": text})


def test_a_rank_stops_where_the_process_that_started_its_launcher_is_killed(tmp_path):
    """Killed by SIGKILL, as by the system when memory runs out, the command line can pass nothing on."""
    code = "import os, time; from dataflex.launch.supervised import Launcher\n"
    code += "Launcher(int(os.environ['PID'])).follow(0.05); print('up', flush=True); time.sleep(60)"
    launcher = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    environ = os.environ | {"PID": str(launcher.pid)}
    rank = subprocess.Popen([sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert rank.stdout.readline() == b"up\n"
    launcher.kill()  # and not waited for: it stays a zombie
    _, said = rank.communicate(timeout=30)
    launcher.wait()
    assert rank.returncode == -signal.SIGTERM
    assert b"the process that started this run is gone" in said


def test_a_run_that_another_command_trains_stops_where_that_command_is_killed(tmp_path):
    child = "import os, time; from dataflex.launch import torchrun\n"
    child += "torchrun.follow_launcher(); print(os.getpid(), flush=True); time.sleep(60)"
    code = "import sys; from dataflex.launch import supervised, torchrun\n"
    code += f"supervised.supervised([sys.executable, '-c', {child!r}], torchrun.followed())"
    command = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    training = psutil.Process(int(command.stdout.readline()))
    command.kill()
    command.wait()
    end = time.monotonic() + 20
    while training.is_running() and training.status() != psutil.STATUS_ZOMBIE and time.monotonic() < end:
        time.sleep(0.05)
    assert time.monotonic() < end
    command.stdout.close()


@pytest.mark.parametrize(("follows", "code"), [("more", 130), ("last", 0)])
def test_a_signal_to_a_program_at_its_end_keeps_the_next_one_from_starting(tmp_path, follows, code):
    (tmp_path / "late.py").write_text(LATE)
    ended = subprocess.run([sys.executable, "late.py", follows], cwd=tmp_path, capture_output=True, check=False)
    assert ended.returncode == code, ended.stderr


WAITS = """
import signal, sys, time
from pathlib import Path
def told(number, frame):
    Path(sys.argv[1]).write_text(signal.Signals(number).name)
    sys.exit(3)
signal.signal(signal.SIGTERM, told)
Path(sys.argv[1]).touch()
while True:
    time.sleep(0.02)
"""


def test_a_signal_goes_on_to_every_program_that_runs_and_none_is_started_after_it(tmp_path):
    marks = [tmp_path / name for name in "ab"]
    programs = Programs()

    def stop_once_all_run():
        while not all(mark.exists() for mark in marks):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_once_all_run).start()
    with programs.listening(), ThreadPoolExecutor(2) as pool:
        codes = list(pool.map(lambda mark: programs.run([sys.executable, "-c", WAITS, str(mark)]), marks))
    assert codes == [143, 143]
    assert [mark.read_text() for mark in marks] == ["SIGTERM", "SIGTERM"]
    late = tmp_path / "late"
    assert programs.run([sys.executable, "-c", WAITS, str(late)]) == 143
    assert not late.exists()


def test_programs_end_with_their_own_codes_where_no_signal_comes():
    programs = Programs()
    with programs.listening(), ThreadPoolExecutor(3) as pool:
        ends = [f"raise SystemExit({code})" for code in (0, 7)] + ["import os; os.kill(os.getpid(), 9)"]
        codes = list(pool.map(lambda text: programs.run([sys.executable, "-c", text]), ends))
    assert codes == [0, 7, 137]
    assert programs.number is None
