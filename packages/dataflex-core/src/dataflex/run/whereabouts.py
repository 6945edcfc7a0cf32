"""The last line of a run: what happened, where its record is, and how to look at it. Also after an error.

    finished: 60 steps, 5 updates, 67 % of the time deciding (3.3 of 4.9 s), 412 of 1,000 rows seen, loss 3.47,
    eval_loss 4.83; the record is in saves/less -> dataflex-cli report saves/less

It is made from the record itself, and says less where that has less.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dataflex.core.files import CONFIG, METRICS, RUN, SELECTIONS
from dataflex.run.record import read_trace
from dataflex.run.rows_seen import rows_seen
from dataflex.utils.logging import logger

TAIL = 2**18
"""Bytes of the metrics that are looked at for the last losses."""
LOSSES = 4
"""Losses that the line names at most."""

_Standing = tuple[int, int] | None


@contextmanager
def saying_where(output_dir: Any) -> Iterator[None]:
    """Logs, when the block is left in whatever way, what became of the run that began in it, and where its record is.

    A run that was refused before training began has no record, and what another run has left in the folder is not its
    own: every run writes its configuration anew when training begins, and by that the two are told apart. Heard on rank
    0 alone, like every line of the log.

    Args:
        output_dir: The run's folder, as it is written in the configuration.
    """
    if not isinstance(output_dir, str) or not output_dir:
        yield
        return
    folder = Path(output_dir).absolute()
    before, failed = _standing(folder), True
    try:
        yield
        failed = False
    finally:
        after = _standing(folder)
        if after is not None and after != before:
            found = "; ".join(filter(None, [_happened(folder, failed), f"the record is in {folder}"]))
            logger.info("%s -> dataflex-cli report %s", found, shlex.quote(output_dir))


def _standing(folder: Path) -> _Standing:
    """Returns what tells one writing of the configuration from another; None where there is none."""
    try:
        found = (folder / CONFIG).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _happened(folder: Path, failed: bool) -> str:
    """Returns what the record says of the run, in words."""
    facts = _facts(folder)
    status = facts.get("status") if facts.get("status") in ("finished", "stopped", "failed") else None
    parts = [*_steps(folder, facts), *_time(facts), *_rows(folder, facts), *_losses(folder)]
    begin = status or ("ended early" if failed else "ended")
    return f"{begin}: {', '.join(parts)}" if parts else begin


def _facts(folder: Path) -> Mapping[str, Any]:
    """Returns what the run noted of itself; nothing where it noted nothing that can be read."""
    try:
        found = json.loads((folder / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _steps(folder: Path, facts: Mapping[str, Any]) -> Iterator[str]:
    step, total = facts.get("step"), facts.get("total_steps")
    if isinstance(step, int):
        yield f"{step:,} of {total:,} steps" if isinstance(total, int) and total != step else f"{step:,} steps"
    done = len({line["update"] for line in read_trace(folder) if isinstance(line.get("update"), int)})
    planned = facts.get("updates")
    if isinstance(planned, int) and planned > done and facts.get("status") != "finished":
        yield f"{done:,} of {planned:,} updates"
    elif done:
        yield "1 update" if done == 1 else f"{done:,} updates"


def _time(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yields the share of the time that went into deciding; nothing where nothing decides."""
    found = facts.get("seconds")
    seconds = [value for value in found.values() if isinstance(value, int | float)] if isinstance(found, dict) else []
    whole, deciding = sum(seconds), found.get("deciding") if isinstance(found, dict) else None
    if whole > 0 and isinstance(deciding, int | float) and deciding > 0:
        yield f"{100 * deciding / whole:.0f} % of the time deciding ({deciding:,.1f} of {whole:,.1f} s)"
    elif whole > 0:
        yield f"{whole:,.1f} s"


def _rows(folder: Path, facts: Mapping[str, Any]) -> Iterator[str]:
    """Yields how many different rows were trained on."""
    step, batch, rows = facts.get("step"), facts.get("batch"), facts.get("rows")
    if not isinstance(step, int) or not isinstance(batch, int):
        return
    seen = rows_seen(folder / SELECTIONS, step, batch)
    if seen is not None:
        yield f"{seen:,} of {rows:,} rows seen" if isinstance(rows, int) else f"{seen:,} rows seen"


def _losses(folder: Path) -> Iterator[str]:
    """Yields the last training loss and the last loss of each evaluation."""
    last: dict[str, float] = {}
    for line in _last_metrics(folder / METRICS):
        for name, value in line.items():
            of_evaluation = name.startswith("eval_") and name.endswith("loss")
            if (name == "loss" or of_evaluation) and isinstance(value, int | float):
                last[name] = value
    yield from (f"{name} {value:.4g}" for name, value in list(last.items())[:LOSSES])


def _last_metrics(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yields the last lines of the metrics, in their order."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            lines = file.read().split(b"\n")
    except OSError:
        return
    for text in lines:
        try:
            line = json.loads(text)
        except ValueError:  # the first may have been cut, and a crash may have cut the last
            continue
        if isinstance(line, dict):
            yield line
