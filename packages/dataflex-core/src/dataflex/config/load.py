"""Reading the user's YAML or JSON with its ``key=value`` overrides, as LLaMA-Factory does, and splitting it in two.

OmegaConf does the parsing because LLaMA-Factory uses it: the same file means the same here and there (``1e-5`` is a
number, a duplicate key is an error, an override is parsed as YAML). It loads no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dataflex.config.arguments import DataflexArguments
from dataflex.core.errors import ConfigError, InvalidConfigError, Problem
from dataflex.core.secret_values import is_secret, remember, revealed
from dataflex.run.config_file import NOTES, VERSIONS
from dataflex.run.files import CONFIG


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the configuration in the file, with the overrides applied.

    Args:
        path: A ``.yaml``, ``.yml`` or ``.json`` file.
        overrides: ``key=value``; the value is YAML, ``a.b=1`` reaches into a mapping.

    Raises:
        ConfigError: With the file and the line, or the override, that cannot be read; or with the secrets that the
            file leaves to the environment, where that does not have them.
    """
    from omegaconf import OmegaConf  # here, because it takes a quarter of a second and `version` needs none of it
    from omegaconf.errors import OmegaConfBaseException

    config = read_mapping(path)
    if Path(path).name == CONFIG and VERSIONS not in config:
        raise ConfigError(
            f"{path}: the file does not end with {VERSIONS}, as a run writes it: it was cut off -> restore it, or give "
            "a file of your own another name"
        )
    try:
        merged = OmegaConf.merge(OmegaConf.create(config), *map(_override, overrides))
        plain = OmegaConf.to_container(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {error} -> a literal '${{' is written '\\${{'") from error
    return with_secrets({str(key): value for key, value in plain.items()}, "")  # type: ignore[union-attr]  # a mapping


def with_secrets(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns a configuration with the secrets that its file leaves to the environment.

    Args:
        content: What the file says, overrides applied.
        where: What stands before each key in messages.

    Raises:
        InvalidConfigError: Naming each key, and the variable that it can be given by.
    """
    found, missing = revealed(content)
    if missing:
        raise InvalidConfigError(
            [
                Problem(f"{where}{key}", "this secret is not kept in the file", f"give it again, or set {variable}")
                for key, variable in dict.fromkeys(missing)
            ]
        )
    remember(found)
    return dict(found)


def split(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns ``(ours, llamafactory's)``: dataflex's keys and every other one, in their order.

    The package versions and the run that ``dataflex_config.yaml`` notes belong to neither.
    """
    names = set(DataflexArguments.names())
    ours = {key: value for key, value in config.items() if key in names}
    return ours, {key: value for key, value in config.items() if key not in names and key not in NOTES}


def read_mapping(path: str | Path) -> dict[Any, Any]:
    """Returns the mapping that a YAML or JSON file holds; an empty YAML file is an empty mapping.

    Raises:
        ConfigError: It is missing, malformed, or holds something else.
    """
    path = Path(path)
    readers: dict[str, Callable[[str], Any]] = {".yaml": _parse_yaml, ".yml": _parse_yaml, ".json": json.loads}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(f"{path}: the file type is not known -> name it .yaml, .yml or .json")
    try:
        content = reader(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file (looked in {path.absolute().parent})") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except RecursionError:
        raise ConfigError(f"{path}: it is nested too deeply to be read") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8 -> save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}, line {error.lineno}: malformed JSON: {error.msg}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}{_line(error)}: malformed YAML: {_reason(error)}") from error
    if content is None and path.suffix.lower() != ".json":
        return {}
    if not isinstance(content, dict):
        found = type(content).__name__
        raise ConfigError(f"{path}: the file holds a {found}, not a mapping -> write one 'key: value' per line")
    return content


def _parse_yaml(text: str) -> Any:
    import io

    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        content = OmegaConf.load(io.StringIO(text))
    except OmegaConfBaseException as error:
        raise yaml.YAMLError(str(error)) from error
    plain = OmegaConf.to_container(content)
    words_only = isinstance(plain, dict) and bool(plain) and ":" not in text  # which OmegaConf takes for a key
    return text.strip() if words_only else plain


def _override(text: str) -> Any:
    from omegaconf import OmegaConf

    key, equals, _ = text.partition("=")
    if not equals or not key.strip() or key.startswith("-"):
        shown = f"{key}=..." if is_secret(key) else text
        raise ConfigError(
            f"override '{shown}': expected key=value -> write it as in learning_rate=1e-5, without dashes"
        )
    try:
        return OmegaConf.from_cli([text])
    except yaml.YAMLError as error:
        shown = f"{key}=..." if is_secret(key) else text
        raise ConfigError(f"override '{shown}': the value is malformed YAML: {_reason(error)} -> quote it") from error


def _line(error: yaml.YAMLError) -> str:
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    return f", line {mark.line + 1}" if mark is not None else ""


def _reason(error: yaml.YAMLError) -> str:
    problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else None
    return problem or str(error).partition("\n")[0]
