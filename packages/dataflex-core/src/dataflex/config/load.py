"""Reading the user's YAML or JSON with its ``key=value`` overrides, as LLaMA-Factory does, and splitting it in two.

The same file means the same here and there: numbers of LLaMA-Factory's keys are read as LLaMA-Factory reads them. No
torch is loaded.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dataflex.config.arguments import DataflexArguments
from dataflex.config.overrides import overridden
from dataflex.config.resolved import NOTES, VERSIONS
from dataflex.config.text import everywhere, parse_json, parse_yaml, require_plain
from dataflex.core.errors import ConfigError, InvalidConfigError, Problem
from dataflex.core.files import CONFIG
from dataflex.utils.secret_values import remember, revealed

_SECTIONS = frozenset({"params", *DataflexArguments.names()})


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

    config = read_mapping(path, llamafactory=True)
    if Path(path).name == CONFIG and VERSIONS not in config:
        raise ConfigError(
            f"{path}: the file does not end with {VERSIONS}, as a run writes it: it was cut off -> restore it, or give "
            "a file of your own another name"
        )
    try:
        plain: Any = config
        for text in overrides:
            plain = overridden(plain, text)
        plain = OmegaConf.to_container(OmegaConf.create(plain))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {error} -> a literal '${{' is written '\\${{'") from error
    require_plain(plain, str(path))  # overrides reach into mappings
    return with_secrets({str(key): value for key, value in plain.items()}, "")


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


def read_mapping(path: str | Path, llamafactory: bool = False) -> dict[Any, Any]:
    """Returns the mapping that a YAML or JSON file holds; an empty YAML file is an empty mapping.

    Args:
        path: The file.
        llamafactory: Whether its keys may be LLaMA-Factory's, whose numbers are read as LLaMA-Factory reads them.

    Raises:
        ConfigError: It is missing, malformed, or holds something else.
    """
    content = read_file(path, llamafactory)
    if content is None and Path(path).suffix.lower() != ".json":
        return {}
    if not isinstance(content, dict):
        found = type(content).__name__
        raise ConfigError(f"{path}: the file holds a {found}, not a mapping -> write one 'key: value' per line")
    return content


def read_file(path: str | Path, llamafactory: bool = False) -> Any:
    """Returns what a YAML or JSON file holds, whatever it is; None for an empty YAML file.

    Every file that a user writes is read here.

    Raises:
        ConfigError: It is missing or malformed.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".yaml", ".yml", ".json"):
        raise ConfigError(f"{path}: the file type is not known -> name it .yaml, .yml or .json")
    text = read_text(path)
    if suffix == ".json":
        return parse_json(text, str(path))
    return parse_yaml(text, str(path), _ours if llamafactory else everywhere)


def read_text(path: str | Path) -> str:
    """Returns the text of a file.

    Raises:
        ConfigError: It is missing, no regular file (a pipe would keep everyone waiting), or not UTF-8.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise ConfigError(f"{path}: it is a pipe or a device, not a file -> write what it gives to a file")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        what = f"{path}: there is no such file (looked in {path.absolute().parent})"
        raise ConfigError(f"{what} -> give the path of one that is there") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror} -> give a file that you may read") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8 -> save the file as UTF-8") from error
    except ConfigError:
        raise
    except ValueError:
        raise ConfigError(f"{str(path)!r}: the path holds a NUL character -> remove it") from None


def _ours(path: tuple[str, ...]) -> bool:
    """Whether a path of keys is dataflex's in a file whose other keys are LLaMA-Factory's."""
    return not _SECTIONS.isdisjoint(path)
