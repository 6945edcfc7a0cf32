"""``dataflex-cli init``: a workspace to try everything in, with no download.

DIR is made; if it is there already it must be empty, because nothing is ever written over.
--seed N changes the text that is drawn, the tasks and the model's weights (default 42).
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from typing import NoReturn

from dataflex.core.errors import ConfigError
from dataflex.discovery.installed import has_package
from dataflex.launch.packages import WITH_LLAMAFACTORY

SUMMARY = "make a small workspace (data, model, one YAML per kind of run) with no download"
USAGE = "dataflex-cli init DIR [--seed N]"


class _Parser(argparse.ArgumentParser):
    """Raises what every other command raises instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} -> {USAGE}")


def run(argv: Sequence[str]) -> int:
    """Makes the workspace, says what it holds and what to run next. Returns the exit code."""
    parser = _Parser(prog="dataflex-cli init", add_help=False, allow_abbrev=False)
    parser.add_argument("directory", metavar="DIR")
    parser.add_argument("--seed", type=_seed, default=42)
    arguments = parser.parse_args(argv)

    from dataflex.workspace.build import create  # here, because other commands have no use for it

    made = create(arguments.directory, seed=arguments.seed, report=lambda stage: _say(f"... {stage}"))
    rows = ", ".join(f"{name} {count}" for name, count in made.datasets.items())
    _say(f"Made {made.directory}")
    _say(f"  data/            rows: {rows}")
    _say(f"  model/           a Qwen2 of {made.parameters:,} parameters and its tokenizer")
    _say("  components.yaml  every installed component with its parameters")
    _say(f"  runs             {', '.join(path.name for path in made.runs)}")
    _say("  compare.yaml     arms and seeds for dataflex-cli compare: does it pay, or is it luck?")
    _say("  README.md        what each is and where to look after a run")
    _say("Next, a baseline, a selector, and what they came to:")
    for command in made.first_commands:
        _say(f"  {shlex.join(command)}")
    if not has_package("llamafactory"):
        _say(f"Training in it needs LLaMA-Factory, which is not installed: {WITH_LLAMAFACTORY}")
    return 0


def _seed(text: str) -> int:
    """Returns the number; ``int`` would take 1_0 and the digits of other scripts too."""
    if not re.fullmatch("0|[1-9][0-9]{0,8}", text):
        raise argparse.ArgumentTypeError(f"found {text!r}, allowed: a whole number from 0 to 999999999")
    return int(text)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
