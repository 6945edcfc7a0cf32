"""From the text of a file or an override to plain values: one reader for everything that a user writes.

OmegaConf makes the values because LLaMA-Factory uses it: ``1e-5`` is a number and ``2024-01-01`` is a text here and
there. Before that, the text itself is looked at, for what a parser reads without a word and nobody means: a key that
stands twice, another type than those of JSON (``!!binary``, ``!!python/name``), a number that YAML 1.1 and 1.2 read
differently (``010``, ``1_0``, ``0x10``, ``1:30``), lists in lists without end, and characters that no file can hold.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

from dataflex.core.errors import ConfigError
from dataflex.utils.secret_values import is_secret, masked

DEEPEST = 64
"""Lists and mappings in each other, at most: far more than anyone writes, far less than recursion can follow."""
MOST = 1_000_000
"""Values of a file, at most, aliases followed: a short text can stand for more than any memory holds."""

_YAML = "tag:yaml.org,2002:"
_TAGS = frozenset(_YAML + name for name in ("str", "int", "float", "bool", "null", "seq", "map", "merge"))
_DECIMAL = re.compile(
    r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_SHOWN = 60  # characters of what a user wrote, in a message

Strict = Callable[[tuple[str, ...]], bool]
"""Whether numbers must be decimal below a path of keys."""


def everywhere(path: tuple[str, ...]) -> bool:
    """Every number must be decimal."""
    return True


def parse_yaml(text: str, where: str, strict: Strict = everywhere) -> Any:
    """Returns what a YAML text holds, as OmegaConf reads it; interpolations stay texts.

    Args:
        text: The text.
        where: The file or the override, for messages.
        strict: Where numbers must be decimal.

    Raises:
        ConfigError: With the line.
    """
    from omegaconf import OmegaConf  # here, because it takes a quarter of a second and `version` needs none of it
    from omegaconf.errors import OmegaConfBaseException

    try:
        root = yaml.compose(text, Loader=_Loader)
        if root is not None:
            _look_at(root, where, strict)
        alone = isinstance(root, yaml.ScalarNode)  # OmegaConf takes a file of one word for a key
        made = OmegaConf.from_dotlist([f"value={text}"]) if alone else OmegaConf.load(io.StringIO(text))
        plain: Any = OmegaConf.to_container(made)
    except RecursionError:
        raise ConfigError(_too_deep(where)) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}{_line(error)}: malformed YAML: {_reason(error)} -> {_way_out(error)}") from error
    except ConfigError:
        raise
    except OmegaConfBaseException as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{where}: malformed YAML: {reason} -> a literal '${{' is written '\\${{'") from error
    except ValueError as error:
        raise ConfigError(f"{where}: {_too_long(error)}") from error
    if root is None:
        return None
    content = plain["value"] if alone else plain
    require_plain(content, where)
    return content


def parse_json(text: str, where: str) -> Any:
    """Returns what a JSON text holds.

    Raises:
        ConfigError: With the line, or the key that stands twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ConfigError(f"{where}: found duplicate key {twice} -> remove one of the two")
        return found

    try:
        content = json.loads(text, object_pairs_hook=unique)
    except RecursionError:
        raise ConfigError(_too_deep(where)) from None
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{where}, line {error.lineno}: malformed JSON: {error.msg} -> repair it there, or write YAML"
        ) from error
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{where}: {_too_long(error)}") from error
    require_plain(content, where)
    return content


def require_plain(content: Any, where: str) -> None:
    """Refuses values that are nested too deeply, and texts that no path and no file can hold.

    Raises:
        ConfigError: Naming the key.
    """
    waiting: list[tuple[Any, tuple[str, ...]]] = [(content, ())]
    while waiting:
        value, path = waiting.pop()
        if len(path) > DEEPEST:
            raise ConfigError(_too_deep(where))
        if isinstance(value, dict):
            for key, item in value.items():
                _require_text(str(key), where, path)
                waiting.append((item, (*path, str(key))))
        elif isinstance(value, list | tuple):
            waiting += [(item, (*path, str(i))) for i, item in enumerate(value)]
        elif isinstance(value, str):
            _require_text(value, where, path)


def is_decimal(text: str) -> bool:
    """Returns whether a text is a number as it is written here."""
    return _DECIMAL.fullmatch(text) is not None


def unprintable(text: str) -> str:
    """Returns why a text can stand in no path and no file, or an empty string: a NUL, or half of a character."""
    if "\0" in text:
        return "a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "half of a character (a lone surrogate)"
    return ""


