"""``dataflex-cli doremi``: the three runs of DoReMi, one after the other or one alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from dataflex import hookimpl
from dataflex.config.check import check
from dataflex.config.load import read_config
from dataflex.config.null_values import without_unset
from dataflex.config.overrides import parse_override
from dataflex.config.resolved import recorded_run
from dataflex.core.errors import ConfigError, InvalidConfigError, Problem, listed
from dataflex.core.hookspecs import Command
from dataflex.core.verbosity import QUIET, asked, without_flag
from dataflex.launch import torchrun
from dataflex.launch.packages import require_llamafactory
from dataflex.launch.supervised import supervised
from dataflex.utils.logging import log_to_stderr, logger
from dataflex.utils.secret_values import masked, remember, taken_out, without_secrets

from dataflex_mixers.doremi.handover import read_weights, reference_of
from dataflex_mixers.doremi.rounds import run_rounds
from dataflex_mixers.doremi.three_runs import COMMON, PARAMS, STEPS, Pipeline, parse, read_yaml, write_yaml

USAGE = "dataflex-cli doremi FILE [reference|proxy|final] [--overwrite] [--quiet] [key=value ...]"
OVERWRITE = "--overwrite"
_THEIRS = "overwrite_output_dir"
DETAILS = """\
FILE has the sections common, reference, proxy and final, each with keys of a run; key=value overrides a key in all
three. Without a step, all are run in their order: the reference model on the initial mixture, the proxy, whose
weights are written to output_dir/proxy/doremi_weights.json, and the final model on the mixture of these weights. With
rounds: N, reference and proxy are trained N times, each reference on the mixture of the round before, until no weight
moves by 0.001 (output_dir/round-1, round-2, ...); the final model is trained once. A
step that is finished is passed over, one that was stopped goes on from its last checkpoint. --overwrite trains the
steps anew in place of both; overwrite_output_dir, which would do so at each start, is left out with a warning. Each
step's file is left in output_dir and can be given to dataflex-cli train. --quiet is as for train.
dataflex-cli validate FILE says what is wrong with any of the three; dataflex-cli plan takes a step's file."""

Train = Callable[..., int]


@hookimpl
def dataflex_cli_commands() -> Mapping[str, Command]:
    """Adds the command."""
    summary = "find a mixture with DoReMi and train on it, in three runs"
    return {"doremi": Command(summary, USAGE, run, DETAILS, owns=owns, validate=validate, plan=plan)}


def owns(content: Mapping[str, Any]) -> bool:
    """Returns whether the content of a file is one of this command: it has sections, some perhaps misspelt."""
    return len(content.keys() & {COMMON, *STEPS}) > 1


def validate(argv: Sequence[str]) -> int:
    """Prints what the three runs would be, or raises with everything that is wrong. Writes nothing."""
    usage = "dataflex-cli validate FILE [key=value ...]"
    log_to_stderr(asked(argv).own)
    file, *overrides = without_flag(argv)
    pipeline = _read(Path(file), overrides, usage)
    _check(pipeline, Path(file).absolute().parent)
    rounds = (
        f"up to {pipeline.rounds} rounds of reference and proxy, then final" if pipeline.rounds > 1 else listed(STEPS)
    )
    said = {"runs": rounds, "sources": listed(pipeline.names), "output": str(pipeline.folder)}
    sys.stdout.write(f"{file} can be run by dataflex-cli doremi\n")
    sys.stdout.write("".join(f"  {name + ':':<11} {text}\n" for name, text in said.items()))
    return 0


def plan(argv: Sequence[str]) -> int:
    """Refuses the file, as a plan is one of a single run."""
    file = without_flag(argv)[0]
    raise ConfigError(
        f"{file}: holds the runs of dataflex-cli doremi, and a plan is one of a single run -> give it the file of a "
        "step, such as 2_proxy.yaml, which doremi leaves in output_dir; dataflex-cli validate FILE checks all of them"
    )


