"""One run at a time in a folder."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys

import pytest
from dataflex.core.errors import ConfigError
from dataflex.core.files import LOCK
from dataflex.run import lock
from dataflex.run.lock import locked, require_unlocked

HOLDS = """
import sys, time
from dataflex.run.lock import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock of the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE)
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_the_lock_says_who_holds_it_and_is_gone_afterwards_however_it_ends(tmp_path):
    def trains():
        with locked(tmp_path):
            said = json.loads((tmp_path / LOCK).read_text())
            assert said["process"] == os.getpid()
            assert said["host"]
            assert said["since"].endswith(" UTC")
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="memory"):
        trains()
    assert list(tmp_path.iterdir()) == []


def test_one_process_may_hold_it_several_times_over(tmp_path):
    with locked(tmp_path):
        with locked(tmp_path):
            require_unlocked(tmp_path)
        assert (tmp_path / LOCK).exists()
    assert not (tmp_path / LOCK).exists()


def test_another_process_is_refused_and_told_by_whom(tmp_path, other):
    message = rf"^output_dir: {tmp_path} is in use by another run: process {other.pid} on host \S+ has been writing"
    with pytest.raises(ConfigError, match=message), locked(tmp_path):
        pass
    with pytest.raises(ConfigError, match=message):
        require_unlocked(tmp_path)
    assert json.loads((tmp_path / LOCK).read_text())["process"] == other.pid


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, other, caplog):
    caplog.set_level("INFO", "dataflex")
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    require_unlocked(tmp_path)
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()
    assert f"{tmp_path / LOCK} is of process {other.pid}, which has ended: taken over" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_lock_whose_process_number_was_given_to_another_process_is_taken_over(tmp_path):
    with locked(tmp_path):
        said = json.loads((tmp_path / LOCK).read_text())
    (tmp_path / LOCK).write_text(json.dumps(said | {"began": "1"}))
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"namespace": "pid:[1]"}, {"process": "x"}])
def test_a_lock_that_nothing_is_known_of_is_refused_with_the_file_to_delete(tmp_path, change):
    with locked(tmp_path):
        said = json.loads((tmp_path / LOCK).read_text())
    (tmp_path / LOCK).write_text(json.dumps(said | {"process": 2**22 + 1} | change))
    with pytest.raises(ConfigError, match=rf"delete {tmp_path / LOCK}$"), locked(tmp_path):
        pass
    (tmp_path / LOCK).write_text("")
    with pytest.raises(ConfigError, match=rf"cannot be read is there -> .*delete {tmp_path / LOCK}$"):
        require_unlocked(tmp_path)


def test_a_lock_that_was_taken_over_by_another_run_is_not_removed(tmp_path):
    with locked(tmp_path):
        said = json.loads((tmp_path / LOCK).read_text())
        (tmp_path / LOCK).write_text(json.dumps(said | {"host": "elsewhere"}))
    assert json.loads((tmp_path / LOCK).read_text())["host"] == "elsewhere"


def test_the_beginning_of_a_process_is_known_without_proc_too(monkeypatch):
    monkeypatch.setattr(lock.Path, "exists", lambda path: False)
    assert lock._beginning(os.getpid())
    assert not lock._beginning(2**22 + 1)


def test_two_containers_with_one_host_name_do_not_take_over_each_others_lock(tmp_path, monkeypatch):
    with locked(tmp_path):
        said = (tmp_path / LOCK).read_text()
    monkeypatch.setattr(lock, "_namespace", lambda: "pid:[1]")
    (tmp_path / LOCK).write_text(json.dumps(json.loads(said) | {"process": 2**22 + 1}))  # nobody's, seen from here
    with pytest.raises(ConfigError, match="in use by another run"), locked(tmp_path):
        pass
    assert (tmp_path / LOCK).exists()


def test_a_lock_that_could_not_be_written_leaves_nothing_behind(tmp_path):
    program = (
        "import resource, signal, sys\n"
        "from dataflex.run.lock import locked\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"  # as on a disk that is full after ten bytes
        "with locked(sys.argv[1]): pass\n"
    )
    failed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "File too large" in failed.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_links_is_locked_too(tmp_path, monkeypatch):
    def no_links(*args):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(lock.os, "link", no_links)
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()
        with pytest.raises(FileExistsError):
            lock._write(tmp_path / LOCK, "x")
    assert list(tmp_path.iterdir()) == []
