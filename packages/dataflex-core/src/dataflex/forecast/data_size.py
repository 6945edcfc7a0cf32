"""How many rows and tokens a run has, source by source, and how that is known.

In this order: the tokenised rows of ``tokenized_path``; local data files, of which some rows are read; for rows that
are nowhere on this machine ``cutoff_len`` tokens each, and as many as the user says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflex.config.checks.data_files import data_files
from dataflex.config.checks.dataset_entry import Entry, entry
from dataflex.config.checks.datasets import read_info
from dataflex.config.checks.parsed_config import names_in
from dataflex.config.checks.tokenized import EVALUATION, is_kept, source_folder
from dataflex.config.spec import RunSpec
from dataflex.core.cost import Amount
from dataflex.core.errors import ConfigError
from dataflex.forecast.entry_texts import row_text
from dataflex.forecast.image_tokens import ImageTokens
from dataflex.forecast.kept_rows import kept_rows
from dataflex.forecast.sampled_rows import sampled
from dataflex.forecast.stage_passes import stage_passes
from dataflex.forecast.text_tokens import Counted, TokenCounter

CUTOFF = 2048
"""LLaMA-Factory's ``cutoff_len`` where none is given."""
_PACKED = 0.97  # of the tokens of packed rows that are no padding


@dataclass(frozen=True)
class Rows:
    """The rows of one source, or of one evaluation set.

    Attributes:
        name: Its name.
        count: How many; None where that is not known.
        lengths: (n,) tokens of some of them, ascending.
        labels: Share of the tokens that have a label.
        how: How that is known, in words.
    """

    name: str
    count: float | None
    lengths: NDArray[np.float64] = field(repr=False, compare=False)
    labels: float
    how: str

    @property
    def mean(self) -> float:
        """Mean tokens of a row."""
        return float(self.lengths.mean()) if len(self.lengths) else 0.0

    def amount(self, rows: float | None = None) -> Amount:
        """Returns these rows, or that many of them."""
        rows = self.count or 0.0 if rows is None else rows
        return Amount(rows, rows * self.mean, rows * self.mean * self.labels)

    def padded(self, batch: int) -> float:
        """Returns the mean length of the longest of ``batch`` rows, to which the others are padded."""
        n = len(self.lengths)
        if n < 2:
            return self.mean
        ends = (np.arange(n + 1) / n) ** batch
        return float((self.lengths * np.diff(ends)).sum())


@dataclass(frozen=True)
class DataSize:
    """All rows of a run.

    Attributes:
        sources: Those that are trained on.
        evaluated: The sets of evaluation rows that a component may aim at.
        held_out: Rows held out of each source of a mixture, for its mixer.
        sets: How many sets ``evaluated`` is for the run.
    """

    sources: tuple[Rows, ...]
    evaluated: tuple[Rows, ...] = ()
    held_out: tuple[Rows, ...] = ()
    sets: int = 1

    @property
    def count(self) -> float | None:
        """Rows of all sources together."""
        return total(self.sources)


def total(parts: Sequence[Rows]) -> float | None:
    """Returns the rows of all parts; None where those of one are not known."""
    counts = [part.count for part in parts if part.count is not None]
    return sum(counts) if len(counts) == len(parts) else None


def together(parts: Sequence[Rows]) -> Amount:
    """Returns all rows whose number is known, as one amount."""
    return sum((part.amount() for part in parts), Amount())


def data_size(spec: RunSpec, rows: float | None = None) -> DataSize:
    """Returns the rows of a run. Reads local files for some moments; fetches nothing.

    Args:
        spec: The checked run.
        rows: Rows of the train dataset, where the user says so.

    Raises:
        ConfigError: A data file cannot be read for training either.
    """
    found = _Reader(spec).data()
    if rows is None:
        return found
    known = found.count
    factors = [
        rows * (part.count / known if known and part.count else 1 / len(found.sources)) for part in found.sources
    ]
    given = tuple(replace(part, count=count) for part, count in zip(found.sources, factors, strict=True))
    return replace(found, sources=given)


