"""The point that takes two processes: one rank and two decide alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dataflex.core.errors import DataflexError
from dataflex.core.kinds import WEIGHTER
from dataflex.testing.call_watch import same
from dataflex.testing.conformance_report import Finding
from dataflex.testing.conformance_shared_runs import Trials
from dataflex.testing.conformance_subject import Subject
from dataflex.testing.conformance_trial import Outcome, run
from dataflex.testing.rank_processes import RankError, two_ranks

POINT = "ranks agree"
CLOSE = 1e-4
"""Relative difference that two orders of adding up may make in a loss or a share."""


def on_rank(subject: Subject, folder: Path) -> Outcome | str:
    """Returns what came of the run on this rank, or the error that ended it."""
    try:
        return run(subject, folder, ranks=2)
    except DataflexError as error:
        return str(error)


def ranks_point(trials: Trials) -> Finding:
    """Two ranks end with the same weights, and decide what one rank decides on the same rows of each step."""
    if trials.failed:
        return Finding(POINT, note="not looked at, as the run on one rank did not come to its end")
    try:
        first, second = two_ranks(on_rank, trials.subject, trials.folder("ranks"))
    except RankError as error:
        return Finding(POINT, (f"the run on two ranks ended:\n{error}",))
    except TypeError as error:
        return Finding(POINT, (str(error),))
    if not isinstance(first, Outcome) or not isinstance(second, Outcome):
        said = next(each for each in (first, second) if not isinstance(each, Outcome))
        return Finding(POINT, (f"the run on two ranks ended: {said}",))
    wrong = [f"rank 1: {what}" for what in second.changed]
    weights = [name for name, value in first.end.items() if not same(value, second.end[name])]
    if weights:
        wrong.append(f"the two ranks end with other numbers: {weights[0]}")
    if not same(first.state, second.state):
        wrong.append("the two ranks remember other things -> keep per rank nothing, or gather it")
    different = _against_one(trials.whole, first)
    if different and trials.subject.kind is WEIGHTER:
        different = _together(trials, first) and different
    return Finding(POINT, (*wrong, *different))


def _together(trials: Trials, two: Outcome) -> list[str]:
    """Returns what differs where the micro-batches of all ranks are one on one rank: it may compare their samples."""
    return _against_one(run(trials.subject, trials.folder("together"), accumulation=1), two)


def _against_one(one: Outcome, two: Outcome) -> list[str]:
    """Returns what two ranks decided otherwise than one."""
    wrong = []
    for name, arrays in one.segments.items():
        other = two.segments.get(name)
        if other is None or not np.array_equal(np.sort(arrays["indices"]), np.sort(other["indices"])):
            wrong.append(f"on two ranks it chose other rows than on one, {name} -> go by all rows, not by a rank's own")
            break
    for line, other_line in zip(one.lines, two.lines, strict=False):
        if line["kind"] == "mix" and not _close(line["proportions"], other_line.get("proportions")):
            wrong.append(f"on two ranks it set other shares than on one, at step {line['step']}")
            break
    if len(one.losses) != len(two.losses) or not np.allclose(one.losses, two.losses, rtol=CLOSE * 10, atol=CLOSE):
        wrong.append(f"on two ranks the losses are {two.losses}, on one {one.losses}")
    return wrong


def _close(shares: dict[str, float], others: dict[str, float] | None) -> bool:
    return others is not None and np.allclose(list(shares.values()), list(others.values()), rtol=CLOSE, atol=CLOSE)
