"""Keys: names that nobody knows, and the types and ranges of dataflex's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dataflex.config.arguments import (
    COMPOSED,
    MIXTURE_UNITS,
    SAMPLE_RULES,
    TRAIN_TYPES,
    WEIGHT_LOGITS,
    WEIGHT_OBJECTIVES,
    DataflexArguments,
)
from dataflex.config.axis_keys import AXES, BY, OVER, keys_of, parse_axis
from dataflex.config.checks.parsed_config import find_path, names_in
from dataflex.config.checks.ranges import MOST_STEPS
from dataflex.config.known_keys import argument_sources, enabled, llamafactory_keys, readable_keys
from dataflex.config.mixture_sources import parse_mixture_by, parse_shares
from dataflex.config.text import is_decimal, shortened, unprintable
from dataflex.core.errors import Problem, nearest
from dataflex.core.kinds import KINDS, ORDER
from dataflex.discovery.catalog import components

_CHOICES = {
    "train_type": TRAIN_TYPES,
    "mixture_sample_rule": SAMPLE_RULES,
    "mixture_unit": MIXTURE_UNITS,
    "weight_objective": WEIGHT_OBJECTIVES,
    "weight_logits": WEIGHT_LOGITS,
}
_LEAST = {"warmup_step": 0, "update_step": 0, "update_times": -1, "train_step": 0}
_MOST_EXPLAINED = 1024
_TEXTS = ("component_name", "components_cfg_file", "mixture_embedding")
KIND_KEYS = frozenset(name for kind in KINDS for name in (kind.name, kind.section))
"""What people write as a key of a run where they mean the component."""


def unknown_keys(theirs: Mapping[str, Any]) -> list[Problem]:
    """Returns a problem for each key that neither dataflex nor the installed LLaMA-Factory has.

    ``ALLOW_EXTRA_ARGS`` lets unknown keys pass, as it does in LLaMA-Factory, unless one looks like a key of dataflex.
    Without LLaMA-Factory that is all that can be told: none of its keys is a misspelt one of ours.
    """
    known, ours = llamafactory_keys(), set(DataflexArguments.names())
    if known is None:
        return _misspelt(theirs, ours) if argument_sources() else []
    problems = []
    for key in theirs:
        if key in known:
            continue
        hint = nearest(key, ours | known)
        if enabled("ALLOW_EXTRA_ARGS") and not any(f"'{name}'" in hint for name in ours):
            continue
        if (component := of_component(key, theirs[key])) is not None:
            problems.append(component)
            continue
        what = "neither dataflex nor the installed LLaMA-Factory has this key"
        problems.append(Problem(key, what, hint or "remove it, or set ALLOW_EXTRA_ARGS=1 if LLaMA-Factory needs it"))
    return problems


def _misspelt(theirs: Mapping[str, Any], ours: set[str]) -> list[Problem]:
    """Returns a problem for each key that transformers does not have and that is meant for dataflex.

    It names a kind of component, or is one of dataflex's but for a letter or two.
    """
    problems = []
    for key in theirs:
        if key in readable_keys():
            continue
        if key in KIND_KEYS and (meant := of_component(key, theirs[key])) is not None:
            problems.append(meant)
        elif hint := nearest(key, ours):
            problems.append(Problem(key, "there is no such key", hint))
    return problems


def of_component(key: str, value: Any) -> Problem | None:
    """Returns a problem where an unknown key is meant for the component: ``selector.tau=1``, or ``focus: low``."""
    if key in KIND_KEYS:
        singular = next(kind.name for kind in KINDS if key in (kind.name, kind.section))
        what = f"there is no such key; presets of {singular}s stand in a components_cfg_file"
        return Problem(key, what, f"write {singular}: NAME with train_type: {COMPOSED}, or component_name: NAME")
    takers = [info for info in components() if key in {*info.parameters, *info.required}]
    if not takers:
        return None
    names = ", ".join(f"the {info.kind.name} '{info.name}'" for info in takers)
    return Problem(key, f"is no key of a run; it is a parameter of {names}", f"write component: {{{key}: ...}}")


def parse_arguments(ours: Mapping[str, Any], folder: Path) -> tuple[DataflexArguments, list[Problem]]:
    """Returns dataflex's keys, paths made absolute, and what is wrong with them; a wrong key keeps its default."""
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    for key, value in ours.items():
        if value is None:
            continue
        if key in AXES:
            values[key], found = _axis(key, value, ours.get("train_type", "static"), folder)
            problems += found
            continue
        parsed = _parse(key, value, folder)
        if isinstance(parsed, Problem):
            problems.append(parsed)
        else:
            values[key] = parsed
    return DataflexArguments(**values), problems


