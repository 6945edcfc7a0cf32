"""The datasets: named, defined, there, and not empty.

Their paths are relative to the working directory, as LLaMA-Factory reads them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dataflex.config.checks.draft import Draft, names_in
from dataflex.config.checks.files import rows_in
from dataflex.config.checks.streams import no_epoch
from dataflex.config.load import read_file
from dataflex.core.errors import ConfigError, Problem, listed, nearest

INFO = "dataset_info.json"
_ELSEWHERE = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")


def data_problems(draft: Draft) -> tuple[list[Problem], dict[str, int | None]]:
    """Returns what is wrong with the datasets, and dataset -> rows (None where that cannot be told quickly)."""
    if draft.kind is None and not draft.on("do_train"):
        return [], {}
    names = draft.dataset_names
    if not names:
        return [Problem("dataset", "no dataset is named", "name one of those in dataset_info.json")], {}
    problems = [*_sources(draft, names), *_proportions(draft, names), *_held_out(draft, names)]
    if _tokenised(draft.theirs.get("tokenized_path")):
        return problems, {}
    evaluated = [("eval_dataset", n) for n in names_in(draft.theirs.get("eval_dataset")) if n not in names]
    evaluated += [("mixer_eval_dataset", n) for n in draft.arguments.mixer_eval_dataset or () if n not in names]
    info, more = _read_info(draft.theirs.get("dataset_dir", "data"))
    problems += more
    rows: dict[str, int | None] = {}
    if info is None:
        return problems, rows
    if draft.arguments.train_type == "dynamic_mix" and draft.on("streaming") and _endless(draft, names, info):
        problems += no_epoch(draft.theirs)
    for key, name in [*(("dataset", n) for n in dict.fromkeys(names)), *evaluated]:
        try:
            count = _rows(name, info, draft.theirs.get("dataset_dir", "data"))
        except ConfigError as error:
            problems.append(Problem(key, str(error)))
            continue
        if key == "dataset":
            rows[name] = count
        if count == 0:
            problems.append(Problem(key, f"the dataset '{name}' is empty", "put rows into its file, or name another"))
    return problems, rows


def _endless(draft: Draft, names: list[str], info: Mapping[str, Any]) -> bool:
    """Whether no stream can say how many rows it has: hubs know that of their files, and packed rows are others."""
    packing = draft.theirs.get("packing")
    packed = draft.on("neat_packing") or (draft.stage == "pt" if packing is None else packing is True)
    definitions = [info[name] for name in names if isinstance(info.get(name), dict)]
    return packed or any(not any(key in definition for key in _ELSEWHERE) for definition in definitions)


def _sources(draft: Draft, names: list[str]) -> list[Problem]:
    if draft.arguments.train_type != "dynamic_mix":
        return []
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        return [Problem("dataset", f"{listed(repeated)} is named more than once", "name each source of a mixture once")]
    if len(names) == 1:
        what = f"dynamic_mix needs two sources or more, found one: {names[0]}"
        return [Problem("dataset", what, "name more datasets, as in dataset: a,b, or use another train_type")]
    return []


def _proportions(draft: Draft, names: list[str]) -> list[Problem]:
    if draft.arguments.train_type != "dynamic_mix":
        return []
    keys = {"mixture_sample_rule", "init_mixture_proportions"}
    named = keys & draft.written == {"mixture_sample_rule"} and not keys & draft.wrong
    if named and draft.arguments.mixture_sample_rule == "mixture" and not draft.on("streaming"):
        what = "is missing; mixture_sample_rule: mixture takes the proportions from there"
        way_out = "give one number per dataset, or set mixture_sample_rule: stratified for the sizes of the sources"
        return [Problem("init_mixture_proportions", what, way_out)]
    return proportion_problems(draft.arguments.init_mixture_proportions, names)


def proportion_problems(given: Sequence[float] | None, names: Sequence[str]) -> list[Problem]:
    """Returns a problem where initial proportions are given and are not one for each source."""
    if given is None or len(given) == len(names):
        return []
    what = f"found {len(given)} numbers for {len(names)} datasets ({', '.join(names)})"
    return [Problem("init_mixture_proportions", what, "give one number per dataset, in their order")]


def _held_out(draft: Draft, names: list[str]) -> list[Problem]:
    given = draft.arguments.mixer_eval_dataset
    if draft.arguments.train_type != "dynamic_mix" or given is None or len(given) == len(names):
        return []
    what = f"found {len(given)} datasets for {len(names)} sources ({', '.join(names)})"
    return [Problem("mixer_eval_dataset", what, "give one dataset per source, in their order")]


def _tokenised(value: Any) -> bool:
    """Whether LLaMA-Factory will load tokenised data from there and look at no dataset file."""
    return isinstance(value, str) and Path(value).is_dir() and any(Path(value).iterdir())


def _read_info(folder: Any) -> tuple[Mapping[str, Any] | None, list[Problem]]:
    """Returns the definitions of the datasets; None where they are online or cannot be read."""
    if isinstance(folder, dict):
        return folder, []
    if not isinstance(folder, str) or folder == "ONLINE" or folder.startswith("REMOTE:"):
        return None, []
    path = Path(folder) / INFO
    if not Path(folder).is_dir():
        what = f"the folder {folder} does not exist (looked from {Path.cwd()})"
        return None, [Problem("dataset_dir", what, f"give the folder that holds {INFO}")]
    try:
        if not path.exists():
            way_out = "write one, or give the folder that holds it"
            return None, [Problem("dataset_dir", f"{folder} holds no {INFO}", way_out)]
        info = read_file(path)
    except ConfigError as error:
        return None, [Problem("dataset_dir", f"{path.name} is malformed: {error}", "repair the file")]
    if not isinstance(info, dict):
        return None, [Problem("dataset_dir", f"{path} holds no mapping", 'write {"name": {"file_name": ...}}')]
    return info, []


def _rows(name: str, info: Mapping[str, Any], folder: Any) -> int | None:
    definition = info.get(name)
    if definition is None:
        hint = nearest(name, info) or f"add it to {INFO}"
        raise ConfigError(f"'{name}' is not defined in {INFO}; defined: {listed(info)} -> {hint}")
    if not isinstance(definition, dict) or any(key in definition for key in _ELSEWHERE):
        return None
    if "file_name" not in definition:
        raise ConfigError(f"'{name}' has no file_name in {INFO} -> add it, or one of {', '.join(_ELSEWHERE)}")
    path = Path(folder if isinstance(folder, str) else ".", str(definition["file_name"]))
    if not path.exists():
        raise ConfigError(f"the file of '{name}' does not exist: {path} -> repair file_name in {INFO}")
    counts = [rows_in(file) for file in _files(path)]
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        return None
    total, wanted = sum(known), definition.get("num_samples")
    return wanted if isinstance(wanted, int) and total else total


def _files(path: Path) -> Iterable[Path]:
    return sorted(path.iterdir()) if path.is_dir() else [path]