class _Reader:
    def __init__(self, spec: RunSpec) -> None:
        keys = spec.llamafactory
        self._spec, self._keys = spec, keys
        self._stage = str(keys.get("stage") or "sft")
        self._passes = stage_passes(keys)
        self._cutoff = int(keys.get("cutoff_len") or CUTOFF) * self._passes.answers
        packing = keys.get("packing")
        self._packs = keys.get("neat_packing") is True or (self._stage == "pt" if packing is None else packing is True)
        self._counter: TokenCounter | None = None
        self._kept = keys.get("tokenized_path")
        self._split = float(keys.get("val_size") or 0)

    def data(self) -> DataSize:
        spec, keys = self._spec, self._keys
        names, evaluated = names_in(keys.get("dataset")), names_in(keys.get("eval_dataset"))
        whole = self._whole()
        if whole is not None:
            return whole
        sources = [self._rows(name, kept=True) for name in names]
        held = [self._rows(name) for name in spec.arguments.mixer_eval_dataset or ()]
        sets = [self._rows(name, kept=False) for name in evaluated]
        if self._split and not evaluated:
            sources, sets = self._held_out(sources)
            held = held or (sets if spec.mixes else [])
        each = keys.get("eval_on_each_dataset") is True
        return DataSize(tuple(sources), tuple(sets), tuple(held), len(sets) if each and evaluated else 1)

    def _held_out(self, sources: list[Rows]) -> tuple[list[Rows], list[Rows]]:
        """Returns the sources without what ``val_size`` takes of them, and that."""
        every, left, taken = total(sources) or 0.0, [], []
        for part in sources:
            share = self._split if self._split < 1 else (self._split / every if every else 0.0)
            count = None if part.count is None else part.count * share
            taken.append(replace(part, count=count, how=f"val_size of {part.name}"))
            left.append(replace(part, count=None if count is None else (part.count or 0.0) - count))
        return left, taken

    def _whole(self) -> DataSize | None:
        """Returns the rows of a ``tokenized_path`` that holds one dataset; None where there is none."""
        if not is_kept(self._kept) or not any(
            Path(str(self._kept), name).is_file() for name in ("dataset_dict.json", "state.json")
        ):
            return None
        parts = kept_rows(Path(str(self._kept)))
        train = self._from_kept("train", parts.pop("train"), str(self._kept))
        sets = tuple(self._from_kept(name, part, str(self._kept)) for name, part in sorted(parts.items()))
        return DataSize((train,), sets, (), max(1, len(sets)))

    def _from_kept(self, name: str, found: tuple[float, Counted], folder: str) -> Rows:
        count, counted = found
        how = f"{count:,.0f} tokenised rows in {folder}"
        return Rows(name, count, np.sort(counted.lengths), _share(counted), how)

    def _rows(self, name: str, kept: bool = False) -> Rows:
        folder = source_folder(str(self._kept), name) if is_kept(self._kept) else None
        if folder and not kept and is_kept(str(Path(str(self._kept), EVALUATION))):
            folder = str(Path(str(self._kept), EVALUATION))
        if folder and is_kept(folder):
            parts = kept_rows(Path(folder))
            return self._from_kept(name, parts.get("train") or next(iter(parts.values())), folder)
        info, _ = read_info(self._keys.get("dataset_dir", "data"))
        if info is None or name not in info:
            return self._unread(name, f"the definition of '{name}' is not on this machine")
        found = entry(name, info[name], plugins=bool(self._spec.arguments.plugins))
        if found.file_name is None:
            return self._unread(name, f"the rows of '{name}' are on a hub")
        return self._from_files(found, Path(str(self._keys.get("dataset_dir", "data")), found.file_name))

    def _from_files(self, found: Entry, path: Path) -> Rows:
        given = sampled(data_files(path, found.name))
        texts = [row_text(row, found, self._stage) for row in given.rows]
        if not texts:
            unread = self._unread(found.name, f"the rows of {path.name} cannot be looked at without loading them")
            return replace(unread, count=self._limited(given.count, found))
        images = ImageTokens(self._keys)
        pictured = found.columns.get("images") is not None
        if pictured:
            texts = [replace(text, media=images.of(row, found)) for text, row in zip(texts, given.rows, strict=True)]
        counter = self._counts()
        counted = counter.counted(texts)
        how = f"{len(texts):,} rows of {path.name}, counted by {counter.by}"
        if pictured:
            how += ", with those of their images" if images.known else "; images are not counted"
        if not given.exact:
            how += "; how many there are is estimated from its size"
        count = self._limited(given.count, found)
        if self._packs:
            return self._packed(found.name, count, counted, how)
        lengths = np.sort(np.minimum(counted.lengths, self._cutoff))
        return Rows(found.name, count, lengths, _share(counted), how)

    def _packed(self, name: str, count: float | None, counted: Counted, how: str) -> Rows:
        """Returns rows of ``cutoff_len`` tokens that hold those of the files."""
        full = 1.0 if self._stage == "pt" else _PACKED
        rows = None if count is None else max(1.0, float(int(count * counted.lengths.mean() / (self._cutoff * full))))
        lengths = np.full(1, float(self._cutoff))
        return Rows(name, rows, lengths, _share(counted) * full, f"{how}; packed to {self._cutoff} tokens")

    def _limited(self, count: float | None, found: Entry) -> float | None:
        limits = [limit for limit in (found.num_samples, self._keys.get("max_samples")) if isinstance(limit, int)]
        if found.num_samples is not None and count is not None:
            count = float(found.num_samples)  # rows come again where there are fewer
        limits = [limit for limit in limits if limit > 0]
        return min([count, *limits]) if count is not None else (min(limits) if limits else None)

    def _unread(self, name: str, why: str) -> Rows:
        limit = self._keys.get("max_samples")
        count = float(limit) if isinstance(limit, int) and limit > 0 else None
        of_row = "cutoff_len" if self._passes.answers == 1 else "cutoff_len for each answer"
        how = f"{why}: taken as {self._cutoff} tokens a row ({of_row}), all with a label"
        return Rows(name, count, np.full(1, float(self._cutoff)), 1.0, how)

    def _counts(self) -> TokenCounter:
        if self._counter is None:
            keys = self._keys
            self._counter = TokenCounter(
                str(keys.get("model_name_or_path")), str(keys.get("template") or ""), self._stage, self._cutoff,
                on_prompt=self._passes.every_logit or keys.get("train_on_prompt") is True,
                trusted=keys.get("trust_remote_code") is True,
            )  # fmt: skip
        return self._counter


def _share(counted: Counted) -> float:
    tokens = float(counted.lengths.sum())
    return float(counted.labels.sum()) / tokens if tokens else 0.0


def keys_of(spec: RunSpec, name: str, default: int) -> int:
    """Returns a whole number of LLaMA-Factory's keys."""
    value: Mapping[str, Any] = spec.llamafactory
    found = value.get(name)
    return default if found is None or isinstance(found, bool) else int(found)


def require_count(found: DataSize, what: str) -> float:
    """Returns the rows of the train dataset.

    Raises:
        ConfigError: They are not known.
    """
    count = found.count
    if count is None:
        unknown = next(part for part in found.sources if part.count is None)
        raise ConfigError(f"{what}: {unknown.how.partition(':')[0]} -> say how many with --rows N, or set max_samples")
    return count
