"""``dataflex-cli compare``: what runs came to on their evaluation rows; or whether a strategy pays, by runs of its own.

DIR is the output_dir of a run that has ended: the baseline first. Read from the files that the runs left; nothing is
loaded. What makes two runs unlike besides their strategy (steps, data, model, seed) is said below the table.
FILE is a YAML or JSON file that names a base run, arms (keys that differ) and seeds; key=value overrides it. All arms
are trained with all seeds, and random and static controls beside them, one run after the other. A table, a page and a
verdict in words are written to its output_dir. What is finished is kept: the same command goes on where it was
stopped. --dry-run prints the runs with their steps, and trains nothing.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dataflex.core.errors import ConfigError
from dataflex.core.files import CONFIG
from dataflex.run.outcome import ALIKE, Outcome, outcome

SUMMARY = "compare runs by their evaluation losses; or train arms, controls and seeds, and say what pays"
USAGE = "dataflex-cli compare DIR DIR ... | FILE [--dry-run] [key=value ...]"


def run(argv: Sequence[str]) -> int:
    """Prints the table of runs that have ended, or runs a comparison. Returns the exit code."""
    if argv and is_file(next((argument for argument in argv if not argument.startswith("-")), "")):
        from dataflex.cli.compare_file import run as run_file  # here: comparing folders has no use for it

        return run_file(argv)
    if len(argv) < 2 or any(argument.startswith("-") for argument in argv):
        raise ConfigError(f"found {' '.join(argv) or 'nothing'}; expected the folders of two runs or more -> {USAGE}")
    runs = [outcome(folder) for folder in argv]
    sys.stdout.write(table(runs) + "".join(f"{line}\n" for line in unlike(runs)))
    return 0


def is_file(argument: str) -> bool:
    """Returns whether an argument is meant as the file of a comparison."""
    path = Path(argument)
    return path.is_file() or (path.suffix.lower() in (".yaml", ".yml", ".json") and not path.is_dir())


def table(runs: Sequence[Outcome]) -> str:
    """Returns one line per run: its folder, what it trained with, its steps, and each loss of its evaluation."""
    first, *_ = runs
    metrics = [name for name in first.losses if any(name in other.losses for other in runs[1:])]
    if not metrics:
        held = "; ".join(f"{other.folder}: {', '.join(other.losses)}" for other in runs)
        raise ConfigError(f"the runs have no loss in common ({held}) -> evaluate them on the same eval_dataset")
    rows = [["run", "strategy", "steps", *metrics]]
    for number, found in enumerate(runs):
        cells = [_shown(first.losses[name], found.losses.get(name), number == 0) for name in metrics]
        rows.append([str(found.folder), found.strategy, str(found.steps), *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def unlike(runs: Sequence[Outcome]) -> Iterator[str]:
    """Yields one line for each thing, besides the strategy, in which the runs are known to differ."""
    steps = [found.steps for found in runs]
    if len(set(steps)) > 1:
        yield f"unlike: steps are {', '.join(map(str, steps))}"
    configured = [found for found in runs if found.config]
    for key in ALIKE:
        values = [found.config.get(key) for found in configured]
        if len(set(map(_as_written, values))) > 1:
            yield f"unlike: {key} is {' | '.join('not set' if value is None else str(value) for value in values)}"
    unknown = [str(found.folder) for found in runs if not found.config]
    if unknown:
        yield f"not known: whether {', '.join(unknown)} had the same data and settings; no {CONFIG} there"


def _as_written(value: Any) -> float | str:
    """Returns what is equal for equal settings: YAML's ``1e-4`` is a text, and ``0.0001`` a number."""
    try:
        return float(str(value))
    except ValueError:
        return str(value)


def _shown(base: float, value: float | None, is_base: bool) -> str:
    if value is None:
        return "-"
    if is_base or not math.isfinite(value - base):
        return f"{value:.3f}"
    return f"{value:.3f} ({value - base:+.3f})"
