"""What ``--quiet`` leaves out of the log of a run through LLaMA-Factory, what it keeps, and that it is undone."""

from __future__ import annotations

import logging
import os

import datasets.utils.logging
import llamafactory.data.loader as loader
import llamafactory.data.processor.pretrain as pretrain
import llamafactory.data.processor.supervised as supervised
import llamafactory.extras.ploting as ploting
import llamafactory.hparams.parser as parser
import pytest
import transformers
from dataflex.config.spec import RunSpec
from dataflex.core.verbosity import LEVELS, VARIABLE, Verbosity
from dataflex.integrations.llamafactory import quiet_libraries, ray
from dataflex.integrations.llamafactory.quiet_libraries import LIBRARIES, THEIR_VERBOSITY, quieted
from llamafactory.extras.logging import get_logger

pytestmark = pytest.mark.llamafactory

QUIET, ERROR = Verbosity("warning"), Verbosity("error")
NAMES = ["transformers.modeling_utils", "llamafactory.data.loader", "datasets.arrow_dataset", "accelerate", "DeepSpeed"]


class Kept(logging.Handler):
    """Keeps the messages that a log would show."""

    def __init__(self):
        super().__init__()
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


@pytest.fixture
def shown(monkeypatch):
    """The messages that come through the handlers of the libraries and of the root, all of which are open."""
    kept = Kept()
    for name in ("", "transformers", "llamafactory", "datasets"):
        found = logging.getLogger(name)
        monkeypatch.setattr(found, "handlers", [kept])
        monkeypatch.setattr(found, "level", logging.DEBUG)
        monkeypatch.setattr(found, "propagate", False)
    for name in NAMES:
        monkeypatch.setattr(logging.getLogger(name), "disabled", False)
    monkeypatch.setattr(logging.getLogger("mine.plugin"), "level", logging.DEBUG)
    monkeypatch.setattr(logging.getLogger("DeepSpeed"), "level", logging.DEBUG)
    monkeypatch.setattr(logging.getLogger("accelerate"), "level", logging.DEBUG)
    logging.Logger.manager._clear_cache()
    yield kept.messages
    logging.Logger.manager._clear_cache()


def log(name, level):
    logging.getLogger(name).log(LEVELS[level], f"{name} {level}")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("verbosity", "expected"),
    [
        (Verbosity("debug"), list(LEVELS)),
        (Verbosity(), list(LEVELS)),
        (QUIET, ["warning", "error"]),
        (ERROR, ["error"]),
    ],
    ids=lambda value: value.name if isinstance(value, Verbosity) else "",
)
def test_lines_of_libraries_below_the_level_are_left_out_and_others_kept(shown, name, verbosity, expected):
    with quieted(verbosity):
        for level in LEVELS:
            log(name, level)
    assert shown == [f"{name} {level}" for level in expected]
    shown.clear()
    log(name, "info")
    assert shown == [f"{name} info"], "it is undone"


def test_lines_of_others_are_kept(shown):
    with quieted(ERROR):
        log("mine.plugin", "info")
    assert shown == ["mine.plugin info"]


def test_a_handler_that_a_library_makes_later_is_quiet_too(shown):
    """DeepSpeed makes its own when it is imported, in the middle of a run, and sets its level to INFO."""
    late = Kept()
    deepspeed = logging.getLogger("DeepSpeed")
    with quieted(QUIET):
        deepspeed.addHandler(late)
        log("DeepSpeed", "info")
        log("DeepSpeed", "warning")
    deepspeed.removeHandler(late)
    assert late.messages == ["DeepSpeed warning"]


@pytest.mark.parametrize("again", [parser._set_transformers_logging, transformers.utils.logging.set_verbosity_info])
def test_llamafactory_and_the_trainer_may_set_the_level_of_transformers_as_often_as_they_like(shown, again):
    before = transformers.utils.logging.get_verbosity()
    try:
        with quieted(QUIET):
            again()
            log("transformers.trainer", "info")
            log("transformers.trainer", "warning")
    finally:
        transformers.utils.logging.set_verbosity(before)
    assert shown == ["transformers.trainer warning"]


