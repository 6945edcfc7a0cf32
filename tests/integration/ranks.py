"""Starts :mod:`rank_run` on a number of ranks and reads what they left behind."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import Engine
from rank_run import Job

HUNG = 300  # seconds; a guard against a hang, far above what any run here takes


@dataclasses.dataclass
class Launch:
    """What a launcher left: its exit code and everything the ranks wrote to stderr."""

    code: int
    stderr: str


def torchrun(folder: Path, jobs: list[Job], ranks: int, **environ: str) -> Launch:
    """Runs the jobs, one after the other, in one group of ranks. A run that hangs fails by the time limit."""
    file = folder / f"jobs-{ranks}.json"
    file.write_text(json.dumps([dataclasses.asdict(job) for job in jobs]))
    script = Path(__file__).parent / "rank_run.py"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    environ = os.environ | {"OMP_NUM_THREADS": "1"} | environ
    done = subprocess.run(
        [*launcher, str(script), str(file)], env=environ, capture_output=True, text=True, check=False, timeout=HUNG
    )
    return Launch(done.returncode, done.stderr)


def answers(out: str | Path) -> list[dict[str, Any]]:
    """Returns what each rank of a run wrote, by rank."""
    return [json.loads(path.read_text()) for path in sorted(Path(out).glob("rank-*.json"))]


def stream(found: list[dict[str, Any]]) -> list[int]:
    """Returns the rows in the order in which the ranks together went through them."""
    batches = zip(*(answer["seen"] for answer in found), strict=True)
    return [row for batch in batches for part in batch for row in part]


def selections(out: str | Path) -> dict[str, list[int]]:
    """Returns the planned rows of each segment, by file."""
    files = sorted((Path(out) / "dataflex_selections").glob("*.npz"))
    return {path.name: np.load(path)["indices"].tolist() for path in files}


def skip_without(engine: Engine) -> None:
    """Skips a test where the package that an engine comes from is not installed, or too old."""
    if engine.needs:
        pytest.importorskip(engine.needs, engine.least, reason=f"needs {engine.needs} {engine.least or ''}")
