"""A few kills of ``kill.py``, so that every run of the tests has some; ``nox -s faults`` does the rest."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path


def test_killed_runs_end_as_if_they_had_never_been_stopped():
    command = [sys.executable, str(Path(__file__).with_name("kill.py")), "--kills", "6", "--writes", "2", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    last = done.stdout.splitlines()[-1]
    killed, writing, resumed, identical = map(
        int, re.match(r"killed (\d+), during a checkpoint write (\d+), resumed (\d+), identical (\d+) ", last).groups()
    )
    assert killed == resumed == identical >= 6
    assert writing >= 2