@pytest.mark.parametrize("verbosity", [Verbosity(), QUIET, ERROR], ids=lambda verbosity: verbosity.name)
def test_the_first_rows_of_the_data_and_paths_of_figures_are_printed_unless_it_is_quiet(verbosity, capsys):
    class Tokenizer:
        def decode(self, ids, skip_special_tokens):
            return f"text of {ids}"

    example = {"input_ids": [1, 2], "labels": [-100, 2]}
    with quieted(verbosity):
        for kind in (supervised.SupervisedDatasetProcessor, pretrain.PretrainDatasetProcessor):
            kind(None, Tokenizer(), None, None).print_data_example(example)
        assert ("print" in vars(loader)) == ("print" in vars(ploting)) == (verbosity != Verbosity())
    assert ("text of" in capsys.readouterr().out) == (verbosity == Verbosity())
    assert "print" not in {*vars(loader), *vars(ploting), *vars(supervised)}, "it is undone"


def test_the_printing_that_is_silenced_is_there():
    """A module of LLaMA-Factory that is renamed would print again."""
    named = {module.__name__ for module in quiet_libraries._printing()}
    assert {loader.__name__, ploting.__name__, supervised.__name__, pretrain.__name__} <= named


def bars():
    return transformers.utils.logging.is_progress_bar_enabled(), not datasets.are_progress_bars_disabled()


def test_progress_bars_stay():
    before = bars()  # an earlier test of this process may have switched them off
    transformers.utils.logging.enable_progress_bar()
    datasets.enable_progress_bars()
    try:
        with quieted(ERROR):
            assert bars() == (True, True)
            assert not datasets.utils.logging.get_logger("datasets").disabled
    finally:
        if not before[0]:
            transformers.utils.logging.disable_progress_bar()
        if not before[1]:
            datasets.disable_progress_bars()


def test_processes_that_are_started_meanwhile_are_told_in_llamafactorys_own_way(monkeypatch):
    monkeypatch.delenv(THEIR_VERBOSITY, raising=False)
    with quieted(QUIET):
        assert os.environ[THEIR_VERBOSITY] in logging.getLevelNamesMapping()
        assert os.environ[THEIR_VERBOSITY] == "WARNING"
    assert THEIR_VERBOSITY not in os.environ
    with quieted(Verbosity()):
        assert THEIR_VERBOSITY not in os.environ
    monkeypatch.setenv(THEIR_VERBOSITY, "ERROR")
    with quieted(QUIET):
        assert os.environ[THEIR_VERBOSITY] == "ERROR"
    assert os.environ[THEIR_VERBOSITY] == "ERROR"


def test_what_a_run_puts_into_the_environment_stays_there(monkeypatch):
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with quieted(QUIET):
        monkeypatch.setenv("MASTER_PORT", "1")
    assert os.environ["MASTER_PORT"] == "1"


def test_the_libraries_that_are_named_have_the_loggers_that_are_used():
    assert get_logger("llamafactory.train").name.partition(".")[0] in LIBRARIES
    assert {"transformers", "datasets", "accelerate", "torch", "peft", "trl", "huggingface_hub"} <= LIBRARIES
    assert "dataflex" not in LIBRARIES


def test_a_worker_of_ray_is_as_quiet_as_the_run(monkeypatch):
    """The environment of a cluster that runs already is its own: the level travels with the run."""
    sent, seen = {}, {}
    spec = RunSpec.__new__(RunSpec)
    for _, name, stand_in in ray.replacements(spec, QUIET):
        if name == "_ray_training_function":
            monkeypatch.setattr(ray.tuner, name, lambda ray_args, config: sent.update(config))
            sending = ray._sending(spec, QUIET, ray.tuner._ray_training_function)
            sending(None, config={"args": {}})
        elif name == "get_ray_trainer":
            stand_in = ray._sending_to_trainer(spec, QUIET, lambda train, config, ray_args: sent.update(config))
            stand_in(None, {"args": {}}, None)
    assert sent == {"args": {}, ray.KEY: spec, VARIABLE: QUIET}

    class Spec:
        class arguments:  # noqa: N801
            plugins = ()

    monkeypatch.setattr(ray, "log_to_stderr", lambda level: seen.update(own=level))
    monkeypatch.setattr(ray, "installed", lambda spec: quieted(Verbosity()))
    monkeypatch.setattr(
        ray.tuner, "_training_function", lambda config: seen.update(config=config, variable=os.environ[THEIR_VERBOSITY])
    )
    ray.train_on_worker({**sent, ray.KEY: Spec})
    assert seen == {"own": logging.INFO, "config": {"args": {}}, "variable": "WARNING"}
