"""The process's life-cycle plugins: those of installed packages and those in the configuration's plugin files."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from functools import cache
from importlib.metadata import EntryPoint
from typing import Any

import pluggy

from dataflex.core import hookspecs
from dataflex.core.entry_points import entry_points
from dataflex.core.errors import BrokenPluginError, ComponentError, blaming, not_exiting
from dataflex.discovery.plugin_files import import_plugin_file, module_name, plugin_file

DISABLE = "DATAFLEX_DISABLE_PLUGINS"


@cache
def plugin_manager() -> pluggy.PluginManager:
    """Returns the plugin manager with every installed hook package loaded, in the order of their names.

    Names listed in the environment variable ``DATAFLEX_DISABLE_PLUGINS``, separated by commas, stay out. pluggy calls
    the plugin registered last first.

    Raises:
        BrokenPluginError: A hook package cannot be imported, or implements a hook that does not exist.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    for name in filter(None, map(str.strip, os.environ.get(DISABLE, "").split(","))):
        manager.set_blocked(name)
    for point in sorted(entry_points(group=hookspecs.PROJECT), key=lambda p: p.name):
        if not manager.is_blocked(point.name):
            _load(manager, point)
    return manager


def load_plugin_files(paths: Sequence[str]) -> None:
    """Imports the files that ``plugins:`` names; their ``@register_*`` classes and hooks are known afterwards.

    A file that is loaded already is left alone, so that every entry into a run may call this.

    Raises:
        ConfigError: A file is missing or is not a ``.py`` file.
        BrokenPluginError: It raised while it was imported; the message holds file and line.
        ComponentError: It tried to end the process.
    """
    manager = plugin_manager()
    for file in map(plugin_file, paths):
        name = module_name(file)
        if name not in sys.modules:
            import_plugin_file(file)
        if not manager.has_plugin(name):
            _register(manager, sys.modules[name], name, f"in {file}", "remove it from plugins: in the YAML")


def call_hook(name: str, **arguments: Any) -> list[Any]:
    """Calls a hook of every plugin and returns their answers. On every rank that calls it.

    Args:
        name: The hook, one of :mod:`dataflex.core.hookspecs`.
        **arguments: What it gets.

    Raises:
        ComponentError: A plugin raised, or tried to end the process; the message names it and the hook.
    """
    manager = plugin_manager()
    caller: pluggy.HookCaller = vars(manager.hook)[name]
    try:
        answers: list[Any] = caller(**arguments)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may raise anything: find out whose it is, then say so
        with blaming(f"{_who_raised(caller, error)} in {name}"):
            raise
    return answers


def _who_raised(caller: pluggy.HookCaller, error: BaseException) -> str:
    """Returns the plugin whose function the error came through; pluggy does not say."""
    seen = {frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)}
    for found in caller.get_hookimpls():
        if found.function.__code__ in seen:
            return f"the plugin '{found.plugin_name}'"
    return "a plugin"


def _load(manager: pluggy.PluginManager, point: EntryPoint) -> None:
    package = point.dist.name if point.dist is not None else point.value
    way_out = f"leave it out: {DISABLE}={point.name}"
    try:
        with not_exiting(f"the plugin '{point.name}' of the package {package}, imported from {point.value},"):
            plugin = point.load()
    except ComponentError:
        raise
    except Exception as error:  # a third party's module may raise anything at import: name it, keep the cause
        raise BrokenPluginError(
            f"the plugin '{point.name}' of the package {package} cannot be loaded from {point.value}: "
            f"{type(error).__name__}: {error} -> repair it, or {way_out}"
        ) from error
    _register(manager, plugin, point.name, f"of the package {package}", way_out)


def _register(manager: pluggy.PluginManager, plugin: object, name: str, origin: str, way_out: str) -> None:
    try:
        manager.register(plugin, name=name)
        manager.check_pending()  # a hook nobody will ever call is a misspelt one
    except (pluggy.PluginValidationError, ValueError) as error:  # ValueError: the name is taken
        if manager.is_registered(plugin):
            manager.unregister(plugin)
        raise BrokenPluginError(f"the plugin '{name}' {origin}: {error} -> repair it, or {way_out}") from error
