"""``dataflex-cli new``: a package with a component of your own, that installs, passes its tests and trains at once.

KIND is selector, mixer, order or weighter. NAME is what component_name finds; the package is dataflex-NAME, in a new
folder of that name. --into DIR makes it there instead of in the working directory. Nothing is ever written over.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from typing import NoReturn

from dataflex.core.errors import ConfigError
from dataflex.discovery.installed import has_package

SUMMARY = "write a package with a selector, mixer, order or weighter of your own"
USAGE = "dataflex-cli new selector|mixer|order|weighter NAME [--into DIR]"


class _Parser(argparse.ArgumentParser):
    """Raises what every other command raises instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} -> {USAGE}")


def run(argv: Sequence[str]) -> int:
    """Writes the package, says what it holds and what to run next. Returns the exit code."""
    parser = _Parser(prog="dataflex-cli new", add_help=False, allow_abbrev=False)
    parser.add_argument("kind", metavar="KIND")
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--into", metavar="DIR", default=".")
    arguments = parser.parse_args(argv)

    from dataflex.workspace.new_package import kind_named, write_package  # here: other commands have no use for it

    made = write_package(kind_named(arguments.kind), arguments.name, arguments.into)
    extras = "test" if has_package("llamafactory") else "llamafactory,test"
    _say(f"Made {made.folder}")
    _say(f"  src/{made.package}/{made.name}.py  the class {made.cls}: begin with its formula")
    _say(f"  tests/test_{made.name}.py  tests of the formula, and what a run relies on")
    _say("  try/run.yaml  a run of seconds, with data and a tiny model")
    _say("Next:")
    for command in (
        ["cd", os.path.relpath(made.folder)],
        ["pip", "install", "-e", f".[{extras}]"],
        ["pytest"],
        ["dataflex-cli", "train", "try/run.yaml"],
    ):
        _say(f"  {shlex.join(command)}")
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
