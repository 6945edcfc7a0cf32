"""What a constructor would refuse, known before the component is imported.

A constructor says what it allows in calls of :func:`~dataflex.core.parameter_checks.require`; that of a base class, in
an assignment from :func:`~dataflex.core.parameter_checks.stated`. Those calls are read from its text, and each of their
arguments that needs nothing but the user's parameters, the constants and functions of its file, and light modules (see
:mod:`dataflex.discovery.text_values`) is evaluated. An argument that needs an object of the run, such as the dataset,
is left to the constructor. Of the sources of the run the names are known: they stand for ``dataset`` and
``mixture_manager`` where those are asked for ``names`` alone.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dataflex.core.errors import DataflexError, InvalidConfigError, Problem
from dataflex.core.named_sources import NamedSources
from dataflex.core.parameter_checks import require, stated
from dataflex.discovery.describe import Constructor
from dataflex.discovery.injected import INJECTED
from dataflex.discovery.text_values import evaluated, text_names

_OF_SOURCES = ("dataset", "mixture_manager")
_UNKNOWN = object()
# What an object of the run that is not there, or is known by its names alone, leads to.
_NOT_KNOWN = (
    NameError, AttributeError, TypeError, ValueError, LookupError, ArithmeticError, AssertionError, ImportError,
    OSError, RuntimeError,
)  # fmt: skip


class _Names(dict[str, Any]):
    """Names at a place in a constructor. What is not known raises a NameError, as a name that is not there.

    Args:
        known: What is known here.
        above: Where other names are looked up.
        hidden: Names that have no value here, whatever they are elsewhere.
        later: Name -> expression that is evaluated, with the names of ``above``, when it is asked for.
    """

    def __init__(
        self,
        known: Mapping[str, Any],
        above: dict[str, Any],
        hidden: frozenset[str] = frozenset(),
        later: Mapping[str, ast.expr] | None = None,
    ) -> None:
        super().__init__(known)
        self._above, self._hidden, self._later = above, hidden, later or {}

    def __missing__(self, name: str) -> Any:
        if name in self._hidden:
            raise NameError(name)
        if name in self._later:
            self[name] = evaluated(self._later[name], self._above)
            return self[name]
        return self._above[name]


def stated_problems(
    constructors: Sequence[Constructor], params: Mapping[str, Any], sources: Sequence[str] | None = None
) -> list[Problem]:
    """Returns what the constructors would say of the parameters, each under the parameter's name.

    Args:
        constructors: Those that take them, the class's own first.
        params: What the user configured.
        sources: The names of the run's sources, for a component that knows its rows by source; None where they are not
            known.
    """
    found: list[Problem] = []
    taken: set[str] = set()
    for constructor in constructors:
        names = _names_in(constructor, params, taken, sources)
        found += _walked(constructor.node.body, names)
        handed = _handed_on(constructor.node)
        params = dict(params) | {name: names[name] for name in handed - params.keys() if _is_known(name, names)}
        taken |= {argument.arg for argument in _arguments(constructor.node)} - (handed & params.keys())
    return list(dict.fromkeys(found))


def _names_in(
    constructor: Constructor, params: Mapping[str, Any], taken: set[str], sources: Sequence[str] | None
) -> _Names:
    """Returns the names at the beginning of a constructor: its parameters, then those of its file.

    A parameter that a derived class has too (``taken``) may be given anything by it, unless it hands the value on.
    """
    arguments = [argument.arg for argument in _arguments(constructor.node)]
    known = {name: params[name] for name in arguments if name in params and name not in taken}
    defaults = {name: value for name, value in _defaults(constructor.node) if name not in taken | INJECTED | set(known)}
    if sources is not None:
        known |= {name: NamedSources(sources) for name in _OF_SOURCES if name in arguments}
    hidden = {"self", *arguments} - known.keys() - defaults.keys()
    return _Names(known, text_names(constructor.home), frozenset(hidden), defaults)


def _walked(body: Sequence[ast.stmt], names: _Names) -> Iterator[Problem]:
    for statement in body:
        match statement:
            case ast.Expr(value=ast.Call() as call):
                if _is_name(call.func) and _value(call.func, names) is require:
                    for argument in call.args[1:]:
                        yield from _problems(argument, names)
            case ast.Assign(value=ast.Call() as call) | ast.AnnAssign(value=ast.Call() as call) if _states(call, names):
                for argument in call.args:
                    yield from _problems(argument, names)
                names = _after(statement, names)
            case ast.If() if _requires(statement):
                test = _value(statement.test, names)
                if test is not _UNKNOWN:
                    yield from _walked(statement.body if test else statement.orelse, names)
                names = _after(statement, names)
            case _:
                names = _after(statement, names)


def _after(statement: ast.stmt, names: _Names) -> _Names:
    """Returns the names behind a statement: what it assigns is evaluated when somebody asks for it."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        match statement.targets[0], statement.value:
            case ast.Name(id=name), value:
                return _Names({}, names, later={name: value})
            case ast.Tuple(elts=targets), ast.Tuple(elts=values) if len(targets) == len(values):
                pairs = zip(targets, values, strict=True)
                return _Names({}, names, later={t.id: v for t, v in pairs if isinstance(t, ast.Name)})
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value is not None:
        return _Names({}, names, later={statement.target.id: statement.value})
    stored = {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return _Names({}, names, frozenset(stored)) if stored else names


def _problems(argument: ast.expr, names: _Names) -> list[Problem]:
    starred = isinstance(argument, ast.Starred)
    try:
        value = evaluated(argument.value if isinstance(argument, ast.Starred) else argument, names)
        items = list(value) if starred else [value]
    except InvalidConfigError as error:
        return list(error.problems)
    except DataflexError as error:
        return [Problem("", str(error))]
    except _NOT_KNOWN:  # it needs what is not there yet, or stumbles over it: the constructor is asked later
        return []
    return [item for item in items if isinstance(item, Problem)]


def _value(expression: ast.expr, names: _Names) -> Any:
    """Returns the value of an expression, or _UNKNOWN."""
    try:
        return evaluated(expression, names)
    except _NOT_KNOWN:  # as above
        return _UNKNOWN


def _is_name(expression: ast.expr) -> bool:
    """Whether it is a name, or names with dots between them: to look one up runs nothing."""
    return isinstance(expression, ast.Name) or (isinstance(expression, ast.Attribute) and _is_name(expression.value))


def _states(call: ast.Call, names: _Names) -> bool:
    """Whether it is a call of ``stated``; other functions are not looked up."""
    return _is_name(call.func) and ast.unparse(call.func).endswith("stated") and _value(call.func, names) is stated


def _requires(statement: ast.If) -> bool:
    return any(
        isinstance(node, ast.Call) and ast.unparse(node.func).endswith("require") for node in ast.walk(statement)
    )


def _arguments(node: ast.FunctionDef) -> list[ast.arg]:
    return [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs][1:]  # without self


def _is_known(name: str, names: _Names) -> bool:
    try:
        names[name]
    except _NOT_KNOWN:  # as above
        return False
    return True


def _handed_on(node: ast.FunctionDef) -> set[str]:
    """Returns the parameters that a constructor hands on as they are: ``super().__init__(name=name)``."""
    calls = [s.value for s in node.body if isinstance(s, ast.Expr) and isinstance(s.value, ast.Call)]
    keywords = [k for call in calls if ast.unparse(call.func) == "super().__init__" for k in call.keywords]
    handed = {k.arg for k in keywords if k.arg and isinstance(k.value, ast.Name) and k.value.id == k.arg}
    return handed - {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def _defaults(node: ast.FunctionDef) -> Iterator[tuple[str, ast.expr]]:
    positional = [*node.args.posonlyargs, *node.args.args]
    if node.args.defaults:
        pairs = zip(positional[-len(node.args.defaults) :], node.args.defaults, strict=True)
        yield from ((argument.arg, default) for argument, default in pairs)
    for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        if default is not None:
            yield argument.arg, default