def _axis(key: str, value: Any, train_type: Any, folder: Path) -> tuple[Any, list[Problem]]:
    """Returns the parts of an axis, and what is wrong; with a short form there are none, but ``by`` and ``over``."""
    if train_type == COMPOSED or train_type not in TRAIN_TYPES:
        return parse_axis(key, value, folder)
    kind = AXES[key]
    if kind is ORDER and train_type == kind.train_type and isinstance(value, Mapping):
        others = [str(name) for name in value if name not in (BY, OVER)]
        part, problems = parse_axis(key, {name: value[name] for name in value if name in (BY, OVER)}, folder)
        what = f"with train_type: {train_type} the order is component_name, and here stand {BY} and {OVER} alone"
        way_out = f"set train_type: {COMPOSED} and remove component_name, or write component_name and component"
        return part, [*problems, *(Problem(f"{key}.{name}", what, way_out) for name in others)]
    first = next(iter(value), "") if isinstance(value, Mapping) else ""
    if kind.train_type == train_type and first and first not in keys_of(kind):
        way_out = f"write component.{first}=..."
    elif kind.train_type == train_type:
        way_out = f"write component_name: NAME, or set train_type: {COMPOSED}"
    else:
        way_out = f"set train_type: {COMPOSED}, with a key for each axis, or remove it"
    return None, [Problem(key, f"is a key of train_type: {COMPOSED}, and train_type is {train_type}", way_out)]


def _parse(key: str, value: Any, folder: Path) -> Any:
    if key in _CHOICES:
        allowed = " | ".join(_CHOICES[key])
        hint = nearest(str(value), _CHOICES[key]) or "use one of these"
        return value if value in _CHOICES[key] else Problem(key, f"found {value!r}, allowed: {allowed}", hint)
    if key in _LEAST:
        return _integer(key, value, _LEAST[key])
    if key == "explain_rows":
        what = f"found {shortened(repr(value))}, allowed: a whole number from 0 to {_MOST_EXPLAINED}"
        whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_EXPLAINED
        return value if whole else Problem(key, what, "write 16, which is the default, or 0 to explain none")
    if key == "static_mix":
        way_out = "remove the quotes" if isinstance(value, str) else "write true or false"
        return value if isinstance(value, bool) else Problem(key, f"found {value!r}, allowed: true | false", way_out)
    if key in _TEXTS:
        if not isinstance(value, str) or not value.strip():
            return Problem(key, f"found {value!r}, allowed: a text", "quote it, or remove the key")
        if unprintable(value):
            return Problem(key, f"found {value!r}, which holds {unprintable(value)}", "remove it")
        return str(find_path(value, folder)) if key == "components_cfg_file" else value
    if key == "plugins":
        return _plugins(value, folder)
    if key == "component":
        return _parameters(value)
    if key == "mixer_eval_dataset":
        names = tuple(names_in(value))
        return names or Problem(key, f"found {value!r}, allowed: one dataset per dataset, in order", "write [a, b]")
    if key == "mixture_by":
        return parse_mixture_by(value, folder)
    return parse_shares(key, value)


def _parameters(value: Any) -> Mapping[str, Any] | Problem:
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return dict(value)
    way_out = "write component: {name: value}, or component.name=value on the command line"
    return Problem("component", f"found {value!r}, allowed: a mapping from parameters to values", way_out)


def _integer(key: str, value: Any, least: int) -> int | Problem:
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        if value <= MOST_STEPS:
            return value
        what = f"found {shortened(repr(value))}, allowed: a whole number from {least} to {MOST_STEPS}"
        return Problem(key, what, "write a smaller number")
    meaning = "0 means no steps" if least == 0 else "-1 means until train_step or the epochs are done"
    below = isinstance(value, int | float) and not isinstance(value, bool) and value < least
    quoted = isinstance(value, str) and is_decimal(value.strip())
    way_out = meaning if below else "remove the quotes" if quoted else "write a whole number in digits, such as 10"
    return Problem(key, f"found {value!r}, allowed: a whole number, {least} or more", way_out)


def _plugins(value: Any, folder: Path) -> tuple[str, ...] | Problem:
    files = [value] if isinstance(value, str) else value
    if not isinstance(files, list | tuple) or not all(isinstance(f, str) and f for f in files):
        return Problem("plugins", f"found {value!r}, allowed: a list of Python files", "write plugins: [selector.py]")
    broken = next((why for f in files if (why := unprintable(f))), "")
    if broken:
        return Problem("plugins", f"found {value!r}, which holds {broken}", "remove it")
    paths = [find_path(f, folder) for f in files]
    other = next((path for path in paths if path.exists() and not path.is_file()), None)
    if other is not None:  # a pipe would keep everyone waiting who reads it
        return Problem("plugins", f"{other} is no file: a folder, a pipe or a device", "name a Python file")
    return tuple(_once(paths))


def _once(files: Iterable[Path]) -> Iterator[str]:
    """Yields each file once, by the path that stands first, whichever other paths lead to it too."""
    seen = set()
    for file in files:
        known = (file.stat().st_dev, file.stat().st_ino) if file.exists() else file
        if known not in seen:
            seen.add(known)
            yield str(file)
