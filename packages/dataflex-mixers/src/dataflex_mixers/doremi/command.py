"""``dataflex-cli doremi``: the three runs of DoReMi, one after the other or one alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from dataflex import hookimpl
from dataflex.cli.commands import Command
from dataflex.config.check import check
from dataflex.config.load import read_config
from dataflex.core.errors import ConfigError, InvalidConfigError, Problem
from dataflex.core.secret_values import is_secret, masked, remember, taken_out, without_secrets
from dataflex.utils.logging import log_to_stderr, logger

from dataflex_mixers.doremi.handover import read_weights
from dataflex_mixers.doremi.steps import STEPS, Pipeline, parse, read_yaml, write_yaml

USAGE = "dataflex-cli doremi FILE [reference|proxy|final] [key=value ...]"
DETAILS = """\
FILE has the sections common, reference, proxy and final, each with keys of a run; key=value overrides a key in all
three. Without a step, all are run in their order: the reference model on the initial mixture, the proxy, whose
weights are written to output_dir/proxy/doremi_weights.json, and the final model on the mixture of these weights. A
step that is finished is passed over, one that was stopped goes on from its last checkpoint. Each step's file is left
in output_dir and can be given to dataflex-cli train."""

Train = Callable[[Path], int]


@hookimpl
def dataflex_cli_commands() -> Mapping[str, Command]:
    """Adds the command."""
    return {"doremi": Command("find a mixture with DoReMi and train on it, in three runs", USAGE, run, DETAILS)}


def run(argv: Sequence[str], train: Train | None = None) -> int:
    """Runs the steps. Returns the exit code of the first that fails, or 0.

    Args:
        argv: The arguments after ``doremi``.
        train: Trains as a file says and returns the exit code; another process of this program unless given.
    """
    if not argv:
        raise ConfigError(f"no file given -> {USAGE}")
    log_to_stderr()
    file, rest = Path(argv[0]), list(argv[1:])
    wanted = [rest.pop(0)] if rest and rest[0] in STEPS else list(STEPS)
    pipeline = _read(file, rest)
    _check(pipeline, file.absolute().parent)
    for step in wanted:
        code = _step(pipeline, step, train or _train)
        if code:
            return code
    return 0


def _read(file: Path, overrides: Sequence[str]) -> Pipeline:
    content = read_config(file)
    given: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip() or key.startswith("-"):
            shown = f"{key}=..." if is_secret(key) else text
            raise ConfigError(f"'{shown}': expected a step ({', '.join(STEPS)}) or key=value -> {USAGE}")
        try:
            given[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"override '{key}': the value is malformed YAML -> quote it") from error
    remember(given)
    return parse(content, given)


def _check(pipeline: Pipeline, folder: Path) -> None:
    """Checks all three runs before the first one starts.

    Raises:
        InvalidConfigError: Every problem, with the step it belongs to.
    """
    write_yaml(pipeline.components_file, masked(pipeline.components()))
    problems: list[Problem] = []
    for step in STEPS:
        try:
            check(pipeline.config(step), folder)
        except InvalidConfigError as error:
            # The first step makes the reference model; the run of the proxy looks at it.
            found = [p for p in error.problems if not p.where.endswith(".reference_model")]
            problems += [Problem(f"{step}: {p.where}", p.what, p.way_out) for p in found]
    if problems:
        raise InvalidConfigError(problems)


def _step(pipeline: Pipeline, step: str, train: Train) -> int:
    if step == "proxy" and not pipeline.finished("reference"):
        raise ConfigError(f"{pipeline.output_dir('reference')} holds no finished reference model -> train it first")
    if step == "final" and not pipeline.finished("proxy"):
        raise ConfigError(f"{pipeline.output_dir('proxy')} holds no finished proxy -> train it first")
    weights = read_weights(pipeline.output_dir("proxy"), pipeline.names) if step == "final" else None
    config, file = pipeline.config(step, weights), pipeline.run_file(step)
    written, secrets = taken_out(config)
    if pipeline.finished(step) and not config.get("overwrite_output_dir"):
        before = read_yaml(file)
        if isinstance(before, dict) and without_secrets(before) == without_secrets(written):
            logger.info("doremi: the step '%s' is finished: %s", step, pipeline.output_dir(step))
            return 0
        raise ConfigError(
            f"the step '{step}' is finished in {pipeline.output_dir(step)}, but not as {file.name} would have it now "
            "-> restore the configuration, use another output_dir, or set overwrite_output_dir=true"
        )
    write_yaml(file, written)
    if weights is not None:
        logger.info("doremi: the mixture is %s", dict(zip(pipeline.names, weights, strict=True)))
    logger.info("doremi: step %d of %d, '%s': %s", STEPS.index(step) + 1, len(STEPS), step, file)
    with _environment(secrets):  # the file leaves them out
        return train(file)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets variables for the processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _train(file: Path) -> int:
    """Trains in a process of its own, so that each run finds the machine as the first one did."""
    return subprocess.run([sys.executable, "-m", "dataflex", "train", str(file)], check=False).returncode
