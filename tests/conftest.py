"""The environment every test runs in: no network, few threads, no accelerator but with DATAFLEX_TEST_GPU=1.

Set before torch is imported.
"""

from __future__ import annotations

import gc
import os
import re
import signal

os.environ["HF_HUB_OFFLINE"] = "1"
# The tests start a hundred processes. Where bytecode is not kept, each of them compiles again what it imports (torch,
# transformers and more), which is more than half of the time that it takes to start.
os.environ["PYTHONDONTWRITEBYTECODE"] = ""
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "2")
if os.environ.get("DATAFLEX_TEST_GPU", "0") in ("", "0"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import needs_llamafactory
import pytest
from dataflex.core import registry
from hypothesis import settings

from tests.trl_packages import mend_trl

sys.dont_write_bytecode = False  # this process keeps its own too
ACCELERATOR_ASKED = os.environ.get("DATAFLEX_TEST_GPU", "0") not in ("", "0")

FAST = frozenset(
    {
        "advice",
        "catalog",
        "check",
        "checkpoints",
        "cli",
        "compare",
        "config_load",
        "construct",
        "decision",
        "docs",
        "layers",
        "log_lines",
        "order",
        "orders",
        "packages",
        "parameter_checks",
        "plugins",
        "registry",
        "report",
        "root",
        "schedule",
        "site_nav",
        "stable_sort",
        "torchrun",
        "zh_pages",
    }
)
"""The modules of `tests/unit` that import neither torch nor LLaMA-Factory, nor start a process that does: `-m fast`."""

_NEVER_FAST = ("torch", "transformers", "llamafactory")


def _fast_alone(config: pytest.Config) -> bool:
    return bool(config.getoption("markexpr") == "fast")


def pytest_configure(config: pytest.Config) -> None:
    """Refuses a name in FAST that no module has; hears signals that a shell has taken from the tests; the order."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a job in the background: the tests' own children too
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under nohup
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    config.pluginmanager.register(needs_llamafactory)
    # pytest-xdist would hand out the modules with the most tests first, and the longest have few: at the end one worker
    # would train for minutes while the others have nothing left. They are handed out as collected: `testpaths`.
    config.option.loadscopereorder = False
    missing = sorted(name for name in FAST if not Path(__file__).with_name("unit").joinpath(f"test_{name}.py").exists())
    if missing:
        raise pytest.UsageError(f"FAST in {__file__} names modules that are not there: {', '.join(missing)}")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves modules of other tests unread where the fast ones are asked for: most of them import torch."""
    name = collection_path.stem.removeprefix("test_")
    return True if _fast_alone(config) and collection_path.suffix == ".py" and name not in FAST else None


@pytest.fixture(autouse=True)
def _fast_stays_fast(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails the test that made the fast ones slow."""
    yield
    if _fast_alone(request.config):
        loaded = [name for name in _NEVER_FAST if name in sys.modules]
        assert not loaded, f"{', '.join(loaded)} was imported: take the module out of FAST, or mark the test slow"


settings.register_profile("dataflex", deadline=None)  # a noisy machine is no failure
settings.load_profile("dataflex")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Refuses a value of the variable that means nothing."""
    if ACCELERATOR_ASKED:
        from dataflex.testing.devices import asked

        try:
            asked()
        except RuntimeError as error:
            raise pytest.UsageError(str(error)) from error


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says on which device the tests ran, where an accelerator was asked for: there may have been none."""
    if ACCELERATOR_ASKED:
        from dataflex.testing.devices import described

        terminalreporter.write_line(f"device of the tests: {described()}")


def _no_accelerator() -> str | None:
    """Why the tests that need an accelerator are left out, or None where they run."""
    if not ACCELERATOR_ASKED:
        return "needs DATAFLEX_TEST_GPU=1"
    from dataflex.testing import device

    return "needs an accelerator, and torch sees none" if device().type == "cpu" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the fast tests, and leaves those that need an accelerator out where there is none or none was asked for.

    Refuses a test whose name holds an address: processes that run tests side by side do not find each other's.
    """
    for item in items:
        if re.search(r" at 0x[0-9a-f]{6}", item.nodeid):
            raise pytest.UsageError(f"{item.nodeid} has an address in its name -> give its cases ids")
        if item.path.stem.removeprefix("test_") in FAST and item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.fast)
        if item.get_closest_marker("gpu") is not None and (reason := _no_accelerator()):
            item.add_marker(pytest.mark.skip(reason=reason))


class _Imported:
    """How many modules this process had when what they hold was last kept out of the garbage collector's way."""

    modules = 0


@pytest.fixture(autouse=True)
def _quick_garbage_collection() -> None:
    """Keeps what imported modules hold out of the garbage collector's way.

    accelerate collects garbage at the start of each training. That walks every object of torch, transformers and the
    like, and took more than half of the time of a small run.
    """
    if len(sys.modules) > _Imported.modules + 100:
        gc.collect()
        gc.freeze()
        _Imported.modules = len(sys.modules)


@pytest.fixture(autouse=True)
def _mended_trl() -> None:
    """Lets TRL 0.24 import its trainers of preferences, whatever was imported before it in this process."""
    mend_trl()


@pytest.fixture(autouse=True)
def _heard_log() -> None:
    """Starts each test with the logs as they are in a process of its own, whatever ran before it in this one.

    The command line takes dataflex's records away; LLaMA-Factory has transformers say all, and to every handler; a
    benchmark has it say errors alone, without bars.
    """
    logging.getLogger("dataflex").setLevel(logging.NOTSET)
    logging.getLogger("dataflex").propagate = True
    if "transformers" in sys.modules:
        from transformers.utils import logging as hf_logging  # here: fast tests do without

        hf_logging.set_verbosity_warning()
        hf_logging.disable_propagation()
        hf_logging.enable_progress_bar()


@pytest.fixture(autouse=True)
def _own_registrations() -> Iterator[None]:
    """Takes back what the plugin files of a test register: a run has a process of its own."""
    with patch.dict(registry._registered):
        yield
    for name in [name for name in sys.modules if name.startswith("dataflex_plugin_")]:
        del sys.modules[name]  # so that the next test's run registers what the file brings
    if "dataflex.discovery.plugins" in sys.modules:
        sys.modules["dataflex.discovery.plugins"].plugin_manager.cache_clear()  # its hooks


@pytest.fixture(autouse=True)
def _same_environment() -> Iterator[None]:
    """Takes back what a test leaves in the environment: the arguments of transformers 4.51 make runs after a bf16 one
    bf16 as well, and `torch_compile` compiles whatever comes after it."""
    with patch.dict(os.environ):
        yield
