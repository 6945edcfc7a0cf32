"""``--quiet`` and ``DATAFLEX_VERBOSITY``: what they ask for, who is told, and that another word is refused."""

from __future__ import annotations

import logging

import pytest
from dataflex.cli import run_file, score, train, validate
from dataflex.cli.main import run
from dataflex.config.overrides import parse_override
from dataflex.core.errors import ConfigError
from dataflex.core.verbosity import LEVELS, QUIET, VARIABLE, Verbosity, asked, without_flag
from dataflex.launch import next_trainer, torchrun
from dataflex.utils.logging import logger

FILE = "run.yaml"


@pytest.mark.parametrize(
    ("argv", "variable", "name"),
    [
        ([], None, "info"),
        ([], "", "info"),
        ([], "Debug", "debug"),
        ([], " warning ", "warning"),
        ([FILE, QUIET], None, "warning"),
        ([QUIET, FILE], "debug", "warning"),
        ([FILE, QUIET], "error", "error"),
        ([FILE, "a=--quiet"], None, "info"),
    ],
)
def test_the_flag_and_the_variable_ask_for_a_level(argv, variable, name):
    assert asked(argv, {} if variable is None else {VARIABLE: variable}) == Verbosity(name)


@pytest.mark.parametrize("word", ["loud", "1", "quiet", "warn", "info,debug"])
def test_another_word_is_refused_with_those_that_are_allowed(word):
    with pytest.raises(ConfigError) as error:
        asked([], {VARIABLE: word})
    allowed = "debug, info, warning, error"
    assert str(error.value) == f"{VARIABLE}: found '{word}', allowed: {allowed} -> write one of these"