def run(argv: Sequence[str], train: Train | None = None) -> int:
    """Runs the steps. Returns the exit code of the first that fails, or 0.

    Args:
        argv: The arguments after ``doremi``.
        train: Trains as a file says, with overrides, and returns the exit code; another process of this program
            unless given.
    """
    require_llamafactory("doremi")
    overwrites, verbosity = OVERWRITE in argv, asked(argv)
    file, *rest = [argument for argument in without_flag(argv) if argument != OVERWRITE] or [""]
    if not file:
        raise ConfigError(f"no file given -> {USAGE}")
    log_to_stderr(verbosity.own)
    wanted = [rest.pop(0)] if rest and rest[0] in STEPS else list(STEPS)
    pipeline = _read(Path(file), rest, USAGE)
    if pipeline.rounds > 1 and len(wanted) == 1:
        raise ConfigError(
            f"{wanted[0]}: found a step alone, and rounds: {pipeline.rounds} -> leave the step out: what is finished "
            "is passed over"
        )
    for number in range(1, pipeline.rounds + 1):
        _require_same_proxy(pipeline.of_round(number), anew=overwrites and "proxy" in wanted)
    _check(pipeline, Path(file).absolute().parent)
    for number in range(1, pipeline.rounds + 1):
        write_yaml(pipeline.of_round(number).components_file, masked(pipeline.of_round(number).components()))
    if pipeline.rounds > 1:
        return run_rounds(pipeline, lambda own, step: _step(own, step, train or _train, overwrites, QUIET in argv))
    for step in wanted:
        code = _step(pipeline, step, train or _train, overwrites, QUIET in argv)
        if code:
            return code
    return 0


def _read(file: Path, overrides: Sequence[str], usage: str) -> Pipeline:
    content = read_config(file)
    given: dict[str, Any] = {}
    for text in overrides:
        if "=" not in text:
            raise ConfigError(f"'{text}': expected a step ({', '.join(STEPS)}) or key=value -> {usage}")
        key, value = parse_override(text)
        given[key] = value
    remember(given)
    pipeline = parse(content, given)
    if any(keys.get(_THEIRS) for keys in pipeline.sections.values()):
        logger.warning(
            "doremi: %s is left out: a finished step is kept and a stopped one goes on -> %s trains the steps anew",
            _THEIRS,
            OVERWRITE,
        )
    sections = {
        step: without_unset({key: value for key, value in keys.items() if key != _THEIRS}, overrides)
        for step, keys in pipeline.sections.items()
    }
    return replace(pipeline, sections=sections)


def _require_same_proxy(pipeline: Pipeline, anew: bool) -> None:
    """Refuses a finished proxy that had other parameters, before the file that says which it had is written anew.

    Raises:
        ConfigError: With both ways out.
    """
    before = read_yaml(pipeline.components_file)
    if pipeline.finished("proxy") and not anew and before not in (None, masked(pipeline.components())):
        raise _another(pipeline, "proxy", pipeline.components_file)


def _another(pipeline: Pipeline, step: str, file: Path) -> ConfigError:
    return ConfigError(
        f"the step '{step}' is finished in {pipeline.output_dir(step)}, but not as {file.name} would have it now "
        f"-> restore the configuration, use another output_dir, or {_anew(pipeline, step)}"
    )


def _anew(pipeline: Pipeline, step: str) -> str:
    """Returns how a finished step is trained anew; with several rounds none is called alone."""
    if pipeline.rounds == 1:
        return f"train it anew: dataflex-cli doremi ... {step} {OVERWRITE}"
    if step == "final":
        return f"train it anew: move {pipeline.output_dir(step)} away, and give the same command"
    return f"train this round anew: move {pipeline.own_folder} and later rounds away, and give the same command"


def _require_same_reference(pipeline: Pipeline) -> None:
    """Refuses a finished proxy whose reference model has been trained anew since.

    Raises:
        ConfigError: With the way out.
    """
    then, now = reference_of(pipeline.output_dir("proxy")), recorded_run(pipeline.output_dir("reference"))
    if then is not None and now is not None and now.id != then:
        raise ConfigError(
            f"the step 'proxy' is finished in {pipeline.output_dir('proxy')}, but with another reference model than "
            f"that of {pipeline.output_dir('reference')} -> {_anew(pipeline, 'proxy')}"
        )


