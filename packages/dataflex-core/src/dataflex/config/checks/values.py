"""The values of LLaMA-Factory's and transformers' keys: type, choice and range of every one of them.

LLaMA-Factory gives a YAML to its dataclasses without converting or checking anything, so a quoted number or a misspelt
choice shows as a traceback once the model is loaded. Types and choices are those that the installed sources declare
(:mod:`dataflex.config.declared_values`), ranges those of :mod:`dataflex.config.checks.ranges`; what LLaMA-Factory takes
beside what it declares stands in the tables here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dataflex.config.checks.model_folders import ADAPTER_KEYS
from dataflex.config.checks.ranges import MOST, STEPS_OR_SHARES, WHOLE_FLOATS, Bounds, bounds
from dataflex.config.declared_values import (
    OPEN,
    Declared,
    declared_value,
    integrations,
    log_levels,
    templates,
)
from dataflex.config.load import read_text
from dataflex.config.null_values import may_be_null
from dataflex.config.text import is_decimal, parse_json, shortened, unprintable
from dataflex.core.errors import ConfigError, Problem, nearest
from dataflex.utils.secret_values import masked

_ALSO: Mapping[str, str] = {
    "dataset_dir": "dict",  # the definitions themselves
    "resume_from_checkpoint": "bool",  # transformers: the newest of output_dir
    "fsdp": "bool",
    "interleave_probs": "numbers",
}
"""Key -> a type that is taken beside the declared ones."""

_NAMES_OR_NUMBERS = frozenset({
    "run_name", "project", "ray_run_name", "swanlab_project", "swanlab_workspace", "swanlab_run_name", "master_port",
    "model_revision", "hub_revision",
})  # fmt: skip
"""Texts that may be a bare number: nothing but a report or an address is made of them."""

_FREE = frozenset({"ddp_backend", "swanlab_mode", "fp8_backend"})
"""Choices that are another library's, which knows more of them than LLaMA-Factory lists."""

_FILES = frozenset({"deepspeed", "fsdp_config", "accelerator_config"})
"""Mappings that may be the name of a JSON file."""

PATHS = frozenset({
    "output_dir", "dataset_dir", "media_dir", "tokenized_path", "cache_dir", "model_name_or_path",
    "adapter_name_or_path", "logging_dir", "offload_folder", "export_dir", "ref_model", "reward_model",
    "resume_from_checkpoint", "profiler_output_dir", "swanlab_logdir", "kt_weight_path", "new_special_tokens_config",
})  # fmt: skip
"""Keys that are paths, or may be."""

_WORDS_OF_YAML = {False: ("no", "off"), True: ("yes", "on")}
_NOUNS = {"int": "a whole number", "float": "a number", "bool": "true | false", "str": "a text", "list": "a list",
          "dict": "a mapping", "numbers": "a list of numbers"}  # fmt: skip


def value_problems(theirs: Mapping[str, Any], plugins: Iterable[str] = ()) -> list[Problem]:
    """Returns a problem for each key whose value LLaMA-Factory cannot take.

    Args:
        theirs: LLaMA-Factory's keys.
        plugins: The user's plugin files, which may register a template.
    """
    found = [_problem(key, value, plugins) for key, value in theirs.items()]
    return [problem for problem in found if problem is not None]


def _problem(key: str, value: Any, plugins: Iterable[str]) -> Problem | None:
    declared = declared_value(key)
    if declared is None or OPEN in declared.types:
        return None
    kind = _kind(value)
    if kind == "none":
        return None if may_be_null(key) else _wrong(key, value, declared, "give a value, or remove the key")
    if kind in ("int", "float") and ("int" in declared.types or "float" in declared.types):
        return _number(key, value, "float" in declared.types)
    if kind == "bool" and "bool" not in declared.types and _ALSO.get(key) != "bool":
        return _wrong(key, value, declared, _unread(value, declared, key))
    if kind == "str" and "str" in declared.types:
        return _text(key, value, declared, plugins)
    if kind == "list" and ("list" in declared.types or declared.split):
        return _list(key, value, declared)
    taken = kind in declared.types or kind == "bool" or _ALSO.get(key) == kind
    taken |= kind == "int" and (("bool" in declared.types and value in (0, 1)) or key in _NAMES_OR_NUMBERS)
    taken |= kind == "float" and key in _NAMES_OR_NUMBERS
    return None if taken else _wrong(key, value, declared, _way_out(key, value, declared))