@pytest.mark.parametrize("command", ["train", "validate", "score"])
def test_a_command_refuses_another_word_before_it_reads_the_file(command, monkeypatch, capsys):
    for module in (train, score):
        monkeypatch.setattr(module, "require_llamafactory", lambda command: None)
    monkeypatch.setenv(VARIABLE, "loud")
    assert run([command, "missing.yaml"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {VARIABLE}: found 'loud', allowed: ")


def test_our_own_lines_are_left_out_only_where_errors_alone_are_asked_for():
    own = {name: Verbosity(name).own for name in LEVELS}
    assert own == {
        "debug": logging.DEBUG, "info": logging.INFO, "warning": logging.INFO, "error": logging.ERROR
    }  # fmt: skip
    libraries = {name: Verbosity(name).libraries for name in LEVELS}
    assert libraries == {"debug": 0, "info": 0, "warning": logging.WARNING, "error": logging.ERROR}


@pytest.mark.parametrize("place", range(4))
def test_the_flag_may_stand_anywhere_and_is_no_override(place, monkeypatch):
    seen = {}
    monkeypatch.setattr(run_file, "log_to_stderr", lambda level: seen.update(level=level))
    monkeypatch.setattr(
        run_file, "read_config", lambda file, overrides: seen.update(file=file, overrides=overrides) or {}
    )
    monkeypatch.setattr(run_file, "check", lambda config, folder, trains: seen.update(trains=trains))
    argv = [FILE, "a=1", "b=2"]
    argv.insert(place, QUIET)
    run_file.checked_run(argv, "usage")
    assert seen == {"level": logging.INFO, "file": FILE, "overrides": ["a=1", "b=2"], "trains": True}
    assert without_flag(argv) == [FILE, "a=1", "b=2"]


@pytest.mark.parametrize("argv", [[QUIET], []])
def test_the_flag_alone_names_no_file(argv):
    with pytest.raises(ConfigError, match="no file given -> dataflex-cli validate FILE"):
        run_file.checked_run(argv, validate.USAGE)


@pytest.mark.parametrize("flag", ["--quite", "-q", "--verbose"])
def test_another_flag_is_refused_by_its_name(flag):
    with pytest.raises(ConfigError, match=rf"'{flag}': found in place of FILE, and the one option here is --quiet -> "):
        run_file.checked_run([flag, FILE], train.USAGE)
    with pytest.raises(ConfigError, match=rf"'{flag}': expected key=value"):
        parse_override(flag)


@pytest.mark.parametrize(("name", "level"), [("debug", logging.DEBUG), ("error", logging.ERROR)])
def test_the_level_reaches_our_logger(name, level, monkeypatch, tmp_path):
    monkeypatch.setattr(logger, "level", logger.level)
    monkeypatch.setattr(logger, "propagate", logger.propagate)
    monkeypatch.setattr(logger, "handlers", list(logger.handlers))
    monkeypatch.setenv(VARIABLE, name)
    with pytest.raises(ConfigError):
        run_file.checked_run([str(tmp_path / "missing.yaml")], "usage")
    assert logger.level == level


@pytest.mark.parametrize("argv", [["doremi.yaml", QUIET, "a=1"], [QUIET, "doremi.yaml", "a=1"], ["doremi.yaml", "a=1"]])
def test_the_three_runs_of_doremi_are_as_quiet_as_the_command(argv, monkeypatch):
    doremi = pytest.importorskip("dataflex_mixers.doremi.doremi_command")
    seen = []

    class Pipeline:
        names, rounds, components_file = (), 1, None

        def of_round(self, number):
            return self

        def components(self):
            return {}

        def finished(self, step):
            return step != "final"

    for name in ("_require_same_proxy", "_check", "_require_same_reference", "require_llamafactory", "write_yaml"):
        monkeypatch.setattr(doremi, name, lambda *args, **kwargs: None)
    monkeypatch.setattr(doremi, "_read", lambda file, rest, usage: seen.append((str(file), rest)) or Pipeline())
    monkeypatch.setattr(doremi, "log_to_stderr", lambda level: None)
    monkeypatch.setattr(doremi, "_step", lambda pipeline, step, train, overwrites, quiet: seen.append(quiet))
    assert doremi.run(argv) == 0
    assert seen == [("doremi.yaml", ["a=1"]), *[QUIET in argv] * 3]


@pytest.mark.parametrize("quiet", [False, True])
def test_a_step_of_doremi_hands_the_flag_to_its_process(quiet, monkeypatch, tmp_path):
    doremi = pytest.importorskip("dataflex_mixers.doremi.doremi_command")
    started = []

    class Pipeline:
        names, rounds, number = (), 1, 1

        def finished(self, step):
            return False

        def output_dir(self, step):
            return tmp_path

        def config(self, step, weights):
            return {}

        def run_file(self, step):
            return tmp_path / "step.yaml"

    doremi._step(Pipeline(), "reference", lambda *argv: started.append(argv) or 0, False, quiet)
    assert started == [(tmp_path / "step.yaml", *([QUIET] if quiet else []))]


@pytest.mark.parametrize(
    ("argv", "given", "found"), [([], None, None), ([QUIET], None, "WARNING"), ([QUIET], "ERROR", "ERROR")]
)
def test_llamafactorys_next_trainer_is_told_by_its_own_variable(argv, given, found, monkeypatch):
    environs = []
    monkeypatch.setattr(next_trainer, "supervised", lambda command, environ: environs.append(environ) or 0)
    monkeypatch.delenv(next_trainer.THEIR_VERBOSITY, raising=False)
    if given is not None:
        monkeypatch.setenv(next_trainer.THEIR_VERBOSITY, given)
    next_trainer.train({}, asked(argv, {}))
    assert environs[0].get(next_trainer.THEIR_VERBOSITY) == found


def test_ranks_of_torchrun_get_the_flag_with_the_arguments():
    command = torchrun.command([FILE, QUIET, "a=1"], {"MASTER_PORT": "1"}, devices=2)
    assert command[-5:] == ["dataflex", "train", FILE, QUIET, "a=1"]
