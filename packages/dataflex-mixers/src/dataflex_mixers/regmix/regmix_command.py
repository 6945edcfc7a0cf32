"""``dataflex-cli regmix``: the mixture that is predicted to be best, by small runs on many mixtures."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dataflex import hookimpl
from dataflex.core.errors import ConfigError
from dataflex.core.hookspecs import Command
from dataflex.core.verbosity import asked, without_flag
from dataflex.utils.logging import log_to_stderr

if TYPE_CHECKING:
    from dataflex_mixers.regmix.proxy_losses import Train

USAGE = "dataflex-cli regmix FILE [--quiet] [key=value ...]"
DETAILS = """\
FILE names a base (the YAML of a run on fixed shares), the number of mixtures, and what differs in the proxies;
key=value overrides it. A proxy is trained on each mixture, a regression of their losses is fitted, many mixtures are
predicted, and the mean of the best is written: regmix.json, regmix.yaml for the mixer static, and final.yaml, the base
on it.
What is finished is kept: the same command goes on where it was stopped, and with more mixtures trains the further ones.
dataflex-cli validate FILE and dataflex-cli plan FILE say what it would do and take."""


@hookimpl
def dataflex_cli_commands() -> Mapping[str, Command]:
    """Adds the command."""
    return {
        "regmix": Command(
            "find a mixture by a regression over small runs",
            USAGE,
            run,
            DETAILS,
            owns=owns,
            validate=validate,
            plan=plan,
        )
    }


def owns(content: Mapping[str, Any]) -> bool:
    """Returns whether the content of a file is one of this command."""
    return "base" in content and not content.keys().isdisjoint({"mixtures", "regressor", "held_out", "simulate"})


def run(argv: Sequence[str], train: Train | None = None) -> int:
    """Runs a search. Returns the exit code: 1 where a proxy failed.

    Args:
        argv: The file, and key=value over its keys.
        train: Trains a proxy; another process of this program unless given.
    """
    from dataflex.launch.packages import require_llamafactory, require_working_packages

    require_llamafactory("regmix")
    file, overrides = _arguments(argv, USAGE)
    from dataflex_mixers.regmix.searching import plan_search, require_no_launcher, run_search  # here: NumPy and torch

    require_no_launcher()
    planned = plan_search(file, overrides)
    require_working_packages()
    return run_search(planned, train)


def validate(argv: Sequence[str]) -> int:
    """Prints what a search would do, or raises with everything that is wrong. Returns the exit code."""
    file, overrides = _arguments(argv, "dataflex-cli validate FILE [key=value ...]")
    from dataflex_mixers.regmix.proxies import read_main  # here: help needs no NumPy
    from dataflex_mixers.regmix.regmix_file import read_search

    main = read_main(read_search(file, overrides))
    search = main.search
    targets = ", ".join(f"{name} ({weight:.3g})" for name, weight in main.targets.items())
    said = {
        "runs": f"{search.mixtures} proxies, {sum(search.is_held_out)} of them held out of the fit",
        "sources": ", ".join(main.names),
        "targets": targets,
        "regressor": search.regressor,
        "output": str(search.output_dir),
    }
    sys.stdout.write(f"{file} can be run by dataflex-cli regmix\n")
    sys.stdout.write("".join(f"  {name + ':':<11} {text}\n" for name, text in said.items()))
    return 0


def plan(argv: Sequence[str]) -> int:
    """Prints what a search will take. Returns the exit code."""
    file, overrides = _arguments(argv, "dataflex-cli plan FILE [key=value ...]")
    from dataflex_mixers.regmix.searching import beforehand, cost, in_words, plan_search

    planned = plan_search(file, overrides)
    takes = cost(planned)
    steps = f"{takes.steps_of_main:,.0f} steps of the main run ({takes.counted})"
    lines = [in_words(planned.main), f"the proxies take about {steps}"]
    lines += [f"warning: {text}" for text in beforehand(planned)]
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


def _arguments(argv: Sequence[str], usage: str) -> tuple[str, list[str]]:
    """Returns the file and the overrides. From here on the log goes to stderr."""
    verbosity = asked(argv)
    file, *overrides = without_flag(argv) or [""]
    unknown = [argument for argument in (file, *overrides) if argument.startswith("-")]
    if unknown:
        raise ConfigError(f"unexpected argument '{unknown[0]}' -> {usage}")
    if not file:
        raise ConfigError(f"no file given -> {usage}")
    log_to_stderr(verbosity.own)
    return file, overrides
