"""Every component of the installed packages: parameters with default and meaning, what it needs, what it costs."""

from __future__ import annotations

import griffe
from dataflex.core import registry
from dataflex.core.kinds import KINDS, Kind
from dataflex.discovery.catalog import ComponentInfo, components

from generated.markdown import one_line, prose, table
from generated.sources import class_of

TEXT = """# Components

Every component of this project, as `dataflex-cli list` finds them. The guides have the mathematics, examples and
limits: [selectors](../selectors.md), [mixers](../mixers.md), [orders](../orders.md), [weighters](../weighters.md).
[Papers](../papers.md) has the sources. A component takes its parameters under `component:` of the run, in its axis
(`selector: {component: less, params: {...}}`), in a components file, or as `params` from Python.

"""
_FLAGS = {
    "replacement": "A row may be chosen twice.",
    "weighs": "Its rows may carry weights.",
    "reads_batches": "It tells the rows of a batch apart, so a collator that flattens rows or makes pairs is refused.",
    "takes_seen": "It uses losses that training has seen; they are kept in memory and in checkpoints.",
    "needs_sizes": "It needs the sizes of the sources, which streams do not have.",
    "reads_hidden_states": "It reads the model's hidden states.",
}
"""Declaration of a component's class -> what it means where it is True."""


def page() -> str:
    """Returns the page."""
    text = TEXT
    for kind in KINDS:
        found = sorted(
            (info for info in components([kind]) if info.name in registry.official(kind)), key=lambda i: i.name
        )
        text += f"\n## {kind.section.capitalize()}\n\n"
        rows = [(f"[`{info.name}`](#{_anchor(info)})", prose(info.summary), info.package) for info in found]
        text += table(("name", "what it does", "package"), rows)
        text += "".join(_section(kind, info) for info in found)
    return text


def _anchor(info: ComponentInfo) -> str:
    return f"{info.kind.name}-{info.name}"


def _section(kind: Kind, info: ComponentInfo) -> str:
    (point,) = registry.providers(kind, info.name)
    cls = class_of(point.value)
    guide = f"[guide](../{kind.section}.md#{info.name})"
    text = f"\n### `{info.name}` {{ #{_anchor(info)} }}\n\n{prose(info.summary)} ({guide})\n\n"
    meanings = _meanings(cls)
    rows = [(f"`{name}`", "required", meanings[name]) for name in info.required]
    rows += [(f"`{name}`", f"`{_shown(default)}`", meanings[name]) for name, default in info.parameters.items()]
    text += table(("parameter", "default", "meaning"), rows) if rows else "It has no parameters.\n"
    text += f"\n* **Costs**: {_cost(cls)}\n"
    if info.needs:
        text += f"* **Needs**: {', '.join(f'`{name}`' for name in sorted(info.needs))}\n"
    text += "".join(f"* {said}\n" for name, said in _FLAGS.items() if info.constants.get(name) is True)
    draws = "It draws random numbers, and takes a `seed`." if info.takes_seed else "It draws nothing."
    return text + f"* {draws}\n"


def _meanings(cls: griffe.Class) -> dict[str, str]:
    """Returns parameter -> meaning, from the docstrings of the class and of its bases; the nearest one counts."""
    meanings: dict[str, str] = {}
    for each in [cls, *cls.mro()]:
        sections = each.docstring.parse("google", warnings=False) if each.docstring else []
        for section in sections:
            if section.kind is griffe.DocstringSectionKind.parameters:
                for parameter in section.value:
                    meanings.setdefault(parameter.name, prose(one_line(parameter.description)))
    return meanings


def _cost(cls: griffe.Class) -> str:
    """Returns the first sentence of what says the cost of an update."""
    for each in [cls, *cls.mro()]:
        method = each.members.get("cost")
        if method is not None and method.docstring is not None:
            said = prose(one_line(method.docstring.value.partition("\n\n")[0]))
            return said.partition(" See the base")[0] if each.name != "Component" else "not told beforehand."
    raise ValueError(f"{cls.path} has no cost")


def _shown(default: object) -> str:
    if isinstance(default, bool) or default is None:
        return {True: "true", False: "false", None: "null"}[default]
    return str(list(default)) if isinstance(default, tuple) else str(default)