def shortened(text: str) -> str:
    """Returns the beginning of what a user wrote, for a message."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _require_text(text: str, where: str, path: tuple[str, ...]) -> None:
    found = unprintable(text)
    if found:
        key = f": {'.'.join(path)}" if path else ""
        shown = shortened(str(masked(text, *path)))
        what = f"the text {shown!r} holds {found}, which no path and no file can hold"
        raise ConfigError(f"{where}{key}: {what} -> remove it")


class _Loader(yaml.SafeLoader):
    """Makes nodes. A date is a text, as OmegaConf has it; so a node is a date where ``!!timestamp`` says so."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, expression) for tag, expression in resolvers if not tag.endswith((":timestamp", ":value"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _look_at(root: yaml.Node, where: str, strict: Strict) -> None:
    """Refuses what stands in the text and cannot be told from the values that it gives."""
    seen = 0
    waiting: list[tuple[yaml.Node, tuple[str, ...]]] = [(root, ())]
    while waiting:
        node, path = waiting.pop()
        seen += 1
        if len(path) > DEEPEST:  # a list that holds itself has no end either
            raise ConfigError(_too_deep(where))
        if seen > MOST:
            raise ConfigError(f"{where}: it stands for more than {MOST} values -> write less, or without aliases")
        place = f"{where}, line {node.start_mark.line + 1}"
        if node.tag not in _TAGS:
            tag = node.tag.replace(_YAML, "!!")
            raise ConfigError(f"{place}: the tag {tag} is not known here -> quote the value, or leave the tag out")
        if isinstance(node, yaml.ScalarNode):
            if strict(path) and _is_other_number(node):
                shown = "a number" if any(map(is_secret, path)) else shortened(node.value)
                raise ConfigError(f"{place}: {_other_number(_key(path), shown)}")
        else:
            if isinstance(node, yaml.MappingNode):
                _require_text_keys(node, where, path)
            waiting += _children(node, path)


def _require_text_keys(node: yaml.MappingNode, where: str, path: tuple[str, ...]) -> None:
    """Refuses ``null:``, and ``on:``, which is true, as keys; so is a list. A number is a name for many."""
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag.endswith((":null", ":bool")):
            found = key.value if isinstance(key, yaml.ScalarNode) else "a list or a mapping"
            read = f", which YAML reads as {key.tag.rpartition(':')[2]}" if isinstance(key, yaml.ScalarNode) else ""
            raise ConfigError(
                f"{where}, line {key.start_mark.line + 1}: {_key(path)}found {shortened(found) or 'nothing'} as a key"
                f"{read}; keys must be texts -> quote it, or write another one"
            )


def _other_number(key: str, text: str) -> str:
    """Returns what is wrong with a number that is not decimal."""
    return (
        f"{key}found {text}, allowed: decimal numbers, as in 10, 0.5 and 1e-5 (010, 0x10, 1_0 and 1:30 do not mean the "
        "same to all who read YAML) -> write it in digits, or quote it where a text is meant"
    )


def _key(path: tuple[str, ...]) -> str:
    return f"{'.'.join(path)}: " if path else ""


def _is_other_number(node: yaml.ScalarNode) -> bool:
    return node.tag.endswith((":int", ":float")) and not is_decimal(node.value)


def _children(node: yaml.Node, path: tuple[str, ...]) -> Iterator[tuple[yaml.Node, tuple[str, ...]]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key, (*path, "")
            yield value, (*path, str(key.value) if isinstance(key, yaml.ScalarNode) else "")
    elif isinstance(node, yaml.SequenceNode):
        yield from ((value, (*path, str(i))) for i, value in enumerate(node.value))


def _too_long(error: ValueError) -> str:
    """Returns what is wrong with a number of thousands of digits; Python's advice is for programs."""
    return f"{str(error).partition(';')[0]} -> write a smaller number, or quote it"


def _too_deep(where: str) -> str:
    return f"{where}: it is nested too deeply to be read (more than {DEEPEST} levels) -> write it flatter"


def _way_out(error: yaml.YAMLError) -> str:
    reason = _reason(error)
    if "duplicate key" in reason:
        return "remove one of the two"
    if "another document" in reason or "single document" in reason:
        return "write one document, without '---' inside it"
    return "repair the line, or quote the value"


def _line(error: yaml.YAMLError) -> str:
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    return f", line {mark.line + 1}" if mark is not None else ""


def _reason(error: yaml.YAMLError) -> str:
    problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else None
    return problem or str(error).partition("\n")[0]
