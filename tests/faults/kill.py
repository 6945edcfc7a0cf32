"""Kills short runs with SIGKILL at random moments, resumes them, and compares how they end with runs left alone.

    python tests/faults/kill.py [--kills 50] [--writes 10] [--seed 0]

Some kills wait for a checkpoint that is being written or for an old one that is being deleted; the others strike at any
moment: before the first step, inside of a step, while rows are scored, after the last step. A run is killed up to
three times, then left to end. Weights, optimizer, losses, trace and selections must equal, bit for bit, those of the
same run that was never stopped. Exits with 1 if one differs, or if too few kills hit a checkpoint that was being
written.

The libraries are imported once; every attempt is a forked child, so that a kill costs less than a second.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: its threads would not survive a fork
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["HF_HUB_OFFLINE"] = "1"

import training
from dataflex.core.files import COMPLETE
from dataflex.run.checkpoints import all_checkpoints, newest_complete, step_of

RUNS = [(train_type, accumulation) for train_type in training.KINDS for accumulation in (1, 4)]
KILLS_PER_RUN = 3
EARLIER = "killed_earlier"  # put into a torn folder, so that the next kill does not count it again
Moment = Callable[[Path, float], bool]


@dataclass
class Tally:
    """What has happened so far."""

    killed: int = 0
    writing: int = 0
    deleting: int = 0
    resumed: int = 0
    anew: int = 0
    identical: int = 0


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50, help="kills at least")
    parser.add_argument("--writes", type=int, default=10, help="of these, while a checkpoint was written, at least")
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args()
    print(f"seed {wanted.seed}", flush=True)
    rng, tally, begun = random.Random(wanted.seed), Tally(), time.monotonic()
    expected: dict[tuple[str, int], tuple[dict[str, str], float]] = {}
    for number in range(10 * wanted.kills):
        if tally.killed >= wanted.kills and tally.writing >= wanted.writes:
            break
        run = RUNS[number % len(RUNS)]
        if run not in expected:
            expected[run] = left_alone(*run)
        kill_and_resume(number, run, *expected[run], rng, tally)
    minutes = (time.monotonic() - begun) / 60
    print(f"{tally.anew} of the resumed had no complete checkpoint yet; {tally.deleting} kills hit a deletion")
    print(
        f"killed {tally.killed}, during a checkpoint write {tally.writing}, resumed {tally.resumed}, "
        f"identical {tally.identical} ({minutes:.1f} min)"
    )
    enough = tally.killed >= wanted.kills and tally.writing >= wanted.writes
    return 0 if enough and tally.identical == tally.resumed == tally.killed else 1


def left_alone(train_type: str, accumulation: int) -> tuple[dict[str, str], float]:
    """Returns the digest of the run that nobody stops, and the seconds it took."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        ended = attempt(Path(folder), train_type, accumulation, lambda output_dir, seconds: False)
    assert ended is not None
    return ended, time.monotonic() - begun


def kill_and_resume(
    number: int, run: tuple[str, int], expected: dict[str, str], seconds: float, rng: random.Random, tally: Tally
) -> None:
    """Kills a run a few times, lets it end, and compares it."""
    train_type, accumulation = run
    with tempfile.TemporaryDirectory() as folder:
        output_dir, kills = Path(folder) / "run", 0
        for strike in range(KILLS_PER_RUN + 1):
            moment = _moment(seconds, rng) if strike < KILLS_PER_RUN else lambda *_: False
            ended = attempt(Path(folder), train_type, accumulation, moment)
            if ended is not None:
                break
            kills += 1
            tally.killed += 1
            found = _left_behind(output_dir, tally)
            print(f"kill {tally.killed:3}  run {number} ({train_type} x{accumulation}): {found}", flush=True)
    tally.resumed += kills
    differing = [key for key in expected if ended is None or ended[key] != expected[key]]
    tally.identical += 0 if differing else kills
    if differing:
        print(f"run {number}: DIFFERENT in {', '.join(differing)}", flush=True)


def attempt(folder: Path, train_type: str, accumulation: int, moment: Moment) -> dict[str, str] | None:
    """Trains in a child until it ends or until ``moment(output_dir, seconds since the start)``; then kills it.

    Returns:
        The digest of a run that ended, or None where it was killed.
    """
    answer, log, output_dir = folder / "digest.json", folder / "log", folder / "run"
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _child(answer, log, lambda: training.train(train_type, accumulation, output_dir))
    begun = time.monotonic()
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if moment(output_dir, time.monotonic() - begun):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.0005)
    if not answer.exists():
        raise SystemExit(f"{train_type} failed by itself:\n{log.read_text()[-3000:]}")
    return dict(json.loads(answer.read_text()))


def _child(answer: Path, log: Path, work: Callable[[], dict[str, str]]) -> None:
    """Writes what ``work`` returns, and never comes back."""
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        answer.write_text(json.dumps(work()))
    finally:
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _moment(seconds: float, rng: random.Random) -> Moment:
    """Returns when to strike: at a random time, or while a checkpoint is being written or an old one deleted."""
    kind = rng.choice(("any", "any", "writing", "writing", "deleting"))
    at, nth, delay = rng.uniform(0, seconds), rng.randint(1, 5), rng.uniform(0, 0.03)
    seen: list[Path] = []

    def deleting(output_dir: Path, now: float) -> bool:
        standing = all_checkpoints(output_dir)
        return any(map(_torn, standing[:-1]))

    def writing(output_dir: Path, now: float) -> bool:
        last = all_checkpoints(output_dir)[-1:]
        if not last or not _torn(last[0]):
            return False
        if last[0] not in seen:
            seen.append(last[0])
        if len(seen) < nth:
            return False
        time.sleep(delay)
        return True

    return {"any": lambda output_dir, now: now >= at, "writing": writing, "deleting": deleting}[kind]


def _torn(checkpoint: Path) -> bool:
    """Whether a checkpoint is half there, and not since an earlier kill."""
    return checkpoint.exists() and not (checkpoint / COMPLETE).exists() and not (checkpoint / EARLIER).exists()


def _left_behind(output_dir: Path, tally: Tally) -> str:
    """Counts and tells in which state a kill left the checkpoints."""
    standing, newest = all_checkpoints(output_dir), newest_complete(output_dir)
    torn = [path for path in standing if _torn(path)]
    written = [path for path in torn if newest is None or step_of(path) > step_of(newest)]
    tally.writing += bool(written)
    tally.deleting += len(torn) > len(written)
    tally.anew += newest is None
    for path in torn:
        (path / EARLIER).touch()
    doing = "".join(f"{path.name} half {'written' if path in written else 'deleted'}, " for path in torn)
    return f"{doing}resumes from {Path(newest).name if newest else 'the beginning'}"


if __name__ == "__main__":
    sys.exit(main())
