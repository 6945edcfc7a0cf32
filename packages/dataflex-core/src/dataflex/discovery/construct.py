"""Building a component: the user's parameters and the run's objects meet the constructor's parameter names.

Nothing is dropped silently. A user parameter that the constructor does not have is an error. An object of the run is
passed to the constructors that name it. With ``**kwargs``, the base class's parameters are accepted too. The
``**kwargs`` of dataflex's own base classes hold nothing; a class of somebody else's that keeps ``**kwargs`` to the top
takes anything.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from dataflex.core.errors import (
    BrokenPluginError,
    DataflexError,
    InvalidConfigError,
    Problem,
    listed,
    nearest,
    not_exiting,
)
from dataflex.discovery.injected import DRAWS_NOTHING, INJECTED, OVERRIDABLE, SEED, wrong_override
from dataflex.utils.secret_values import masked, remember, scrubbed


def construct(cls: type, params: Mapping[str, Any], runtime: Mapping[str, object]) -> object:
    """Returns ``cls(...)`` with the user's ``params`` and those objects of ``runtime`` that it names.

    Args:
        cls: The component class.
        params: What the user configured; wins over ``runtime`` for ``seed``, ``cache_dir`` and ``output_dir``. A
            ``seed`` that the constructor does not name goes to ``Component.bind``.
        runtime: Objects of the run by parameter name.

    Raises:
        ConfigError: Unknown or missing parameters, all in one message; or what the constructor itself refuses.
        BrokenPluginError: The constructor raised anything else.
        ComponentError: The constructor tried to end the process.
    """
    parameters, anything = constructor_parameters(cls)
    given = {name: value for name, value in params.items() if name != SEED or SEED in parameters}
    arguments = {name: value for name, value in runtime.items() if name in parameters} | given
    problems = _unknown(cls, params, parameters, anything)
    problems += [
        Problem(cls.__name__, f"the parameter '{name}' has no default and no value", _how_to_give(name))
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and name not in arguments
    ]
    if problems:
        raise InvalidConfigError(problems)
    try:
        with not_exiting(f"the constructor of {cls.__module__}.{cls.__qualname__}"):
            return cls(**arguments)
    except DataflexError:  # the component says itself what is wrong
        raise
    except Exception as error:  # any constructor of a third party: name it, keep the cause
        remember(params)
        raise BrokenPluginError(
            f"{cls.__module__}.{cls.__qualname__} could not be constructed: {type(error).__name__}: "
            f"{scrubbed(str(error))} (with the parameters {masked(params) or 'at their defaults'})"
        ) from error


def constructor_parameters(cls: type) -> tuple[dict[str, inspect.Parameter], bool]:
    """Returns the named constructor parameters up the MRO, and whether other names are accepted as well."""
    found: dict[str, inspect.Parameter] = {}
    kwargs = False
    for base in cls.__mro__:
        init = vars(base).get("__init__")
        if init is None or base is object:
            continue
        own = list(inspect.signature(init).parameters.values())[1:]  # without self
        for parameter in own:
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                found.setdefault(parameter.name, parameter)
        kwargs = any(p.kind is p.VAR_KEYWORD for p in own) and not base.__module__.startswith("dataflex.")
        if not kwargs:
            break
    return found, kwargs


def takes_seed(cls: type, parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Returns whether a ``seed`` among the user's parameters changes what the class draws.

    Its constructor names it, or it is a component that draws: then :meth:`~dataflex.core.component.Component.bind`
    hands it the seed.
    """
    from dataflex.core.component import Component  # here: listing components must not import NumPy

    return SEED in parameters or (issubclass(cls, Component) and cls.draws)


def _unknown(
    cls: type, params: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter], anything: bool
) -> list[Problem]:
    allowed = {name for name in parameters if name not in INJECTED or name in OVERRIDABLE}
    problems = []
    seeded = takes_seed(cls, parameters)
    for name, value in params.items():
        wrong = wrong_override(name, value)
        if name == SEED and not seeded:
            problems.append(Problem(cls.__name__, DRAWS_NOTHING, f"remove '{name}' from params"))
        elif wrong is not None and (name in parameters or anything or name == SEED):
            problems.append(Problem(f"{cls.__name__}: {name}", wrong, f"remove '{name}' from params for the run's own"))
        elif name in INJECTED and name not in OVERRIDABLE:
            problems.append(Problem(cls.__name__, f"'{name}' is given by dataflex", f"remove '{name}' from params"))
        elif name not in allowed and name != SEED and not anything:
            hint = nearest(name, allowed) or "remove it from params"
            problems.append(Problem(cls.__name__, f"no parameter '{name}'; allowed: {listed(allowed)}", hint))
    return problems


def _how_to_give(name: str) -> str:
    if name in INJECTED:
        return f"this run has no '{name}' to give; choose another component or train_type"
    return f"give '{name}' under params in the components file"
