"""``dataflex_config.yaml``: the run as it was resolved, in a form that ``dataflex-cli train`` takes again."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from dataflex.config.spec import RunSpec
from dataflex.core.errors import ConfigError
from dataflex.core.secret_values import masked
from dataflex.run.files import COMPONENTS, CONFIG, replacing

VERSIONS = "dataflex_versions"  # a key of the file that is read back only to be compared
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
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def resolved(spec: RunSpec, components_file: Path) -> dict[str, Any]:
    """Returns the merged configuration: dataflex's keys, LLaMA-Factory's keys as the user wrote them, the versions.

    Secrets are placeholders, see :mod:`dataflex.core.secret_values`.
    """
    ours = spec.arguments.to_dict() | {"train_type": spec.arguments.train_type}
    if spec.component is not None:
        ours |= {"component_name": spec.component.preset, "components_cfg_file": str(components_file)}
    written: dict[str, Any] = masked(ours | dict(spec.llamafactory))
    return written | {VERSIONS: installed_versions()}


def write_config(spec: RunSpec, output_dir: str) -> None:
    """Writes ``dataflex_config.yaml`` and, where there is a component, ``dataflex_components.yaml``. On one rank."""
    folder = Path(output_dir).absolute()
    if spec.component is not None:
        component = spec.component
        entry = {component.preset: {"name": component.name, "params": masked(component.params)}}
        _write_yaml(folder / COMPONENTS, {component.kind.section: entry})
    _write_yaml(folder / CONFIG, resolved(spec, folder / COMPONENTS))


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
    return content


def _write_yaml(path: Path, value: dict[str, Any]) -> None:
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        yaml.safe_dump(value, file, sort_keys=False, allow_unicode=True, explicit_end=True)
