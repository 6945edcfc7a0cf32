"""``dataflex-cli compare FILE``: trains arms, controls and seeds, and says what pays. :mod:`dataflex.cli.compare`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from dataflex.core.errors import ConfigError
from dataflex.experiments.arm_steps import steps_in_words
from dataflex.experiments.comparing import Ran, StoppedComparisonError, Train, compare, runs_of
from dataflex.experiments.comparison_files import MARKDOWN, text, write, write_page
from dataflex.experiments.equal_arms import with_equal_compute
from dataflex.experiments.experiment_arms import Arm, arms_of
from dataflex.experiments.experiment_file import Experiment, read_experiment
from dataflex.experiments.planned_runs import PlannedRun
from dataflex.experiments.run_figures import START, lower_is_better
from dataflex.launch import torchrun
from dataflex.launch.logged_run import run_logged
from dataflex.launch.packages import require_llamafactory, require_working_packages
from dataflex.utils.logging import log_to_stderr, logger

USAGE = "dataflex-cli compare FILE [--dry-run] [key=value ...]"
DRY_RUN = "--dry-run"


def run(argv: Sequence[str], train: Train | None = None) -> int:
    """Runs a comparison. Returns the exit code: 1 where a run failed.

    Args:
        argv: The file, and key=value over its keys.
        train: Trains a run; another process of this program unless given.
    """
    dry = DRY_RUN in argv
    file, *overrides = [argument for argument in argv if argument != DRY_RUN]
    unknown = [argument for argument in argv if argument.startswith("-") and argument != DRY_RUN]
    if unknown:
        raise ConfigError(f"unexpected argument '{unknown[0]}' -> {USAGE}")
    if not dry:
        require_llamafactory("compare FILE")
    if torchrun.is_worker():
        raise ConfigError(
            "compare starts the ranks of its runs itself -> call it without torchrun, and set jobs: RANKS"
        )
    log_to_stderr()
    experiment = read_experiment(file, overrides)
    for metric, said in experiment.metrics.items():
        lower_is_better(metric, said)
    arms = with_equal_compute(experiment, arms_of(experiment))
    if dry:
        sys.stdout.write(listing(experiment, arms))
        return 0
    require_working_packages()
    return _run(experiment, arms, train or _trainer(experiment))


def _run(experiment: Experiment, arms: Sequence[Arm], train: Train) -> int:
    from dataflex.run.lock import locked  # here: it imports torch, and a dry run has no use for it

    logger.info("%s", in_words(experiment, arms))
    experiment.output_dir.mkdir(parents=True, exist_ok=True)
    with locked(experiment.output_dir):
        try:
            ran = compare(experiment, arms, train)
        except StoppedComparisonError as stopped:
            logger.info("stopped; what is finished is kept, and the same command goes on")
            return stopped.code
        return _finish(experiment, ran)


def _finish(experiment: Experiment, ran: Ran) -> int:
    from dataflex.experiments.verdicts import comparison  # here: it needs NumPy, and help does not

    if not ran.figures:
        failed = ", ".join(f"{arm}, seed {seed}" for arm, seed in ran.failed)
        sys.stderr.write(f"error: no run came to its end ({failed}) -> read the logs in {experiment.output_dir}\n")
        return 1
    found = comparison(experiment, ran)
    write(experiment.output_dir, found)
    sys.stdout.write(text(found))
    sys.stdout.write(f"{experiment.output_dir / MARKDOWN}\n")
    sys.stdout.write(f"{write_page(experiment.output_dir, found)}\n")
    return 1 if ran.failed else 0


def in_words(experiment: Experiment, arms: Sequence[Arm]) -> str:
    """Returns what a comparison will do, in a line."""
    pairs = ", ".join(f"{arm.name} with {arm.against}" for arm in arms if arm.against and not arm.control)
    count, seeds = len(arms) * len(experiment.seeds), len(experiment.seeds)
    of = f"{len(arms)} arms with {seeds} seed{'' if seeds == 1 else 's'} each, equal {experiment.equal}"
    return f"{count} runs: {of}; compared: {pairs or 'nothing'}"


def listing(experiment: Experiment, arms: Sequence[Arm]) -> str:
    """Returns the runs with their steps, one a line, and how far each is."""
    rows = [["run", "steps", "compared with", "state", "folder"]]
    for run in runs_of(experiment, arms):
        state = "to be measured" if experiment.equal == "tokens" and not run.folder.exists() else run.state()
        against = run.arm.against or "-"
        rows.append([run.name, steps_in_words(run.arm.spec), against, state, str(run.folder)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    lengths = [f"{arm.name}: {arm.length}" for arm in arms if arm.length]
    return "".join(f"{line}\n" for line in (in_words(experiment, arms), *lines, *lengths))


def _trainer(experiment: Experiment) -> Train:
    """Returns what trains a run in a process of its own, so that each finds the machine as the first one did."""
    ranks = {} if experiment.jobs is None else {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": str(experiment.jobs)}

    def train(run: PlannedRun, overrides: Sequence[str], environ: Mapping[str, str]) -> int:
        heading = f"{START}: {datetime.now(UTC).isoformat(timespec='seconds')} {' '.join(overrides)}".rstrip()
        return run_logged(overrides, run.file, run.log, heading, {**environ, **ranks})

    return train