def _number(key: str, value: float, may_be_float: bool) -> Problem | None:
    """Checks a number; ``val_size`` and steps have rules of their own."""
    limits = bounds(key)
    whole = isinstance(value, int) or (math.isfinite(value) and value == int(value))
    noun = "a number" if may_be_float else "a whole number"
    if not may_be_float and not (whole if key in WHOLE_FLOATS else isinstance(value, int)):
        way_out = f"write {int(value)}" if whole and limits.holds(int(value)) else "write a whole number"
        return Problem(key, f"found {_shown(key, value)}, allowed: {limits.said(noun)}", way_out)
    if isinstance(value, int) and abs(value) > MOST:
        return Problem(key, f"found {_shown(key, value)}, allowed: {limits.said(noun)}", "write a smaller number")
    if key == "val_size" and not _can_hold_out(value):
        what = f"found {value!r}, allowed: 0, a share below 1, or a whole number of rows"
        return Problem(key, what, "write 0.1 for a tenth of the rows, or 100 for so many")
    if key in STEPS_OR_SHARES and value > 1 and not whole and math.isfinite(value):
        return Problem(key, f"found {value!r}, allowed: a share below 1, or whole steps", f"write {round(value)}")
    if limits.holds(value):
        return None
    return Problem(key, f"found {_shown(key, value)}, allowed: {limits.said(noun)}", _within(key, value, limits))


def _can_hold_out(value: float) -> bool:
    if isinstance(value, float) and (not math.isfinite(value) or value == 1.0 or (value > 1 and value != int(value))):
        return False
    return value >= 0


def _within(key: str, value: float, limits: Bounds) -> str:
    if math.isnan(value):
        return "write 0, which does not clip either" if key == "max_grad_norm" else "write a number"
    if math.isinf(value):
        return "write a finite number"
    return "write a number in this range" if limits.most is not None else "write a larger number"


def _text(key: str, value: str, declared: Declared, plugins: Iterable[str]) -> Problem | None:
    broken = unprintable(value)
    if broken:
        return Problem(key, f"found {_shown(key, value)}, which holds {broken}", "remove it")
    if _ALSO.get(key) == "numbers":
        return _numbers(key, value.split(","))
    if "dict" in declared.types:
        return _mapping_as_text(key, value)
    choices = _choices(key, declared, plugins)
    words = value.split() if declared.words else [value]
    wrong = [word for word in words if word not in choices] if choices else []
    if wrong:
        hint = nearest(wrong[0], choices) or ("see LLaMA-Factory's list of templates" if key == "template" else "")
        return Problem(key, f"found {wrong[0]!r}, allowed: {_listed(choices)}", hint or "use one of these")
    return _path(key, value) if key in PATHS else None


def _mapping_as_text(key: str, value: str) -> Problem | None:
    """Checks a text in the place of a mapping: JSON, or the name of a file of it."""
    if value.lstrip().startswith("{"):
        try:
            parse_json(value, "its JSON")
        except ConfigError as error:
            return Problem(key, str(error), "" if " -> " in str(error) else "write a mapping in YAML instead")
        return None
    if not value.strip():
        return None
    if key not in _FILES:
        what = f"found {_shown(key, value)}, allowed: a mapping"
        return Problem(key, what, "write a mapping in YAML, {name: value}, or remove the key")
    if value.endswith(".json") and not Path(value).exists():
        return Problem(key, f"there is no file {value} (looked from {Path.cwd()})", "give the path of a JSON file")
    return _mapping_in_file(key, Path(value)) if Path(value).exists() else None


def _mapping_in_file(key: str, path: Path) -> Problem | None:
    """Checks a file that holds a mapping."""
    way_out = "give the path of a JSON file that holds a mapping"
    if not path.is_file():
        return Problem(key, f"{path} is no file: a folder, a pipe or a device", way_out)
    try:
        content = parse_json(read_text(path), str(path))
    except ConfigError as error:
        return Problem(key, str(error), "" if " -> " in str(error) else "repair the file")
    return None if isinstance(content, dict) else Problem(key, f"{path} holds no mapping", way_out)


def _numbers(key: str, parts: list[str]) -> Problem | None:
    wrong = [part for part in parts if not is_decimal(part.strip())]
    if not wrong:
        return None
    return Problem(key, f"found {_shown(key, wrong[0])}, allowed: numbers, one per dataset", "write 0.7,0.3")


