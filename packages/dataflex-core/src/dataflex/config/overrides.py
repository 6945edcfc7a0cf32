"""``key=value`` on the command line, over the configuration of a file.

The key may reach into mappings (``component.focus=low``), and so into the axes of a composed run, however they are
written there: ``order.params.window=8`` makes a mapping of ``order: NAME``, and ``selector.0.keep=0.3`` is for the
first of a list.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dataflex.config.axis_keys import AXES, COMPONENT
from dataflex.config.text import parse_yaml, shortened
from dataflex.core.errors import ConfigError
from dataflex.utils.secret_values import is_secret

_PART = re.compile(r"[^\s.\[\]{}()'\"=,:;\0][^.\[\]{}'\"\0]*(?<!\s)")  # of a key, between dots
_SHARES = ("init_mixture_proportions", "objective_proportions")
_KEY_OR_ADDRESS = re.compile("[:@]")


def overridden(config: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Returns a configuration with an override applied.

    Args:
        config: Plain values.
        text: ``key=value``.

    Raises:
        ConfigError: It cannot be read, or reaches into what has no such place.
    """
    key, value = parse_override(text)
    axis, *rest = key.split(".")
    if axis in _SHARES and rest and isinstance(config.get(axis), list | tuple):
        raise ConfigError(f"override '{key}=...': {axis} is a list of numbers -> write {axis}={{NAME: SHARE, ...}}")
    if axis in _SHARES and not rest:  # a mapping takes the place of a list, and of the names of another mapping
        return {**config, axis: value}
    if axis not in AXES or not rest:
        return dict(_merged(config, text))
    return {**config, axis: _reached(config.get(axis), rest, value, text)}


def _merged(config: Any, text: str) -> Any:
    from omegaconf import OmegaConf  # here, as for reading the file

    return OmegaConf.to_container(OmegaConf.merge(OmegaConf.create(config), OmegaConf.from_cli([text])))


def _reached(given: Any, rest: list[str], value: Any, text: str) -> Any:
    """Returns what stands under an axis, changed at a place in it."""
    key, _, raw = text.partition("=")
    if not rest[0].isdecimal():
        if isinstance(given, list | tuple):
            axis, first = key.split(".")[0], ".".join(["0", *rest])
            raise ConfigError(f"override '{key}=...': {axis} is a list of {len(given)} -> write {axis}.{first}=...")
        return _part(given, f"{'.'.join(rest)}={raw}", key)
    items = [] if given is None else list(given) if isinstance(given, list | tuple) else [given]
    number, *inside = int(rest[0]), *rest[1:]
    if number > len(items):
        what = f"there are {len(items)} under {key.split('.')[0]}, counted from 0"
        raise ConfigError(f"override '{key}=...': {what} -> write a number up to {len(items)}, which adds one")
    items[number:] = [items[number] if number < len(items) else None, *items[number + 1 :]]
    items[number] = _part(items[number], f"{'.'.join(inside)}={raw}", key) if inside else value
    alone = len(items) == 1 and not isinstance(given, list | tuple)
    return items[0] if alone else items


def _part(given: Any, text: str, key: str) -> Any:
    """Returns a part as a mapping, with the override in it."""
    if given is not None and not isinstance(given, str | Mapping):
        raise ConfigError(f"override '{key}=...': it reaches into {given!r:.80} -> give a name or a mapping there")
    return _merged({COMPONENT: given} if isinstance(given, str) else given or {}, text)


def parse_override(text: str) -> tuple[str, Any]:
    """Returns key and value of ``key=value``; the key may reach into mappings, as in ``a.b=1``.

    Raises:
        ConfigError: It is none, or the value is malformed. A secret is not repeated.
    """
    key, equals, value = text.partition("=")
    shown = f"{key}=..." if is_secret(key) else shortened(text)
    if not equals or not key.strip() or key.startswith("-"):
        raise ConfigError(
            f"override {_quoted(shown)}: expected key=value -> write it as in learning_rate=1e-5, without dashes"
        )
    if not all(map(_PART.fullmatch, key.split("."))):
        meant = ".".join(filter(None, (part.strip(" \t[]'\"") for part in key.split("."))))
        raise ConfigError(
            f"override {_quoted(shown)}: '{key}' is no key: blanks, quotes and brackets do not belong to it -> write "
            f"{meant}=..."
        )
    if _KEY_OR_ADDRESS.search(value):  # in a fragment of a mapping nobody can tell what is a secret
        shown = f"{key}=..."
    try:
        return key, parse_yaml(value, f"override {_quoted(shown)}")
    except ConfigError as error:
        if is_secret(key):  # the message may hold a part of the value
            raise ConfigError(f"override {_quoted(shown)}: the value is malformed YAML -> quote it") from None
        raise ConfigError(str(error) if " -> " in str(error) else f"{error} -> quote it") from error


def _quoted(text: str) -> str:
    return f"'{text}'" if text.isprintable() else repr(text)
