"""``dataflex-cli plan``: what a run will take before it starts, and the share of it that goes into deciding.

FILE is a YAML or JSON file, key=value overrides it; both as for train. What validate refuses is refused here too.
--rows N says how many rows the train dataset has, where that cannot be told here; --ranks N how many processes will
train; --tflops X at how many TFLOP a second each does; --json prints an object, for programs.
No weights are loaded and nothing is fetched.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence

from dataflex.cli.plugin_commands import command_of_file
from dataflex.cli.run_file import checked_run
from dataflex.core.errors import ConfigError
from dataflex.discovery.plugins import load_plugin_files

SUMMARY = "say what a run will take, before it starts"
USAGE = "dataflex-cli plan FILE [--json] [--rows N] [--ranks N] [--tflops X] [key=value ...]"

_JSON = "--json"
_NUMBERS = {"--rows": 1.0, "--ranks": 1.0, "--tflops": 1e-6}
"""Option -> its least value."""


def run(argv: Sequence[str]) -> int:
    """Prints the forecast. Returns the exit code."""
    own = command_of_file(argv)
    if own is not None and own.plan is not None:
        return own.plan(argv)
    left, numbers = _options([argument for argument in argv if argument != _JSON])
    spec = checked_run(left, USAGE)
    load_plugin_files(spec.arguments.plugins)
    from dataflex.forecast.advice import advice  # here: they import torch, which a refused file does not need
    from dataflex.forecast.forecast import forecast
    from dataflex.forecast.page import page, plain

    tflops = numbers.get("--tflops")
    ranks = int(numbers.get("--ranks", 1))
    found = forecast(spec, rows=numbers.get("--rows"), ranks=ranks, speed=None if tflops is None else tflops * 1e12)
    advised = advice(found)
    if _JSON in argv:
        sys.stdout.write(json.dumps(plain(found, advised), indent=2) + "\n")
    else:
        sys.stdout.write(page(found, advised))
    return 0


def _options(argv: Sequence[str]) -> tuple[list[str], dict[str, float]]:
    """Returns the arguments without options, and option -> number."""
    left, numbers = [], {}
    arguments = iter(argv)
    for argument in arguments:
        if not argument.startswith("--"):
            left.append(argument)
            continue
        name, equals, value = argument.partition("=")
        if name not in _NUMBERS:
            raise ConfigError(f"no option {name}; known: {_JSON}, {', '.join(_NUMBERS)} -> {USAGE}")
        numbers[name] = _number(name, value if equals else next(arguments, ""))
    return left, numbers


def _number(name: str, text: str) -> float:
    least, whole = _NUMBERS[name], name != "--tflops"
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not (math.isfinite(found) and found >= least and (not whole or found == int(found))):
        allowed = "a whole number of 1 or more" if whole else "a number above 0"
        raise ConfigError(f"{name}: found {text!r}, allowed: {allowed} -> {USAGE}")
    return found
