"""The commands: dataflex's own, each imported when it is used, and those that plugins add."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from dataflex.cli.llamafactory_commands import NAMES as LLAMAFACTORY
from dataflex.cli.llamafactory_commands import llamafactory_command, no_predict
from dataflex.cli.plugin_commands import plugin_commands
from dataflex.core.errors import ConfigError, listed, nearest
from dataflex.core.hookspecs import Command

__all__ = ["BUILT_IN", "LLAMAFACTORY", "Command", "all_commands", "command"]

BUILT_IN: Mapping[str, str] = {
    "train": "dataflex.cli.train",
    "validate": "dataflex.cli.validate",
    "plan": "dataflex.cli.plan_command",
    "score": "dataflex.cli.score",
    "compare": "dataflex.cli.compare",
    "report": "dataflex.cli.report",
    "list": "dataflex.cli.list",
    "init": "dataflex.cli.init",
    "new": "dataflex.cli.new",
    "version": "dataflex.cli.version",
}


def command(name: str) -> Command:
    """Returns the command of that name; plugins are asked only where dataflex itself has none.

    Args:
        name: The command.

    Raises:
        ConfigError: Nobody has it; the message holds the nearest one.
    """
    if name in BUILT_IN:
        return _built_in(name)
    extra = _from_plugins()
    if name in extra:
        return extra[name]
    if name in LLAMAFACTORY:
        return llamafactory_command(name)
    if name == "predict":
        raise no_predict()
    known = [*BUILT_IN, "help", *extra, *LLAMAFACTORY]
    raise ConfigError(f"no command '{name}'; known: {listed(known)} -> {nearest(name, known) or 'dataflex-cli help'}")


def is_llamafactorys(name: str) -> bool:
    """Returns whether a command is LLaMA-Factory's, which gets every argument: no plugin has one of that name."""
    return name in LLAMAFACTORY and name not in _from_plugins()


def all_commands() -> dict[str, Command]:
    """Returns every command by name: dataflex's own in the order above, then those of plugins."""
    return {name: _built_in(name) for name in BUILT_IN} | _from_plugins()


def _built_in(name: str) -> Command:
    module = import_module(BUILT_IN[name])
    details = (module.__doc__ or "").partition("\n")[2].strip().replace("``", "")
    return Command(module.SUMMARY, module.USAGE, module.run, details)


def _from_plugins() -> dict[str, Command]:
    return {name: found for name, found in plugin_commands().items() if name not in BUILT_IN}
