"""The datasets: named, defined, there, and not empty.

Their paths are relative to the working directory, as LLaMA-Factory reads them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataflex.config.arguments import COMPOSED
from dataflex.config.checks.combination import column_problems
from dataflex.config.checks.data_files import LARGEST, Table, data_files, read_table
from dataflex.config.checks.dataset_entry import ELSEWHERE, INFO, Entry, entry, require_stage
from dataflex.config.checks.formats import MEDIA, has_answers, no_answers, require_format, require_rows_of_stage
from dataflex.config.checks.media_rows import media_problems
from dataflex.config.checks.parameter_columns import parameter_problems
from dataflex.config.checks.parsed_config import Draft, names_in
from dataflex.config.checks.streaming import no_epoch
from dataflex.config.checks.tokenized import is_kept, source_folder, tokenized_problems
from dataflex.config.load import read_file
from dataflex.config.mixture_sources import INITIAL, share_problems
from dataflex.core.errors import ConfigError, Problem, listed, nearest

MOST = 4 * LARGEST
"""Bytes that are read of all data files together."""


def data_problems(draft: Draft) -> tuple[list[Problem], dict[str, int | None]]:
    """Returns what is wrong with the datasets, and dataset -> rows (None where that cannot be told quickly)."""
    if not draft.dynamic and not draft.on("do_train"):
        return [], {}
    names = draft.dataset_names
    if not names:
        return [Problem("dataset", "no dataset is named", "name one of those in dataset_info.json")], {}
    problems = [*_sources(draft, names), *_proportions(draft, names), *_held_out(draft, names)]
    kept = draft.theirs.get("tokenized_path")
    by_source = True if draft.by_dataset else None if draft.arguments.weighs else False
    by_source = by_source if draft.arguments.mixture_by is None else False
    problems += tokenized_problems(kept, by_source)
    if is_kept(kept) and not by_source:
        return problems, {}  # LLaMA-Factory looks at no dataset file then
    evaluated = [("eval_dataset", n) for n in names_in(draft.theirs.get("eval_dataset")) if n not in names]
    evaluated += [("mixer_eval_dataset", n) for n in draft.arguments.mixer_eval_dataset or () if n not in names]
    info, more = read_info(draft.theirs.get("dataset_dir", "data"))
    problems += more
    rows: dict[str, int | None] = {}
    if info is None:
        return problems, rows
    if draft.arguments.mixes and draft.on("streaming") and _endless(draft, names, info):
        problems += no_epoch(draft.theirs)
    looked = _Looked(draft, info)
    alone = draft.by_dataset or len(names) == 1  # else the other datasets have the rows
    trained = [n for n in dict.fromkeys(names) if not (is_kept(kept) and is_kept(source_folder(str(kept), n)))]
    for key, name in [*(("dataset", n) for n in trained), *evaluated]:
        try:
            count = looked.rows(name, trained=alone and key == "dataset")
        except ConfigError as error:
            problems.append(Problem(key, str(error)))
            continue
        if key == "dataset":
            rows[name] = count
        if count == 0:
            problems.append(Problem(key, f"the dataset '{name}' is empty", "put rows into its file, or name another"))
    problems += media_problems(draft, looked.media)
    columns = {name: looked.columns.get(name) for name in trained}
    return [*problems, *column_problems(draft, columns), *parameter_problems(draft, columns)], rows


def _endless(draft: Draft, names: list[str], info: Mapping[str, Any]) -> bool:
    """Whether no stream can say how many rows it has: hubs know that of their files, and packed rows are others."""
    packing = draft.theirs.get("packing")
    packed = draft.on("neat_packing") or (draft.stage == "pt" if packing is None else packing is True)
    definitions = [info[name] for name in names if isinstance(info.get(name), dict)]
    return packed or any(not any(key in definition for key in ELSEWHERE) for definition in definitions)


def _sources(draft: Draft, names: list[str]) -> list[Problem]:
    if not draft.by_dataset:
        return []
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        return [Problem("dataset", f"{listed(repeated)} is named more than once", "name each source of a mixture once")]
    if len(names) == 1:
        composed = draft.arguments.train_type == COMPOSED
        who, other = ("a mixer", "leave mixer out") if composed else ("dynamic_mix", "use another train_type")
        what = f"{who} needs two sources or more, found one: {names[0]}"
        return [
            Problem(
                "dataset", what, f"name more datasets, as in dataset: a,b, or {other}; mixture_by makes sources of one"
            )
        ]
    return []


def _proportions(draft: Draft, names: list[str]) -> list[Problem]:
    if not draft.arguments.mixes:
        return []
    keys = {"mixture_sample_rule", "init_mixture_proportions"}
    named = keys & draft.written == {"mixture_sample_rule"} and not keys & draft.wrong
    if named and draft.arguments.mixture_sample_rule == "mixture" and not draft.on("streaming"):
        what = "is missing; mixture_sample_rule: mixture takes the proportions from there"
        way_out = (
            "give one number per dataset, or set mixture_sample_rule: stratified for the sizes of the sources, or "
            "uniform for equal shares"
        )
        return [Problem("init_mixture_proportions", what, way_out)]
    given = draft.arguments.init_mixture_proportions
    return share_problems(INITIAL, given, names) if draft.by_dataset else []


def _held_out(draft: Draft, names: list[str]) -> list[Problem]:
    given = draft.arguments.mixer_eval_dataset
    if not draft.arguments.mixes or given is None or len(given) == len(names):
        return []
    what = f"found {len(given)} datasets for {len(names)} sources ({', '.join(names)})"
    return [Problem("mixer_eval_dataset", what, "give one dataset per source, in their order")]


def read_info(folder: Any) -> tuple[Mapping[str, Any] | None, list[Problem]]:
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
        return None, [Problem("dataset_dir", str(error), "" if " -> " in str(error) else "repair the file")]
    if not isinstance(info, dict):
        return None, [Problem("dataset_dir", f"{path} holds no mapping", 'write {"name": {"file_name": ...}}')]
    return info, []


class _Looked:
    """Looks into the datasets of a configuration, up to :data:`MOST` bytes of them.

    Attributes:
        columns: Dataset -> the columns of its files, where they are known.
        media: Dataset -> which kind of media a row of its files has.
    """

    def __init__(self, draft: Draft, info: Mapping[str, Any]) -> None:
        self._draft, self._info, self._left = draft, info, MOST
        self.columns: dict[str, frozenset[str]] = {}
        self.media: dict[str, str] = {}
        folder = draft.theirs.get("dataset_dir", "data")
        self._folder = folder if isinstance(folder, str) else "."

    def rows(self, name: str, trained: bool) -> int | None:
        """Returns the number of rows of a dataset; None where that cannot be told quickly.

        Args:
            name: The dataset.
            trained: Whether each of its rows is one to train on.

        Raises:
            ConfigError: It is not defined, or cannot be read.
        """
        if name not in self._info:
            hint = nearest(name, self._info) or f"add it to {INFO}"
            raise ConfigError(f"'{name}' is not defined in {INFO}; defined: {listed(self._info)} -> {hint}")
        found = entry(name, self._info[name], plugins=bool(self._draft.arguments.plugins))
        require_stage(found, self._draft.stage)
        if found.file_name is None:
            return None
        tables = [self._table(file) for file in data_files(Path(self._folder, found.file_name), name)]
        counts = [table.count for table in tables if table.count is not None]
        total = sum(counts) if len(counts) == len(tables) else None
        if all(table.columns is not None for table in tables):
            self.columns[name] = frozenset().union(*(table.columns or () for table in tables))
        for use in MEDIA:
            if (column := found.columns[use]) and any(row.get(column) for table in tables for row in table.rows):
                self.media.setdefault(name, use)
        for table in tables:
            require_format(found, table, self._surely_read(found, total, alone=len(tables) == 1))
        if trained and total:  # LLaMA-Factory drops them one by one
            require_rows_of_stage(found, tables, self._draft.stage)
        if trained and total and self._draft.stage == "sft" and not any(has_answers(found, t) for t in tables):
            raise ConfigError(f"'{name}' ({found.file_name}) gives no rows to train on: {no_answers(found)}")
        return found.num_samples if found.num_samples is not None and total else total

    def _table(self, path: Path) -> Table:
        table = read_table(path, min(LARGEST, self._left))
        if table.columns is not None:
            self._left -= path.stat().st_size
        return table

    def _surely_read(self, found: Entry, total: int | None, alone: bool) -> int | None:
        """Returns how many of a file's first rows are certain to be read; None for all of them."""
        limit = self._draft.count("max_samples", 0)
        if found.num_samples is not None and (total is None or found.num_samples < total):
            return 0
        if limit > 0:
            return limit if alone and found.num_samples is None else 0
        return None
