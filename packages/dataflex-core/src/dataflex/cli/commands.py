"""The commands: dataflex's own, each imported when it is used, and those that plugins add."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from importlib import import_module

from dataflex.core.errors import ConfigError, listed, nearest
from dataflex.core.hookspecs import Command
from dataflex.utils.secret_values import masked

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

LLAMAFACTORY = ("api", "chat", "env", "eval", "export", "webchat", "webui")
"""Commands of ``llamafactory-cli`` that dataflex has no part in: what a dynamic run leaves is an ordinary model."""


def command(name: str, argv: Sequence[str] = ()) -> Command:
    """Returns the command of that name; plugins are asked only where dataflex itself has none.

    Args:
        name: The command.
        argv: The arguments that follow it, for the message.

    Raises:
        ConfigError: Nobody has it; the message holds LLaMA-Factory's command line where it is one of theirs, else the
            nearest one.
    """
    if name in BUILT_IN:
        return _built_in(name)
    extra = _from_plugins()
    if name in extra:
        return extra[name]
    if name in LLAMAFACTORY:
        theirs = shlex.join(["llamafactory-cli", name, *map(_shown, argv, ["", *argv])])
        raise ConfigError(f"'{name}' is a command of LLaMA-Factory, not of dataflex -> use {theirs}")
    known = [*BUILT_IN, "help", *extra]
    raise ConfigError(f"no command '{name}'; known: {listed(known)} -> {nearest(name, known) or 'dataflex-cli help'}")


def all_commands() -> dict[str, Command]:
    """Returns every command by name: dataflex's own in the order above, then those of plugins."""
    return {name: _built_in(name) for name in BUILT_IN} | _from_plugins()


def _shown(argument: str, before: str) -> str:
    """Returns an argument as it may be printed: without the value of a secret, which the one before it may name."""
    if before.startswith("-") and "=" not in before:
        return str(masked(argument, before.lstrip("-")))
    key, equals, value = argument.partition("=")
    return f"{key}={masked(value, key)}" if equals else argument


def _built_in(name: str) -> Command:
    module = import_module(BUILT_IN[name])
    details = (module.__doc__ or "").partition("\n")[2].strip().replace("``", "")
    return Command(module.SUMMARY, module.USAGE, module.run, details)


def _from_plugins() -> dict[str, Command]:
    from dataflex.discovery.plugins import call_hook  # here: reading the plugins' metadata is not needed to train

    found: dict[str, Command] = {}
    for commands in call_hook("dataflex_cli_commands"):
        found |= {name: command for name, command in commands.items() if name not in BUILT_IN}
    return dict(sorted(found.items()))
