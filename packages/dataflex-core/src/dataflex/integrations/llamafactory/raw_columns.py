"""Columns of the raw data, kept for the rows that LLaMA-Factory makes of them.

LLaMA-Factory reads a dataset, aligns it (one row for each, all columns gone), merges, splits and tokenises it, and
drops rows that it cannot use. A column that rows are scored by travels all the way in a column of our own beside those
of LLaMA-Factory, so a value stays with its row whatever is sampled, merged, split or dropped; at the end it is taken
out again, and the train dataset is, to the last bit, the one that a run without it has.

    read and sampled (num_samples, max_samples) -> aligned + ours -> merged -> val_size -> tokenised + ours -> taken out

The dataset that a row comes from travels in the same way, for the record of a run over several, and so does the label
by which ``mixture_by`` makes sources, also with the rows that ``val_size`` holds out.

Tokenising tells nobody which rows it dropped. Where a batch has fewer rows than it was made of, its rows are tokenised
once more, one by one; not where all of them have the same values.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch
from zipfile import BadZipFile

import datasets
import llamafactory.data.loader as data_loader
import numpy as np
from numpy.typing import NDArray

from dataflex.config.checks.kept_columns import column_problems
from dataflex.config.checks.tokenized import is_kept
from dataflex.config.spec import RunSpec
from dataflex.core.component import Component
from dataflex.core.errors import ConfigError, blaming, listed, nearest, refuse
from dataflex.core.files import replacing
from dataflex.core.score_names import COLUMN, ScoreName
from dataflex.discovery.component_classes import find
from dataflex.integrations.llamafactory.raw_labels import LABEL, LABELS, RawLabels
from dataflex.rows.arrow import column_type, is_number
from dataflex.rows.columns import number_column
from dataflex.rows.digest import rows_digest
from dataflex.rows.score_columns import refuse_other
from dataflex.rows.views import MixedSources
from dataflex.utils.logging import logger

PREFIX = "dataflex_column:"
SOURCE = "dataflex_source"
"""The column of the number of the dataset that a row comes from."""
FILE = "dataflex_columns.npz"
"""Where columns are kept beside the tokenised rows of a ``tokenized_path``."""
_ROWS, _NAMES = "dataflex_rows", "dataflex_source_names"
Columns = dict[str, NDArray[np.float64]]


def wanted_columns(spec: RunSpec) -> tuple[str, ...]:
    """Returns the columns of the raw data that the run's components score rows by."""
    found: list[str] = []
    for part in spec.axes:
        name = None if part.by is None else ScoreName.of(part.by)
        if name is not None and name.kind == COLUMN:
            found.append(name.argument)
        cls = find(part.component.kind, part.component.name)
        with blaming(part.component.in_words):
            found += cls.needs_columns(part.component.params) if issubclass(cls, Component) else ()
    return tuple(dict.fromkeys(found))


