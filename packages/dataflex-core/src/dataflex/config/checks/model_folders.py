"""The folders of models and adapters: a local one is there and holds a configuration; a name on a hub passes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dataflex.core.errors import Problem
from dataflex.core.kinds import WEIGHTER
from dataflex.core.parameter_checks import meant_as_path
from dataflex.discovery.catalog import ComponentInfo

MODEL_KEYS = ("model_name_or_path", "ref_model", "reward_model")
ADAPTER_KEYS = ("adapter_name_or_path", "ref_model_adapters", "reward_model_adapters")
_MODEL, _ADAPTER = "config.json", "adapter_config.json"


def model_problems(theirs: Mapping[str, Any]) -> list[Problem]:
    """Returns what is wrong with the models and adapters that a run loads.

    Args:
        theirs: LLaMA-Factory's keys; ``model_name_or_path`` must be among them.
    """
    problems = []
    if not theirs.get("model_name_or_path"):
        way_out = "give a folder that holds a model, or the name of one on the hub"
        problems.append(Problem("model_name_or_path", "is missing", way_out))
    of_an_adapter = theirs.get("reward_model_type", "lora") in ("lora", "oft")
    for key in MODEL_KEYS:
        value = theirs.get(key)
        if isinstance(value, str) and value and not _is_address(value):
            file = _ADAPTER if key == "reward_model" and of_an_adapter else _MODEL
            problems += _folder(key, value, file)
    inside = theirs.get("adapter_folder") or ""
    for key in ADAPTER_KEYS:
        value = theirs.get(key)
        if isinstance(value, str) and value:
            for name in filter(None, map(str.strip, value.split(","))):
                problems += _folder(key, name, os.path.join(str(inside), _ADAPTER))
    return problems


def causal_problems(theirs: Mapping[str, Any], infos: Iterable[ComponentInfo]) -> list[Problem]:
    """Returns what is wrong with a model that is an encoder-decoder, for components that need rows of a causal one.

    A name on a hub is not looked up; the trainer refuses what is loaded by it.

    Args:
        theirs: LLaMA-Factory's keys.
        infos: What is known about the components.
    """
    value = theirs.get("model_name_or_path")
    needing = [info for info in infos if info.kind is WEIGHTER or info.constants.get("reads_batches")]
    if not needing or not isinstance(value, str):
        return []
    try:
        config = json.loads(Path(value, _MODEL).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []  # said of the folder, or a name on a hub
    if not isinstance(config, dict) or config.get("is_encoder_decoder") is not True:
        return []
    who = " and ".join(f"the {info.kind.name} '{info.name}'" for info in needing)
    what = (
        f"{value} holds an encoder-decoder ({config.get('model_type', 'of no type')}); {who} "
        f"need{'s' if len(needing) == 1 else ''} the loss of each row of a causal (decoder-only) model"
    )
    return [Problem("model_name_or_path", what, "give a causal model, or take a component that does not look at it")]


def _folder(key: str, value: str, file: str) -> list[Problem]:
    """Checks what is meant as a path, or is one: a hub's name has no such folder here."""
    what = "an adapter" if file.endswith(_ADAPTER) else "a model"
    way_out = f"give a folder that holds {what}"
    path = Path(value)
    if not path.exists():
        if not meant_as_path(value):
            return []
        home = Path(os.path.expanduser(value))
        if value.startswith("~") and home.exists():  # nobody after us replaces it
            return [Problem(key, f"found {value}, and '~' is not replaced by LLaMA-Factory", f"write {home}")]
        return [Problem(key, f"{value} does not exist (looked from {Path.cwd()})", way_out)]
    if not path.is_dir():
        return [Problem(key, f"{value} is no folder", way_out)]
    if not (path / file).is_file():
        return [Problem(key, f"the folder {value} holds no {file}, so it is not {what}", way_out)]
    if not _is_json(path / file):
        return [Problem(key, f"{path / file} is no JSON, so the folder is not {what}", way_out)]
    return []


def _is_json(path: Path) -> bool:
    """Whether a file is a mapping in JSON; a key may stand in it twice, as others have written it."""
    try:
        return isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError, RecursionError):
        return False


def _is_address(value: str) -> bool:
    return "://" in value
