"""``accelerate launch`` starts scripts that use dynamic(): two processes, one run, one record, and its resumption."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import accelerate_script
import pytest
from dataflex.run.record import read_trace, read_updates
from ranks import HUNG, selections

pytestmark = pytest.mark.slow
# --cpu in place of --multi_gpu starts one process, whatever --num_processes says, unless mpirun has a host file.
LAUNCH = [
    sys.executable,
    "-m",
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


def launched(*arguments):
    """Runs the script on two processes, and returns what it wrote to stderr."""
    command = [*LAUNCH, accelerate_script.__file__, *map(str, arguments)]
    environ = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=HUNG)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folders of the runs that went through, and of those that went on from their second step."""
    whole, later = (tmp_path_factory.mktemp(name) for name in ("whole", "later"))
    launched(whole)
    launched(later, whole)
    return whole, later


@pytest.mark.parametrize("name", accelerate_script.RUNS)
def test_two_processes_of_accelerate_launch_are_one_run_with_one_record(folders, name):
    folder = folders[0] / name
    ranks = [json.loads(file.read_text()) for file in sorted(folder.glob("weights-*.json"))]
    assert [size for size, _ in ranks] == [2, 2], "the launcher started two ranks of one group"
    assert ranks[0] == ranks[1]
    assert sorted({line["step"] for line in read_updates(folder)}) == [1, 2]
    traced = [json.dumps(line, sort_keys=True) for line in read_trace(folder)]
    assert len(traced) == len(set(traced)), "a line that two ranks wrote would stand there twice"
    assert len(selections(folder)) == 3
    assert all(len(rows) == 4 for rows in selections(folder).values()), "two ranks of two rows each"


@pytest.mark.parametrize("name", accelerate_script.RUNS)
def test_a_run_of_accelerate_launch_that_is_resumed_ends_as_the_one_that_was_not_stopped(folders, name):
    whole, later = (folder / name for folder in folders)
    first, second = (sorted(folder.glob("weights-*.json")) for folder in (whole, later))
    assert {file.read_text() for file in second} == {file.read_text() for file in first}
    assert selections(later)["step_00000002.npz"] == selections(whole)["step_00000002.npz"]
    assert not (later / "checkpoint-2").exists(), "it began with the third step"
