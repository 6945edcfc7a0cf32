"""The commands of LLaMA-Factory, which reach it as they are: one command line is enough.

What a dynamic run leaves is an ordinary model, so exporting it, talking to it and serving it are LLaMA-Factory's. Its
own entry runs in this process with the arguments that were given; what it returns to the shell is the exit code.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module

from dataflex.core.errors import ConfigError
from dataflex.core.hookspecs import Command
from dataflex.launch.packages import require_llamafactory, require_working_packages

SUMMARIES = {
    "api": "serve a model as an API in OpenAI's form",
    "chat": "talk to a model in the terminal",
    "env": "print the versions that LLaMA-Factory runs on",
    "eval": "evaluate a model, as far as the installed LLaMA-Factory does",
    "export": "merge adapters into a model and write it",
    "webchat": "talk to a model in a browser",
    "webui": "open LLaMA-Factory's board",
}
"""Command -> what it does, in a line."""

NAMES = tuple(SUMMARIES)
_DETAILS = "A command of LLaMA-Factory: every argument, -h too, reaches llamafactory-cli as it is."


def llamafactory_command(name: str) -> Command:
    """Returns one of :data:`NAMES` as a command of ours."""
    return Command(SUMMARIES[name], f"dataflex-cli {name} ...", partial(run, name), _DETAILS)


def no_predict() -> ConfigError:
    """Returns what is said of ``predict``, which LLaMA-Factory has as a key and not as a command."""
    return ConfigError(
        "'predict' is no command of LLaMA-Factory either: it predicts where a file of train says so -> set do_train: "
        "false, do_predict: true and eval_dataset in it, and run dataflex-cli train FILE"
    )


def run(name: str, argv: Sequence[str]) -> int:
    """Runs a command of LLaMA-Factory's with these arguments. Returns the exit code of one that returns.

    Raises:
        IncompatiblePackagesError: LLaMA-Factory is not installed, or cannot be imported.
        SystemExit: As LLaMA-Factory ends.
    """
    require_llamafactory(name)
    require_working_packages()
    before = sys.argv
    sys.argv = ["llamafactory-cli", name, *argv]
    try:
        import_module("llamafactory.cli").main()
    finally:
        sys.argv = before
    return 0
