"""``dataflex_config.yaml``: the run as it was resolved, in a form that ``dataflex-cli train`` takes again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import yaml

from dataflex.config.axis_keys import BY, COMPONENT, EVERY, FROM, KEEP, OVER, PARAMS
from dataflex.config.spec import Part, RunSpec, begins
from dataflex.config.summary import in_words
from dataflex.config.variables import escaped
from dataflex.core.errors import ConfigError
from dataflex.core.files import COMPONENTS, CONFIG, replacing
from dataflex.core.kinds import SELECTOR
from dataflex.discovery.installed import version_of
from dataflex.utils.secret_values import masked

VERSIONS = "dataflex_versions"
RUN = "dataflex_run"
NOTES = frozenset({VERSIONS, RUN})  # keys of the file that are no part of the configuration: read back to be compared
DOES = "does"  # of a run: what it does, in words
END = "..."  # of a YAML document: a file without it was cut off
PACKAGES = (
    "dataflex-core",
    "dataflex-selectors",
    "dataflex-mixers",
    "dataflex-weighters",
    "llamafactory",
    "transformers",
    "accelerate",
    "peft",
    "torch",
)

_WAY_OUT = "restore it, choose another output_dir, or set overwrite_output_dir: true to start anew"


def installed_versions() -> dict[str, str]:
    """Returns package -> version of those of :data:`PACKAGES` that are installed."""
    found = {package: version_of(package) for package in PACKAGES}
    return {package: version for package, version in found.items() if version is not None}


def resolved(spec: RunSpec, components_file: Path) -> dict[str, Any]:
    """Returns the merged configuration: dataflex's keys, LLaMA-Factory's keys as the user wrote them, the versions.

    Secrets are placeholders, see :mod:`dataflex.utils.secret_values`.
    """
    ours = spec.arguments.to_dict() | {"train_type": spec.arguments.train_type}
    if spec.component is not None:
        ours.pop("component", None)  # among the parameters in the components file
        ours |= {"component_name": spec.component.preset}
    if spec.axes:
        ours |= {"components_cfg_file": str(components_file), **_parts(spec)}
    written: dict[str, Any] = masked(ours | dict(spec.llamafactory))
    return written | {VERSIONS: installed_versions()}


def _parts(spec: RunSpec) -> dict[str, Any]:
    """Returns the keys of the axes, each part with all of its parameters: two may be of one preset."""
    parts = [_part(part, spec) for part in spec.parts]
    found: dict[str, Any] = {part.component.kind.name: given for part, given in zip(spec.parts, parts, strict=True)}
    selectors = [given for part, given in zip(spec.parts, parts, strict=True) if part.component.kind is SELECTOR]
    if isinstance(spec.arguments.selector, tuple):
        found[SELECTOR.name] = selectors
    return found


def _part(part: Part, spec: RunSpec) -> dict[str, Any]:
    component = part.component
    given = {
        COMPONENT: component.preset,
        PARAMS: escaped(dict(component.params)) or None,
        EVERY: part.every if part.every != 1 else None,
        FROM: part.start if part.start != begins(component.kind, spec.arguments) else None,
        KEEP: part.keep,
        BY: part.by,
        OVER: part.over,
    }
    return {key: value for key, value in given.items() if value is not None}


def _components(spec: RunSpec) -> dict[str, Any]:
    """Returns the components file of a run: presets with the names behind them, and of a short form the parameters."""
    sections: dict[str, dict[str, Any]] = {}
    for part in spec.axes:
        component = part.component
        entry: dict[str, Any] = {"name": component.name}
        if spec.component is not None:
            entry["params"] = escaped(masked(component.params))
            entry |= {key: value for key, value in ((BY, component.by), (OVER, component.over)) if value is not None}
        sections.setdefault(component.kind.section, {})[component.preset] = entry
    return sections


@dataclass(frozen=True)
class RecordedRun:
    """What the file says of the run that wrote it.

    Attributes:
        id: The run; None where it was begun by a version of dataflex that gave runs no id.
        finished: Global steps of the whole run, once they are done and its results saved; None until then.
        files: Name -> (bytes, time of the last change in nanoseconds) of the files that were saved as its results.
    """

    id: str | None
    finished: int | None = None
    files: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def write_config(spec: RunSpec, output_dir: str, run: str) -> None:
    """Writes ``dataflex_config.yaml`` and, where there are components, ``dataflex_components.yaml``. On one rank."""
    folder = Path(output_dir).absolute()
    if spec.axes:
        _write_yaml(folder / COMPONENTS, _components(spec))
    config = resolved(spec, folder / COMPONENTS)
    versions = config.pop(VERSIONS)  # last, as by it a file that was cut off is known
    _write_yaml(folder / CONFIG, config | {RUN: {"id": run, DOES: in_words(spec)}, VERSIONS: versions})


def recorded_run(output_dir: str | Path) -> RecordedRun | None:
    """Returns the run that wrote ``dataflex_config.yaml``, or None where there is no such file.

    Raises:
        ConfigError: The file cannot be read.
    """
    path = Path(output_dir) / CONFIG
    if not path.exists():
        return None
    said = written_config(output_dir).get(RUN)
    if said is None:
        return RecordedRun(None)
    match said:
        case {"id": str(run)} if re.fullmatch("[0-9a-f]{16}", run):
            finished, files = said.get("finished"), said.get("files")
            return RecordedRun(run, finished if isinstance(finished, int) else None, _files(files))
    raise ConfigError(f"output_dir: {path} is damaged: {RUN} names no run -> {_WAY_OUT}")


def note_results(output_dir: str | Path, run: str, finished: int | None, files: Mapping[str, tuple[int, int]]) -> None:
    """Notes that a run has saved its results, unless another run has taken its place in the folder. On one rank.

    Args:
        output_dir: The run's folder.
        run: The run.
        finished: See :class:`RecordedRun`; None where it was stopped before its last step.
        files: The files of the results, as in :class:`RecordedRun`.
    """
    recorded = recorded_run(output_dir)
    if recorded is not None and recorded.id == run:
        known = {name: list(stat) for name, stat in files.items()}
        before = written_config(output_dir)
        note = {"id": run, DOES: before[RUN].get(DOES), "finished": finished, "files": known}
        said = {key: value for key, value in note.items() if value is not None}
        _write_yaml(Path(output_dir) / CONFIG, before | {RUN: said})


def _files(said: Any) -> dict[str, tuple[int, int]]:
    """Returns the files of the results; of what is not written as we write it, none."""
    if not isinstance(said, dict):
        return {}
    return {
        name: (known[0], known[1])
        for name, known in said.items()
        if isinstance(name, str) and isinstance(known, list) and len(known) == 2 and Path(name).name == name
    }


def written_config(output_dir: str | Path) -> dict[str, Any]:
    """Returns what :func:`write_config` wrote, secrets masked as they are there.

    Raises:
        ConfigError: The file is damaged.
    """
    path = Path(output_dir) / CONFIG
    try:
        content = masked(yaml.safe_load(path.read_text(encoding="utf-8")))  # endless where it holds itself
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"output_dir: {path} cannot be read: {reason} -> {_WAY_OUT}") from error
    if not isinstance(content, dict) or not content or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"output_dir: {path} is damaged: it holds no keys of a run -> {_WAY_OUT}")
    if RUN in content and VERSIONS not in content:
        raise ConfigError(f"output_dir: {path} is damaged: it was cut off before {VERSIONS} -> {_WAY_OUT}")
    return content


def _write_yaml(path: Path, value: dict[str, Any]) -> None:
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        yaml.safe_dump(_representable(value), file, sort_keys=False, allow_unicode=True, explicit_end=True)


@runtime_checkable
class _OfNumPy(Protocol):
    """A number or an array of NumPy, which is not imported here."""

    def tolist(self) -> Any:
        """Returns it in Python's own types."""


def _representable(value: Any) -> Any:
    """Returns the value as YAML can write it: from Python, a parameter may be of any type."""
    match value:
        case Mapping():
            return {str(key): _representable(item) for key, item in value.items()}
        case list() | tuple():
            return [_representable(item) for item in value]
        case str() | bool() | int() | float() | None:
            return value
        case _OfNumPy():
            return value.tolist()
    return str(value)
