"""``dataflex-cli list``: every component that can be used, with its parameters and their defaults.

--kind lists one kind alone; --json prints a list of objects, for programs. A component is used by component_name in the
run's YAML; its parameters are set under component: there, as component.NAME=VALUE, or in a components_cfg_file.
"""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Sequence

from dataflex.core import registry
from dataflex.core.errors import ConfigError, listed, nearest
from dataflex.core.kinds import KINDS, Kind
from dataflex.discovery.catalog import ComponentInfo, components

SUMMARY = "list the installed components with their parameters"
USAGE = f"dataflex-cli list [--kind {'|'.join(kind.name for kind in KINDS)}] [--json]"


def run(argv: Sequence[str]) -> int:
    """Prints the components; what could be installed besides goes to stderr. Returns the exit code."""
    kinds, as_json = _options(list(argv))
    found = components(kinds)
    if as_json:
        sys.stdout.write(json.dumps([_plain(info) for info in found], indent=2, default=str) + "\n")
    elif found:
        sys.stdout.write(table(found, shutil.get_terminal_size((100, 24)).columns))
    sys.stderr.write("".join(f"{line}\n" for line in [*_provided_twice(found), *_not_installed(kinds)]))
    return 0


def table(found: Sequence[ComponentInfo], width: int) -> str:
    """Returns the components as text of at most ``width`` columns where that is possible."""
    rows = [(info.kind.name, info.name, f"{info.package} {info.version}".strip()) for info in found]
    columns = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for info, row in zip(found, rows, strict=True):
        lines.append("  ".join(cell.ljust(size) for cell, size in zip(row, columns, strict=True)).rstrip())
        parameters = [f"{name} (required)" for name in info.required]
        parameters += [f"{name}={value!r}" for name, value in info.parameters.items()]
        for text in (info.summary.replace("``", ""), ", ".join(parameters) or "(no parameters)"):
            lines += textwrap.wrap(text, max(width, 40), initial_indent="    ", subsequent_indent="      ")
    return "\n".join(lines) + "\n"


def _options(argv: list[str]) -> tuple[Sequence[Kind], bool]:
    kinds: Sequence[Kind] = KINDS
    as_json = False
    while argv:
        argument, equals, value = argv.pop(0).partition("=")
        if argument == "--json" and not equals:
            as_json = True
        elif argument == "--kind" and (equals or argv):
            kinds = [_kind(value if equals else argv.pop(0))]
        else:
            raise ConfigError(f"unexpected argument '{argument}' -> {USAGE}")
    return kinds, as_json


def _kind(text: str) -> Kind:
    for kind in KINDS:
        if text in (kind.name, kind.section):
            return kind
    names = [kind.name for kind in KINDS]
    raise ConfigError(f"--kind: found '{text}', allowed: {listed(names)} -> {nearest(text, names) or USAGE}")


def _plain(info: ComponentInfo) -> dict[str, object]:
    return {
        "kind": info.kind.name,
        "name": info.name,
        "package": info.package,
        "version": info.version,
        "summary": info.summary,
        "parameters": info.parameters,
        "required": list(info.required),
    }


def _provided_twice(found: Sequence[ComponentInfo]) -> list[str]:
    """Returns a line for each name that several packages provide."""
    packages: dict[tuple[str, str], list[str]] = {}
    for info in found:
        if info.version:  # files are no packages
            packages.setdefault((info.kind.name, info.name), []).append(info.package)
    return [
        f"{kind} '{name}' is provided by {listed(who)}: write "
        + " or ".join(f"component_name: {package}:{name}" for package in sorted(who))
        for (kind, name), who in packages.items()
        if len(who) > 1
    ]


def _not_installed(kinds: Sequence[Kind]) -> list[str]:
    """Returns a line for each package of this project that would add components of these kinds."""
    missing: dict[str, list[str]] = {}
    for kind in kinds:
        known = set(registry.names(kind))
        for name, package in registry.official(kind).items():
            if name not in known:
                missing.setdefault(package, []).append(f"{kind.name} {name}")
    return [f"not installed: {', '.join(names)} -> pip install {package}" for package, names in missing.items()]
