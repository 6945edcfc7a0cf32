"""``--quiet`` for what LLaMA-Factory brings along: its INFO lines and those of the libraries under it.

LLaMA-Factory sets the level of transformers to INFO whenever it reads arguments, has a logger with a handler of its
own, and prints the first rows of the data. Levels would have to be set again after each of these, so records are
refused where they are written: at the handlers. Processes that are started meanwhile, such as Ray's, get
LLaMA-Factory's own variable. Progress bars, and losses and metrics that are printed, are no log lines.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import llamafactory.data.loader  # the modules are there before their print is looked for
import llamafactory.extras.ploting  # noqa: F401

from dataflex.core.verbosity import Verbosity

LIBRARIES = frozenset(
    {
        "DeepSpeed", "absl", "accelerate", "bitsandbytes", "datasets", "deepspeed", "filelock", "fsspec", "httpcore",
        "httpx", "huggingface_hub", "llamafactory", "matplotlib", "mlflow", "modelscope", "numexpr", "peft", "ray",
        "swanlab", "tensorboard", "torch", "torchao", "torchvision", "transformers", "trl", "urllib3", "vllm", "wandb",
    }
)  # fmt: skip
"""The loggers of libraries, by the first part of their names."""
PRINTING = ("llamafactory.data.loader", "llamafactory.data.processor", "llamafactory.extras.ploting")
"""Modules of LLaMA-Factory that print: the first rows of the data, and the paths of figures."""
THEIR_VERBOSITY = "LLAMAFACTORY_VERBOSITY"


@contextmanager
def quieted(verbosity: Verbosity) -> Iterator[None]:
    """Keeps log lines of the libraries below a level out of the log; undone on leaving.

    Args:
        verbosity: What was asked for.
    """
    with ExitStack() as stack:
        if verbosity.libraries:
            refuses = _Below(verbosity.libraries)
            for filterer in _filterers():
                filterer.addFilter(refuses)
                stack.callback(filterer.removeFilter, refuses)
            if THEIR_VERBOSITY not in os.environ:  # else the user has said what these processes write
                os.environ[THEIR_VERBOSITY] = verbosity.name.upper()
                stack.callback(os.environ.pop, THEIR_VERBOSITY, None)
            for module in _printing():
                stack.enter_context(patch.object(module, "print", _say_nothing, create=True))
        yield


class _Below(logging.Filter):
    """Refuses the records of libraries that are below a level."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self._level = level

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= self._level or record.name.partition(".")[0] not in LIBRARIES


def _filterers() -> list[logging.Filterer]:
    """Returns every logger of a library, for what is logged through it, and the handlers that others lead to.

    The logger itself counts where its handler comes later: DeepSpeed makes that when it is imported.
    """
    loggers = [logging.getLogger(name) for name in sorted(LIBRARIES)]
    handlers = {handler for each in (logging.getLogger(), *loggers) for handler in each.handlers}
    return [*loggers, *handlers]


def _printing() -> list[Any]:
    return [
        module
        for name, module in sorted(sys.modules.items())
        if any(name == each or name.startswith(f"{each}.") for each in PRINTING)
    ]


def _say_nothing(*values: object, **options: object) -> None:
    """Stands in for ``print``."""
