"""The entries of dataset_info.json: what LLaMA-Factory reads of them, with types and choices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dataflex.config.checks.data_files import shown
from dataflex.core.errors import ConfigError, nearest

INFO = "dataset_info.json"
ELSEWHERE = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
"""Keys of datasets whose rows are no local file, in the order in which LLaMA-Factory looks for them."""
FORMATS = ("alpaca", "sharegpt", "openai")
PAIR_STAGES = ("rm", "dpo")
"""The stages that train on pairs of answers."""

_COLUMNS = (
    "prompt", "query", "response", "history", "messages", "system", "tools", "images", "videos", "audios", "chosen",
    "rejected", "kto_tag",
)  # fmt: skip
_TAGS = ("role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag")
_DEFAULT_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "messages": "conversations"}
_DEFAULT_TAGS = dict(
    zip(_TAGS, ("from", "value", "human", "gpt", "observation", "function_call", "system"), strict=True)
)


@dataclass(frozen=True)
class Entry:
    """The definition of a dataset.

    Attributes:
        name: The dataset.
        file_name: Its local file or folder; None where the rows are elsewhere.
        formatting: How a row is laid out.
        ranking: Whether its rows are pairs of answers.
        columns: What is read -> the column that holds it, None where it is not read.
        tags: Tag -> what stands for it in a message, None where nothing does.
        default_columns: Whether ``columns`` is absent.
        num_samples: Rows that are drawn; None for all.
    """

    name: str
    file_name: str | None
    formatting: str
    ranking: bool
    columns: Mapping[str, str | None]
    tags: Mapping[str, str | None]
    default_columns: bool
    num_samples: int | None


def entry(name: str, definition: Any, plugins: bool = False) -> Entry:
    """Returns what an entry of dataset_info.json says.

    Args:
        name: Its name.
        definition: Its value.
        plugins: Whether plugin files are run, which may bring a formatting of their own.

    Raises:
        ConfigError: LLaMA-Factory could not read it.
    """
    where = f"'{name}' in {INFO}"
    if not isinstance(definition, Mapping):
        kind = {list: "a list", str: "a text", type(None): "null"}.get(type(definition), type(definition).__name__)
        raise ConfigError(f"{where} is {kind} ({shown(definition)}) -> write a mapping with a file_name")
    elsewhere = [key for key in ELSEWHERE if key in definition]
    source = elsewhere[0] if elsewhere else "file_name"
    if source not in definition:
        raise ConfigError(f"'{name}' has no file_name in {INFO} -> add it, or one of {', '.join(ELSEWHERE)}")
    _require_text(where, source, definition[source], empty=False)
    formatting = definition.get("formatting", "alpaca")
    if not isinstance(formatting, str) or (formatting not in FORMATS and not plugins):
        hint = nearest(formatting, FORMATS) if isinstance(formatting, str) else ""
        allowed = " | ".join(FORMATS)
        what = f"{where}: formatting: found {shown(formatting)}, allowed: {allowed}"
        raise ConfigError(f"{what} -> {hint or 'use one of these'}")
    ranking = definition.get("ranking", False)
    if not isinstance(ranking, bool):
        raise ConfigError(f"{where}: ranking: found {shown(ranking)} -> write true or false")
    samples = definition.get("num_samples")
    if samples is not None and (not isinstance(samples, int) or samples < 1):
        raise ConfigError(f"{where}: num_samples: found {shown(samples)} -> give a whole number of 1 or more")
    for key in ("subset", "folder"):
        if definition.get(key) is not None:
            _require_text(where, key, definition[key])
    if not elsewhere:
        _require_split(where, definition.get("split", "train"))
    return Entry(
        name, None if elsewhere else definition["file_name"], formatting, ranking,
        _names(where, "columns", definition, _COLUMNS, _DEFAULT_COLUMNS),
        _names(where, "tags", definition, _TAGS, _DEFAULT_TAGS),
        "columns" not in definition, samples,
    )  # fmt: skip


def require_stage(found: Entry, stage: str) -> None:
    """Refuses pairs of answers at a stage that does not train on pairs, and the reverse.

    Raises:
        ConfigError: LLaMA-Factory would refuse the dataset when it is read.
    """
    if found.ranking and stage not in PAIR_STAGES:
        raise ConfigError(
            f"'{found.name}' in {INFO} has ranking: true, pairs of answers, which stage: {stage} does not train on -> "
            "name another dataset, or set ranking: false"
        )
    if not found.ranking and stage in PAIR_STAGES:
        raise ConfigError(f"'{found.name}' in {INFO} has no ranking: true, and stage: {stage} needs pairs -> set it")


def _names(
    where: str, key: str, definition: Mapping[str, Any], known: tuple[str, ...], default: Mapping[str, str]
) -> dict[str, str | None]:
    if key not in definition:
        return {name: default.get(name) for name in known}
    given = definition[key]
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where}: {key}: found {shown(given)} -> write a mapping, or leave {key} out")
    for name in known:
        if given.get(name) is not None:
            _require_text(where, f"{key}.{name}", given[name])
    return {name: given.get(name) for name in known}


def _require_text(where: str, key: str, value: Any, empty: bool = True) -> None:
    if not isinstance(value, str) or "\0" in value or not (empty or value.strip()):
        raise ConfigError(f"{where}: {key}: found {shown(value)} -> give a text" + ("" if empty else " that names it"))


def _require_split(where: str, split: Any) -> None:
    """A local file is one split, ``train``, of which a part may be asked for."""
    if not isinstance(split, str) or not split.strip().startswith(("train", "all")):
        raise ConfigError(f"{where}: split: found {shown(split)}, but a file has no split but train -> leave split out")
