"""What a component class says about itself: summary, parameters and defaults, from its text or from the class.

A class's constructor is read as :mod:`dataflex.core.construct` reads it: while it takes ``**kwargs``, the parameters of
the base class count too, across modules. Where the text does not tell (a computed base, a generated ``__init__``), the
description says so by ``accepts=None`` and nobody draws conclusions from it; the real signature decides at the end.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataflex.core.construct import constructor_parameters, takes_seed
from dataflex.core.injected import INJECTED, OVERRIDABLE, SEED
from dataflex.core.source import Module, SourceNotFoundError, assigned, find_class, module, parse

DRAWS = "draws"  # the attribute of a component class that says whether it draws
MAX_CLASSES = 20  # more than any sane hierarchy has; ends a circle


class Expression(str):
    """The text of a default that is not a literal, such as ``os.cpu_count()``; shown without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True)
class Constructor:
    """An ``__init__`` as text.

    Attributes:
        home: The file that it stands in.
        node: Its syntax tree.
    """

    home: Module
    node: ast.FunctionDef


@dataclass
class Description:
    """A component class as far as it is known.

    Attributes:
        summary: First line of the docstring.
        defaults: Parameters a user may set -> default.
        required: Parameters a user must set.
        accepts: Every name a user may set, or None where it may be anything.
        constants: Literals assigned in the class body, base classes included.
        needs: Objects of the run that the constructor does not do without, such as ``eval_dataset``.
        takes_seed: Whether ``seed`` is a parameter, because the class draws; True where the text does not tell.
        constructors: Those that take the parameters: the class's own and, while it takes ``**kwargs``, those of its
            bases.
    """

    summary: str = ""
    defaults: dict[str, Any] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    accepts: frozenset[str] | None = frozenset()
    constants: dict[str, Any] = field(default_factory=dict)
    needs: frozenset[str] = frozenset()
    constructors: list[Constructor] = field(default_factory=list)
    takes_seed: bool = True

    def add(self, name: str, required: bool, default: Any) -> None:
        """Notes a constructor parameter, unless a subclass has noted it already."""
        if self.accepts is not None and (name not in INJECTED or name in OVERRIDABLE):
            self.accepts |= {name}
        if name in INJECTED and required:
            self.needs |= {name}
        if name in INJECTED or name in self.defaults or name in self.required:
            return
        if required:
            self.required += (name,)
        else:
            self.defaults[name] = default


def describe(target: str) -> Description:
    """Returns the description of ``module:Class`` from its source file, importing nothing.

    Raises:
        SourceNotFoundError: The class's text cannot be found.
    """
    name, _, attribute = target.partition(":")
    found = find_class(module(name), attribute.strip())
    if found is None:
        raise SourceNotFoundError(f"module {name} defines no class {attribute}")
    return describe_node(*found)


def describe_class(cls: type) -> Description:
    """Returns the description of a class that has been imported already."""
    description = Description(summary=_first_line(vars(cls).get("__doc__")))
    parameters, anything = constructor_parameters(cls)
    for name, parameter in parameters.items():
        description.add(name, parameter.default is parameter.empty, parameter.default)
    if anything:
        description.accepts = None
    description.takes_seed = takes_seed(cls, parameters)
    if description.takes_seed and description.accepts is not None:
        description.accepts |= {SEED}
    said = [pair for base in reversed(cls.__mro__) for pair in vars(base).items()]
    description.constants = {k: v for k, v in said if isinstance(v, bool | str) and not k.startswith("__")}
    description.constructors = _constructors_of(cls)
    return description


def _constructors_of(cls: type) -> list[Constructor]:
    """Returns the constructors of a class from its file, as far as that tells."""
    file = inspect.getsourcefile(cls) if cls.__module__ in sys.modules else None
    if file is None or "." in cls.__qualname__:
        return []
    try:
        home = parse(Path(file), cls.__module__)
    except SourceNotFoundError:
        return []
    found = find_class(home, cls.__name__)
    return describe_node(*found).constructors if found is not None else []


