"""The parameters of a component as the user gave them: known names, and values that its constructor allows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dataflex.config.moved.moved_parameters import known_there
from dataflex.core.errors import Problem, listed, nearest
from dataflex.core.kinds import MIXER, WEIGHTER
from dataflex.discovery.catalog import ComponentInfo
from dataflex.discovery.injected import DRAWS_NOTHING, INJECTED, OVERRIDABLE, SEED, wrong_override
from dataflex.discovery.stated_checks import stated_problems

Given = Mapping[str, tuple[str, Any]]
"""Parameter -> where it stands, for messages, and its value."""

_FIRST_WORD = re.compile(r"\w+")


def name_problems(info: ComponentInfo, given: Given) -> list[Problem]:
    """Returns a problem for each parameter that the component does not have, or that dataflex gives it."""
    problems = []
    subject = f"the {info.kind.name} '{info.name}'"
    for name, (where, value) in given.items():
        wrong = wrong_override(name, value)
        if name in INJECTED - OVERRIDABLE:
            problems.append(Problem(where, f"'{name}' is given to {subject} by dataflex", "remove it"))
        elif name == SEED and not info.takes_seed:
            problems.append(Problem(where, f"{subject}: {DRAWS_NOTHING}", "remove it"))
        elif info.accepts is not None and name not in info.accepts and name != SEED:
            what = f"{subject} has no parameter '{name}'; allowed: {listed(info.accepts)}"
            there = known_there(info.kind.section, info.name, name)
            problems.append(Problem(where, what, there or nearest(name, info.accepts) or "remove it"))
        elif wrong is not None:
            problems.append(Problem(where, wrong, "remove it for the run's own"))
    return problems


def range_problems(
    info: ComponentInfo, given: Given, sources: Sequence[str] | None, place: str = "component"
) -> list[Problem]:
    """Returns what the component's constructor will say of the values, as far as its text tells.

    Args:
        info: The component.
        given: The parameters.
        sources: The names of the run's sources; None where they are not known.
        place: Where the run gives parameters.
    """
    params = {name: value for name, (_, value) in given.items()}
    of_sources = sources if info.kind in (MIXER, WEIGHTER) else None
    return [
        Problem(_where(info, problem.where, given, place), problem.what, problem.way_out)
        for problem in stated_problems(info.constructors, params, of_sources)
    ]


def _where(info: ComponentInfo, key: str, given: Given, run: str) -> str:
    """Returns the place of a problem: that of the parameter which its key begins with, else the component's."""
    word = _FIRST_WORD.match(key)
    if word is not None and word[0] in given:
        place = given[word[0]][0]
        return place + key[len(word[0]) :]
    if key in {*info.parameters, *info.required}:
        return f"{run}.{key}"
    return " of ".join(filter(None, [key, f"the {info.kind.name} '{info.name}'"]))
