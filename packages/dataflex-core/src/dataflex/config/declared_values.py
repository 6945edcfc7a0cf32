"""What the installed LLaMA-Factory and transformers declare of the value of each key, read from their source text.

Types come from the annotations of the argument dataclasses, choices from ``Literal``, from the Enum classes that
annotations name, and from ``metadata``. Some choices stand elsewhere: the templates that are registered, the
integrations that ``report_to`` may name. A YAML is given to these classes without any conversion (``parse_dict``), so
what is declared is what must stand in the file; the few that convert in ``__post_init__`` are told from there.
Nothing is imported. What cannot be read is left open: such a key is not checked.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from dataflex.config.known_keys import argument_sources, declarations
from dataflex.core.source import Module, SourceNotFoundError, assigned, find_class, module

_TYPES = {
    "int": "int", "float": "float", "bool": "bool", "str": "str", "Path": "str", "list": "list", "List": "list",
    "dict": "dict", "Dict": "dict", "None": "none",
}  # fmt: skip
OPEN = "open"
"""A type that cannot be told: anything may stand there."""

_WORDS = {"fsdp": "FSDPOption"}
"""Key -> the Enum of its words; transformers 5.24 takes them as ever and declares a text."""


@dataclass(frozen=True)
class Declared:
    """What is declared of one key.

    Attributes:
        types: Of ``int``, ``float``, ``bool``, ``str``, ``list``, ``dict``, ``none``, ``open``.
        choices: What a text may be; empty where any text may stand there.
        words: Whether a text is some of the choices, with blanks between them.
        split: Whether a list may stand in the place of names with commas between them.
    """

    types: frozenset[str]
    choices: tuple[str, ...] = ()
    words: bool = False
    split: bool = False

    def __or__(self, other: Declared) -> Declared:
        """Returns what either allows."""
        listed = "list" in self.types ^ other.types and bool(self.choices or other.choices)
        return Declared(self.types | other.types, self.choices + other.choices, self.words or other.words or listed)


@cache
def declared_value(key: str) -> Declared | None:
    """Returns what is declared of a key; None where that cannot be told."""
    found = _fields().get(key)
    if found is None:
        return None
    home, statement = found
    declared = _with_metadata(home, statement, _of(home, statement.annotation))
    if key in _WORDS and "list" not in declared.types and (choices := _enum(home, _WORDS[key])):
        declared |= Declared(frozenset({"list"}), choices)
    split = key in _split(home)
    return Declared(declared.types, declared.choices, declared.words, split)


@cache
def _fields() -> Mapping[str, tuple[Module, ast.AnnAssign]]:
    return {ast.unparse(field.target): (home, field) for home in argument_sources() for field in declarations(home)}


@cache
def templates() -> tuple[str, ...]:
    """Returns the templates that LLaMA-Factory registers; empty where they cannot be told."""
    try:
        tree = module("llamafactory.data.template").tree
    except SourceNotFoundError:
        return ()
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _called(node) == "register_template"]
    names = [k.value for call in calls for k in call.keywords if k.arg == "name"]
    return tuple(name.value for name in names if isinstance(name, ast.Constant) and isinstance(name.value, str))


@cache
def integrations() -> tuple[str, ...]:
    """Returns what ``report_to`` may name; empty where that cannot be told."""
    return _and_more("transformers.integrations.integration_utils", "INTEGRATION_TO_CALLBACK", "all", "none")


@cache
def log_levels() -> tuple[str, ...]:
    """Returns what ``log_level`` may be; empty where that cannot be told."""
    return _and_more("transformers.utils.logging", "log_levels", "passive")


def _and_more(name: str, table: str, *more: str) -> tuple[str, ...]:
    """Returns the keys of a dict in a module, then ``more``; empty where the module or the dict is not found."""
    try:
        names = _keys(module(name), table)
    except SourceNotFoundError:
        return ()
    return (*names, *more) if names else ()


def _with_metadata(home: Module, statement: ast.AnnAssign, declared: Declared) -> Declared:
    """Returns what is declared, with the choices of ``field(metadata={"choices": ...})`` where there are any."""
    _, value = assigned(statement) or ("", None)
    metadata = [k.value for k in value.keywords if k.arg == "metadata"] if isinstance(value, ast.Call) else []
    for entry in metadata:
        if isinstance(entry, ast.Dict):
            for name, choices in zip(entry.keys, entry.values, strict=True):
                if isinstance(name, ast.Constant) and name.value == "choices":
                    return Declared(declared.types, _choices(home, choices))
    return declared


def _of(home: Module, annotation: ast.expr) -> Declared:
    """Returns what an annotation allows."""
    match annotation:
        case ast.Constant(value=None):
            return Declared(frozenset({"none"}))
        case ast.Constant(value=str(text)):
            return _of(home, ast.parse(text, mode="eval").body)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _of(home, left) | _of(home, right)
        case ast.Subscript(value=container, slice=inside):
            return _of_subscript(home, _last(container), inside)
    name = _last(annotation)
    if name in _TYPES:
        return Declared(frozenset({_TYPES[name]}))
    choices = _enum(home, name)
    return Declared(frozenset({"str"}), choices) if choices else Declared(frozenset({OPEN}))


def _of_subscript(home: Module, container: str, inside: ast.expr) -> Declared:
    parts = inside.elts if isinstance(inside, ast.Tuple) else [inside]
    if container == "Literal":
        values = [part.value for part in parts if isinstance(part, ast.Constant)]
        types = {_TYPES.get("None" if value is None else type(value).__name__, OPEN) for value in values}
        return Declared(frozenset(types), tuple(value for value in values if isinstance(value, str)))
    if container in ("Union", "Optional"):
        declared = Declared(frozenset({"none"} if container == "Optional" else ()))
        for part in parts:
            declared |= _of(home, part)
        return declared
    kind = _TYPES.get(container, OPEN)
    return Declared(frozenset({kind}), _enum(home, _last(parts[0])) if kind == "list" else ())


def _enum(home: Module, name: str) -> tuple[str, ...]:
    """Returns the values of an Enum of texts; empty where the name is something else."""
    found = find_class(home, name)
    if found is None or not any("Enum" in ast.unparse(base) for base in found[1].bases):
        return ()
    values = [pair[1] for statement in found[1].body if (pair := assigned(statement)) is not None]
    return tuple(value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str))


def _choices(home: Module, expression: ast.expr) -> tuple[str, ...]:
    """Returns the choices of ``metadata``: a list, or the keys of a mapping of the module; empty where unknown."""
    if isinstance(expression, ast.List | ast.Tuple):
        values = [part.value for part in expression.elts if isinstance(part, ast.Constant)]
        return tuple(value for value in values if isinstance(value, str))
    if isinstance(expression, ast.Call) and isinstance(expression.func, ast.Attribute):
        return _keys(home, _last(expression.func.value))
    return ()


def _keys(home: Module, name: str) -> tuple[str, ...]:
    """Returns the keys of a mapping that a module writes out; empty where it is made in another way."""
    for statement in home.statements():
        pair = assigned(statement)
        if pair is not None and pair[0] == name and isinstance(pair[1], ast.Dict):
            keys = [key.value for key in pair[1].keys if isinstance(key, ast.Constant)]
            return tuple(key for key in keys if isinstance(key, str))
    return ()


@cache
def _split(home: Module) -> frozenset[str]:
    """Returns the fields that ``__post_init__`` splits at commas unless they are lists."""
    calls = [node for node in ast.walk(home.tree) if isinstance(node, ast.Call) and _called(node) == "split_arg"]
    return frozenset(call.args[0].attr for call in calls if isinstance(call.args[0], ast.Attribute))


def _called(node: ast.Call) -> str:
    return _last(node.func)


def _last(node: ast.expr) -> str:
    """Returns ``c`` of ``a.b.c``."""
    if isinstance(node, ast.Constant) and node.value is None:
        return "None"
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