def describe_node(home: Module, node: ast.ClassDef) -> Description:
    """Returns the description of a class whose syntax tree is at hand."""
    description = Description(summary=_first_line(ast.get_docstring(node)))
    looking, kwargs = True, False  # for parameters; whether a **kwargs has been met on the way up
    for where, cls in _with_bases(home, node):
        if cls is None:
            description.accepts = None if looking else description.accepts
            _add_seed(description, certain=False)
            return description
        for statement in cls.body:
            _add_constant(description, statement)
        init = next((n for n in cls.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        if looking and any("dataclass" in ast.unparse(d) for d in cls.decorator_list):
            description.accepts, looking = None, False
        if looking and init is not None:
            _add_parameters(description, where, init.args)
            description.constructors.append(Constructor(where, init))
            kwargs = init.args.kwarg is not None and not _is_ours(where)
            looking = kwargs
    if looking and kwargs:
        description.accepts = None
    _add_seed(description, certain=True)
    return description


def _add_seed(description: Description, certain: bool) -> None:
    """Notes whether ``seed`` may be set: the constructor names it, or the class is a component that draws."""
    accepts, draws = description.accepts, description.constants.get(DRAWS, not certain)
    if accepts is not None and draws is True:
        description.accepts = accepts | {SEED}
    description.takes_seed = draws is True or (accepts is not None and SEED in accepts)


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0].strip()


def _with_bases(home: Module, node: ast.ClassDef) -> Iterator[tuple[Module, ast.ClassDef | None]]:
    """Yields the class and its bases as Python looks names up: a base that several have, behind all of these.

    ``(module, None)`` stands for a base that cannot be followed, and ends it.
    """
    found = list(_depth_first(home, node))
    last = {id(cls): place for place, (_, cls) in enumerate(found) if cls is not None}
    yield from (item for place, item in enumerate(found) if last.get(id(item[1]), place) == place)


def _depth_first(home: Module, node: ast.ClassDef) -> Iterator[tuple[Module, ast.ClassDef | None]]:
    """Yields the class and its bases, depth first, a base as often as it is named; ``(module, None)`` as above."""
    queue: list[tuple[Module, ast.expr | ast.ClassDef]] = [(home, node)]
    seen = 0
    while queue:
        where, item = queue.pop(0)
        if isinstance(item, ast.Name) and item.id in {"object", "ABC", "Protocol"}:
            continue
        if isinstance(item, ast.expr):
            found = find_class(where, item.id) if isinstance(item, ast.Name) else None
            if found is None or seen == MAX_CLASSES:
                yield where, None
                return
            where, item = found
        seen += 1
        yield where, item
        queue[:0] = [(where, base) for base in item.bases]


def _add_parameters(description: Description, home: Module, arguments: ast.arguments) -> None:
    positional = [*arguments.posonlyargs, *arguments.args]
    missing: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    pairs = list(zip(positional, [*missing, *arguments.defaults], strict=True))[1:]  # without self
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    for argument, default in pairs:
        description.add(argument.arg, default is None, None if default is None else _value(default, home))


def _is_ours(home: Module) -> bool:
    """Whether the class is one of core's interfaces: the ``**kwargs`` of those hold nothing."""
    return home.name.startswith("dataflex.")


def _value(node: ast.expr, home: Module) -> Any:
    if isinstance(node, ast.Name):  # a constant of the module
        pairs = [pair for pair in map(assigned, home.statements()) if pair is not None]
        constants = dict(pairs)
        node = constants.get(node.id, node)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError):
        return Expression(ast.unparse(node))


def _add_constant(description: Description, statement: ast.stmt) -> None:
    pair = assigned(statement)
    if pair is not None and isinstance(pair[1], ast.Constant):
        description.constants.setdefault(pair[0], pair[1].value)