class KeptColumns:
    """Keeps columns while the train dataset of a run is loaded.

    Args:
        columns: Their names in the raw data.
        sources: The datasets of the run, where each row's is to be known. Without any and without columns, nothing is
            done. Of streams and packed rows it is not known.
        label: The column of the labels that make the sources; None where there is none.
    """

    def __init__(self, columns: Sequence[str], sources: Sequence[str] = (), label: str | None = None) -> None:
        self.columns, self._sources = tuple(dict.fromkeys(columns)), tuple(sources)
        self.labels = None if label is None else RawLabels(label)
        self._aligned_so_far = 0  # train datasets
        self._kept: list[tuple[Any, Columns]] = []  # by dataset, which is held so that its identity stays its own
        self._names: dict[str, None] = {}  # of all columns in the raw data
        self._with: dict[str, list[str]] = {column: [] for column in self.columns}  # the datasets that have it
        self._without: dict[str, list[str]] = {column: [] for column in self.columns}
        self._of_train = True

    @contextmanager
    def keeping(self, data_args: Any) -> Iterator[None]:
        """Inside of it, LLaMA-Factory's loading keeps the columns of train datasets. Undone on leaving.

        Raises:
            ConfigError: Before anything is read: rows will be streams, or packed.
        """
        refuse(column_problems(self.columns, streaming=bool(data_args.streaming), packing=bool(data_args.packing)))
        if data_args.streaming or data_args.packing:
            self._sources = ()
        if not (self.columns or self._sources or self.labels):
            yield
            return
        stand_ins = {
            "_get_merged_dataset": self._merged,
            "align_dataset": self._aligned,
            "_get_dataset_processor": self._processor,
            "_get_preprocessed_dataset": self._preprocessed,
        }
        with ExitStack() as stack:
            for name, stand_in in stand_ins.items():
                original = getattr(data_loader, name)
                stack.enter_context(patch.object(data_loader, name, functools.wraps(original)(stand_in(original))))
            yield

    def loading(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Returns LLaMA-Factory's ``get_dataset``; the columns of rows in ``tokenized_path`` are kept and read there.

        Raises:
            ConfigError: The rows there were tokenised without one of the columns.
        """

        @functools.wraps(original)
        def get_dataset(*args: Any, data_args: Any, training_args: Any, **kwargs: Any) -> Any:
            path = data_args.tokenized_path if self.columns or self._sources or self.labels else None
            was_kept = is_kept(path)
            module = original(*args, data_args=data_args, training_args=training_args, **kwargs)
            if path is not None and module.get("train_dataset") is not None:
                if was_kept:
                    self._kept.append((module["train_dataset"], self._read(path, module["train_dataset"])))
                elif training_args.should_save:
                    self._write(path, module["train_dataset"])
            return module

        return get_dataset

    def replaced(self, dataset: Any, by: Any) -> None:
        """Takes what is kept of a dataset for that of another, which has the same rows: without a column, say."""
        self._kept = [(by if own is dataset else own, columns) for own, columns in self._kept]

    def of(self, dataset: Any) -> Columns:
        """Returns the columns of a train dataset that was loaded: name -> (N,) numbers, NaN for none.

        A column that the tokenised dataset has itself is not among them.

        Raises:
            ConfigError: None of its datasets has one of the columns.
        """
        parts = dataset.sources if isinstance(dataset, MixedSources) else [dataset]
        found: Columns = {}
        for column in self.columns:
            values = [self._of_part(part, column) for part in parts]
            if all(value is None for value in values):
                continue
            self._require_some(column, values)
            found[column] = np.concatenate(
                [
                    np.full(len(part), np.nan) if value is None else value
                    for part, value in zip(parts, values, strict=True)
                ]
            )
        return found

    def labels_of(self, dataset: Any) -> NDArray[np.int64] | None:
        """Returns the number of each row's label: (N,); None where the rows were read without."""
        codes_N = self._of_part(dataset, LABEL)
        return None if codes_N is None else codes_N.astype(np.int64)

    def sources_of(self, dataset: Any) -> tuple[tuple[str, ...], NDArray[np.int16]] | None:
        """Returns the names of the sources and the number of each row's: (N,); None where they are not known."""
        codes_N = self._of_part(dataset, SOURCE) if self._sources else None
        return None if codes_N is None else (self._sources, codes_N.astype(np.int16))

    def _of_part(self, part: Any, column: str) -> NDArray[np.float64] | None:
        return next((columns.get(column) for dataset, columns in self._kept if dataset is part), None)

    def _require_some(self, column: str, values: Sequence[NDArray[np.float64] | None]) -> None:
        lacking, having = self._without[column], self._with[column]
        if lacking and not having:
            way_out = nearest(column, self._names) or "name one that is there, or give the scores as file:PATH"
            raise ConfigError(
                f"column:{column}: no dataset of the run has a column {column!r} ({', '.join(lacking)}: "
                f"{listed(self._names)}) -> {way_out}"
            )
        if lacking:
            logger.warning(
                "column:%s: rows of %s have no score, because that dataset has no such column", column, listed(lacking)
            )

    def _merged(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Keeps nothing of datasets for evaluation, which are read by the same function."""

        def get_merged_dataset(names: Any, model_args: Any, data_args: Any, *args: Any, **kwargs: Any) -> Any:
            self._of_train = names is not data_args.eval_dataset
            if self._of_train and tuple(names or ()) != self._sources:  # a part of them: rows of these are not told
                self._sources = ()
            try:
                return original(names, model_args, data_args, *args, **kwargs)
            finally:
                self._of_train = True

        return get_merged_dataset

    def _aligned(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def align_dataset(dataset: Any, dataset_attr: Any, *args: Any, **kwargs: Any) -> Any:
            if not self._of_train:
                return original(dataset, dataset_attr, *args, **kwargs)
            values = {column: self._raw(dataset, column, str(dataset_attr)) for column in self.columns}
            labels_N = None if self.labels is None else self.labels.read(dataset, str(dataset_attr))
            aligned = original(dataset, dataset_attr, *args, **kwargs)
            if self._sources:
                number = self._aligned_so_far % len(self._sources)  # they are loaded in the order of the key
                aligned = aligned.add_column(SOURCE, np.full(len(aligned), number, dtype=np.int16))
                self._aligned_so_far += 1
            if (self.columns or self.labels) and len(aligned) != len(dataset):
                column = [*self.columns, *([] if self.labels is None else [self.labels.column])][0]
                raise ConfigError(
                    f"column:{column}: the converter of the dataset '{dataset_attr}' made {len(aligned)} rows of "
                    f"{len(dataset)}, so a value is not that of one row -> give the scores as file:PATH"
                )
            for column, values_N in values.items():
                aligned = aligned.add_column(PREFIX + column, values_N)
            return aligned if labels_N is None else aligned.add_column(LABEL, labels_N)

        return align_dataset

    def _raw(self, dataset: datasets.Dataset, column: str, name: str) -> NDArray[np.float64]:
        self._names |= dict.fromkeys(dataset.column_names)
        if column not in dataset.column_names:
            self._without[column].append(name)
            return np.full(len(dataset), np.nan)
        self._with[column].append(name)
        if not is_number(column_type(dataset, column)):
            refuse_other(dataset, column, f"what is read of the dataset '{name}'")
        found = number_column(dataset, column)
        return np.full(len(dataset), np.nan) if found is None else found

    def _processor(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def get_dataset_processor(*args: Any, **kwargs: Any) -> Any:
            return _Carrying(original(*args, **kwargs), [*(PREFIX + column for column in self.columns), SOURCE, LABEL])

        return get_dataset_processor

    def _preprocessed(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def get_preprocessed_dataset(*args: Any, is_eval: bool = False, **kwargs: Any) -> Any:
            found = original(*args, is_eval=is_eval, **kwargs)
            names = [] if found is None else found.column_names
            ours = [name for name in names if name.startswith(PREFIX) or name in (SOURCE, LABEL)]
            if not ours:
                return found
            plain = found.remove_columns(ours)
            if not is_eval or LABEL in ours:
                columns = {name.removeprefix(PREFIX): number_column(found, name) for name in ours}
                empty = np.full(len(found), np.nan)
                self._kept.append((plain, {c: empty if v is None else v for c, v in columns.items()}))
            return plain

        return get_preprocessed_dataset

    def _write(self, path: str, dataset: Any) -> None:
        own = {column: self._of_part(dataset, column) for column in (*self.columns, SOURCE, LABEL)}
        kept = {column: values for column, values in own.items() if values is not None}
        with replacing(Path(path) / FILE) as temporary, open(temporary, "wb") as file:
            arrays = {name if name in (SOURCE, LABEL) else PREFIX + name: values for name, values in kept.items()}
            about = {_ROWS: np.array(rows_digest(dataset)), _NAMES: np.array(self._sources, dtype=np.str_)}
            if self.labels is not None:
                about[LABELS] = self.labels.state()
            np.savez(file, **arrays, **about)  # type: ignore[arg-type]

    def _read(self, path: str, dataset: Any) -> Columns:
        wanted = [column for column in self.columns if column not in dataset.column_names]
        if not (wanted or self._sources or self.labels):
            return {}
        try:
            found = _arrays(Path(path) / FILE)
        except (OSError, ValueError, BadZipFile) as error:
            if not (wanted or self.labels):  # nothing but the record asks for the sources
                logger.warning("tokenized_path: %s cannot be read: %s; the source of a row is not known", FILE, error)
                return {}
            raise ConfigError(
                f"tokenized_path: {Path(path) / FILE} holds the columns of its rows and cannot be read: {error} "
                "-> name another folder, or leave it out"
            ) from error
        own = str(found.get(_ROWS)) == rows_digest(dataset)
        missing = [column for column in wanted if PREFIX + column not in found]
        if wanted and (missing or not own):
            raise ConfigError(
                f"tokenized_path: {path} holds rows that were tokenised without the column {listed(missing or wanted)} "
                "-> name another folder, or leave it out"
            )
        kept = {column: found[PREFIX + column] for column in wanted}
        if self.labels is not None:
            self.labels.restore(found if own else {}, path)
            kept[LABEL] = found[LABEL]
        same = own and SOURCE in found and tuple(found.get(_NAMES, ())) == self._sources
        return kept | ({SOURCE: found[SOURCE]} if same else {})


def _arrays(path: Path) -> Mapping[str, Any]:
    """Returns what the file of kept columns holds; nothing where there is none."""
    if not path.is_file():
        return {}
    with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


class _Carrying:
    """A processor of LLaMA-Factory that leaves some columns with their rows.

    Args:
        processor: The processor.
        names: The columns, in the aligned dataset.
    """

    def __init__(self, processor: Any, names: Sequence[str]) -> None:
        self._processor, self._names = processor, names

    def preprocess_dataset(self, examples: Mapping[str, list[Any]]) -> Any:
        """Tokenises a batch of aligned rows."""
        carried = {name: examples[name] for name in self._names if name in examples}
        rows = {name: values for name, values in examples.items() if name not in carried}
        made = self._processor.preprocess_dataset(rows)
        if not carried:
            return made
        count = len(next(iter(carried.values())))
        if all(value == values[0] for values in carried.values() for value in values):
            return {**made, **{name: values[:1] * _count(made) for name, values in carried.items()}}
        left = range(count) if _count(made) == count else self._left(rows, count)
        assert len(left) == _count(made), "tokenising a row alone drops it as in a batch"
        return {**made, **{name: [values[place] for place in left] for name, values in carried.items()}}

    def print_data_example(self, example: Any) -> None:
        """Prints a row, as LLaMA-Factory does."""
        self._processor.print_data_example(example)

    def _left(self, rows: Mapping[str, list[Any]], count: int) -> list[int]:
        """Returns the places of the rows that are not dropped. LLaMA-Factory has said already which ones are."""
        alone = ({name: [values[place]] for name, values in rows.items()} for place in range(count))
        theirs = logging.getLogger("llamafactory")
        level = theirs.level
        theirs.setLevel(logging.ERROR)
        try:
            return [place for place, row in enumerate(alone) if _count(self._processor.preprocess_dataset(row))]
        finally:
            theirs.setLevel(level)


def _count(rows: Mapping[str, list[Any]]) -> int:
    return len(next(iter(rows.values()), []))