def _path(key: str, value: str) -> Problem | None:
    if value.strip() == "" and key != "logging_dir":
        return Problem(key, f"found {value!r}, allowed: a path", "write one, or remove the key")
    if "${" in value:
        what = f"found {value!r}: variables are not replaced, here or by LLaMA-Factory"
        return Problem(key, what, "write the path itself")
    return None


def _list(key: str, value: list[Any], declared: Declared) -> Problem | None:
    """Checks a list of names; of numbers where the key takes them."""
    if _ALSO.get(key) == "numbers" and all(_kind(item) in ("int", "float") for item in value):
        return None
    if _ALSO.get(key) == "numbers" and all(isinstance(item, str) for item in value):
        return _numbers(key, value)
    wrong = [item for item in value if not isinstance(item, str) or unprintable(item)]
    if wrong:
        return Problem(key, f"found {_shown(key, wrong[0])} in the list, allowed: texts", "quote it")
    choices = _choices(key, declared, ())
    unknown = [item for item in value if choices and item not in choices]
    if not unknown:
        return None
    what = f"found {unknown[0]!r}, allowed: {_listed(choices)}"
    return Problem(key, what, nearest(unknown[0], choices) or "use one of these")


def _choices(key: str, declared: Declared, plugins: Iterable[str]) -> tuple[str, ...]:
    """Returns what a text may be; empty where it may be anything."""
    if key in _FREE:
        return ()
    if key == "template":
        return () if any(map(_registers_a_template, plugins)) else templates()
    if key == "report_to":
        return integrations()
    if key in ("log_level", "log_level_replica"):
        return log_levels()
    return declared.choices


def _registers_a_template(plugin: str) -> bool:
    try:
        return b"register_template" in Path(plugin).read_bytes()
    except (OSError, ValueError):  # whoever loads it says so
        return False


def _wrong(key: str, value: Any, declared: Declared, way_out: str) -> Problem:
    return Problem(key, f"found {_shown(key, value)}, allowed: {_allowed(key, declared)}", way_out)


def _allowed(key: str, declared: Declared) -> str:
    choices = _choices(key, declared, ())
    kinds = [kind for kind in _NOUNS if kind in declared.types or _ALSO.get(key) == kind]
    number = bounds(key).said(_NOUNS["float" if "float" in kinds else "int"])
    words = {"int": number, "float": number} | ({"str": _listed(choices)} if choices else {})
    said = [words.get(kind, _NOUNS[kind]) for kind in kinds]
    if declared.split:
        said.append("a list of texts")
    return ", or ".join(dict.fromkeys(said)) + (", or null" if "none" in declared.types else "")


def _listed(choices: tuple[str, ...]) -> str:
    shown = " | ".join(choices[:12])
    return shown if len(choices) <= 12 else f"{shown} | ... ({len(choices)} in all)"


def _way_out(key: str, value: Any, declared: Declared) -> str:
    """Returns what to do about a value of another type."""
    if isinstance(value, str):
        return "remove the quotes" if _is_plain(value) else f"write {_allowed(key, declared).partition(', or ')[0]}"
    if isinstance(value, list) and "str" in declared.types:
        if key in ADAPTER_KEYS:
            return "write one text, with commas between names"
        return "write one path" if key in PATHS else "write one text"
    if isinstance(value, int | float) and "str" in declared.types:
        return "quote it"
    return f"write {_allowed(key, declared).partition(', or ')[0]}"


def _unread(value: bool, declared: Declared, key: str) -> str:
    """Returns what to do about a word that YAML reads as true or false."""
    choices = _choices(key, declared, ())
    word = next((word for word in _WORDS_OF_YAML[value] if word in choices), None)
    if word is not None:
        return f"quote it, as YAML reads {word} as {str(value).lower()}: '{word}'"
    return "quote it" if declared.types & {"str"} and not choices else f"write {_allowed(key, declared)}"


def _is_plain(text: str) -> bool:
    """Whether a text in quotes is a number or a switch."""
    try:
        float(text)
    except ValueError:
        return text.lower() in ("true", "false")
    return text.isascii() and "_" not in text


def _kind(value: Any) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return "bool"
        case int() | float() | str():
            return type(value).__name__
        case Mapping():
            return "dict"
        case list() | tuple():
            return "list"
    return type(value).__name__


def _shown(key: str, value: Any) -> str:
    return shortened(repr(masked(value, key)))
