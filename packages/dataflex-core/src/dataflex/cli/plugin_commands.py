"""The commands that plugins add, and which of them a file is for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dataflex.config.load import read_mapping
from dataflex.core.hookspecs import Command

_SUFFIXES = (".yaml", ".yml", ".json")


def plugin_commands() -> dict[str, Command]:
    """Returns the commands of plugins, by name."""
    from dataflex.discovery.plugins import call_hook  # here: reading the plugins' metadata is not needed to train

    found: dict[str, Command] = {}
    for commands in call_hook("dataflex_cli_commands"):
        found |= commands
    return dict(sorted(found.items()))


def command_of_file(argv: Sequence[str]) -> Command | None:
    """Returns the plugin's command that the file on a command line is for; None for the file of a run.

    Args:
        argv: What stands behind ``validate`` or ``plan``.
    """
    file = Path(next((argument for argument in argv if not argument.startswith("-")), ""))
    if file.suffix.lower() not in _SUFFIXES or not file.is_file():
        return None  # whoever reads it says what is wrong
    content = {str(key): value for key, value in read_mapping(file, llamafactory=True).items()}
    if "train_type" in content:
        return None
    return next((each for each in plugin_commands().values() if each.owns is not None and each.owns(content)), None)