def _check(pipeline: Pipeline, folder: Path) -> None:
    """Checks all three runs before the first one starts. Writes nothing.

    Raises:
        InvalidConfigError: Every problem, with the step it belongs to.
    """
    problems: list[Problem] = []
    for step in STEPS:
        try:
            check(pipeline.config(step) | _given(pipeline, step), folder)
        except InvalidConfigError as error:
            # The first step makes the reference model; the run of the proxy looks at it.
            found = [p for p in error.problems if not p.where.endswith(".reference_model")]
            problems += [Problem(f"{step}: {_place(p.where)}", p.what, p.way_out) for p in found]
    if problems:
        raise InvalidConfigError(problems)


def _given(pipeline: Pipeline, step: str) -> dict[str, Any]:
    """Returns the proxy's parameters in the run itself: the file that will hold them is not there yet."""
    if step != "proxy":
        return {}
    preset = pipeline.components()["mixers"]["doremi"]
    return {"component_name": preset["name"], "component": preset["params"], "components_cfg_file": None}


def _place(where: str) -> str:
    """Returns where the user wrote what is wrong: parameters of the proxy stand under ``params``."""
    return f"{PARAMS}{where.removeprefix('component')}" if where.startswith("component.") else where


def _step(pipeline: Pipeline, step: str, train: Train, overwrites: bool, quiet: bool) -> int:
    if step == "proxy" and not pipeline.finished("reference"):
        raise ConfigError(f"{pipeline.output_dir('reference')} holds no finished reference model -> train it first")
    if step == "final" and not pipeline.finished("proxy"):
        raise ConfigError(f"{pipeline.output_dir('proxy')} holds no finished proxy -> train it first")
    if step == "final" or (step == "proxy" and pipeline.finished("proxy") and not overwrites):
        _require_same_reference(pipeline)
    weights = _mixture(pipeline, step)
    config, file = pipeline.config(step, weights), pipeline.run_file(step)
    written, secrets = taken_out(config)
    if pipeline.finished(step) and not overwrites:
        before = read_yaml(file)
        if isinstance(before, dict) and without_secrets(before) == without_secrets(written):
            logger.info("doremi: the step '%s' is finished: %s", step, pipeline.output_dir(step))
            return 0
        raise _another(pipeline, step, file)
    write_yaml(file, written)
    if weights is not None:
        logger.info("doremi: the mixture is %s", dict(zip(pipeline.names, weights, strict=True)))
    which = f", round {pipeline.number} of {pipeline.rounds}" if pipeline.rounds > 1 and step != "final" else ""
    logger.info("doremi: step %d of %d, '%s'%s: %s", STEPS.index(step) + 1, len(STEPS), step, which, file)
    with _environment(secrets):  # the file leaves them out
        code = train(file, *([f"{_THEIRS}=true"] if overwrites else []), *([QUIET] if quiet else []))
    if code == 2 and not overwrites:
        logger.info("doremi: where the message says %s: true, give this command %s", _THEIRS, OVERWRITE)
    return code


def _mixture(pipeline: Pipeline, step: str) -> list[float] | None:
    """Returns the weights that a step is trained on: of its own round's proxy, or of that of the round before."""
    if step == "final":
        return read_weights(pipeline.output_dir("proxy"), pipeline.names)
    if step == "reference" and pipeline.number > 1:
        return read_weights(pipeline.of_round(pipeline.number - 1).output_dir("proxy"), pipeline.names)
    return None


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


def _train(file: Path, *overrides: str) -> int:
    """Trains in a process of its own, so that each run finds the machine as the first one did."""
    command = [sys.executable, "-m", "dataflex", "train", str(file), *overrides]
    return supervised(command, torchrun.followed(), more_follows=True)
