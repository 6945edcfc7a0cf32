"""What goes wrong while LLaMA-Factory reads and tokenises data, in words that name the dataset and its file.

Each rank looks for itself whether rows are there, so that all of them end with the same sentence: LLaMA-Factory looks
on the first one only.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import llamafactory.data.loader as data_loader
from datasets.exceptions import DatasetGenerationError

from dataflex.config.checks.data_files import data_files, read_table
from dataflex.config.checks.dataset_entry import INFO, entry
from dataflex.config.checks.datasets import read_info
from dataflex.config.checks.formats import require_format
from dataflex.core.errors import ConfigError, DataflexError

LARGEST = 256 * 2**20
"""Bytes of a file that is read once more to find the row that could not be read."""


def replacements() -> list[tuple[Any, str, Any]]:
    """Returns (module, name, stand-in) of everything that is replaced."""
    return [
        (data_loader, "_load_single_dataset", _load_single(data_loader._load_single_dataset)),
        (data_loader, "_get_preprocessed_dataset", _preprocessed(data_loader._get_preprocessed_dataset)),
        (data_loader, "load_from_disk", _from_disk(data_loader.load_from_disk)),
    ]


@contextmanager
def named(data_args: Any) -> Iterator[None]:
    """Names the datasets of a run in whatever reading them raises and nobody has put into words yet.

    Raises:
        ConfigError: Reading failed; the cause keeps its traceback.
    """
    names = [*(data_args.dataset or []), *(data_args.eval_dataset or [])]
    with _saying(f"the data cannot be read (datasets: {', '.join(names)})", f"look at their files and at {INFO}"):
        yield


def no_rows(data_args: Any, stage: str, is_eval: bool) -> ConfigError:
    """Returns the error of a dataset of which tokenising leaves no row, with the likely reason.

    Args:
        data_args: LLaMA-Factory's arguments, with the datasets that were read together.
        stage: ``pt`` or ``sft``.
        is_eval: Whether the rows are for evaluation.
    """
    own = is_eval and data_args.eval_dataset is not None
    names = (data_args.eval_dataset if own else data_args.dataset) or []
    key = "eval_dataset" if own else "dataset"
    shown = ", ".join(f"'{name}'{_file_of(name, data_args)}" for name in names)
    held_out = f"what val_size: {data_args.val_size:g} holds out of " if is_eval and not own else ""
    what = f"{held_out}the dataset {shown} gives no rows"
    if stage == "pt" and data_args.packing:
        why = f"with stage: pt its texts are joined and cut into pieces of cutoff_len ({data_args.cutoff_len}) tokens"
        way_out = f"add text, lower cutoff_len, set packing: false, or take it out of {key}"
        return ConfigError(f"{what}: {why}, and there are fewer -> {way_out}")
    why = "a row is dropped that has no answer, or whose turns do not alternate"
    if data_args.packing:
        why += f", or that is longer than cutoff_len ({data_args.cutoff_len} tokens) with packing: true"
    way_out = f"look at its answers, and at formatting, columns and tags in {INFO}, or take it out of {key}"
    return ConfigError(f"{what}: {why} -> {way_out}")


def _load_single(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def load_single_dataset(dataset_attr: Any, model_args: Any, data_args: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(dataset_attr, model_args, data_args, *args, **kwargs)
        except DataflexError:
            raise
        except Exception as error:  # datasets, pandas and pyarrow raise anything; the cause keeps its traceback
            names = [*(data_args.dataset or []), *(data_args.eval_dataset or [])]
            name = next((n for n in names if _reads(n, dataset_attr, data_args)), str(dataset_attr.dataset_name))
            _refuse_by_file(name, data_args)
            raise ConfigError(
                f"the dataset '{name}'{_file_of(name, data_args)} cannot be read: {_reason(error)} -> repair its file, "
                f"or its entry in {INFO}"
            ) from error

    return load_single_dataset


def _preprocessed(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def get_preprocessed_dataset(
        dataset: Any, data_args: Any, training_args: Any, stage: str, *args: Any, is_eval: bool = False, **kwargs: Any
    ) -> Any:
        own = is_eval and data_args.eval_dataset is not None
        names = ", ".join(f"'{name}'" for name in (data_args.eval_dataset if own else data_args.dataset) or [])
        try:
            with _saying(f"the rows of the dataset {names} cannot be tokenised", "look at their values"):
                found = original(dataset, data_args, training_args, stage, *args, is_eval=is_eval, **kwargs)
                empty = found is not None and _is_empty(found, looked=training_args.should_log)
        except ConfigError as error:
            if _found_nothing(error.__cause__):
                raise no_rows(data_args, stage, is_eval) from None
            raise
        if empty:
            raise no_rows(data_args, stage, is_eval)
        return found

    return get_preprocessed_dataset


def _from_disk(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def load_from_disk(path: Any, *args: Any, **kwargs: Any) -> Any:
        with _saying(f"tokenized_path: {path} holds no whole tokenised dataset", "remove the folder, or name another"):
            return original(path, *args, **kwargs)

    return load_from_disk


@contextmanager
def _saying(what: str, way_out: str) -> Iterator[None]:
    try:
        yield
    except DataflexError:
        raise
    except Exception as error:  # as above
        raise ConfigError(f"{what}: {_reason(error)} -> {way_out}") from error


def _found_nothing(cause: BaseException | None) -> bool:
    """Whether LLaMA-Factory looked for a first row and there was none, before or after tokenising."""
    if isinstance(cause, RuntimeError):  # Python makes one of a StopIteration inside of a generator, as streams are
        return "Cannot find" in str(cause) or isinstance(cause.__cause__, StopIteration)
    return isinstance(cause, StopIteration)


def _is_empty(rows: Any, looked: bool) -> bool:
    """Whether no row is left; a stream is read up to its first one, unless LLaMA-Factory has done so on this rank."""
    if isinstance(rows, datasets.IterableDataset):
        return not looked and next(iter(rows), None) is None
    return len(rows) == 0


def _reads(name: str, dataset_attr: Any, data_args: Any) -> bool:
    (found,) = data_loader.get_dataset_list([name], data_args.dataset_dir)
    return bool(found == dataset_attr)


def _file_of(name: str, data_args: Any) -> str:
    """Returns `` (data/a.json)`` for a local dataset, the name of a hub's for another."""
    (found,) = data_loader.get_dataset_list([name], data_args.dataset_dir)
    local = found.load_from in ("file", "script") and isinstance(data_args.dataset_dir, str)
    path = os.path.join(data_args.dataset_dir, found.dataset_name) if local else found.dataset_name
    return "" if path == name else f" ({path})"


def _refuse_by_file(name: str, data_args: Any) -> None:
    """Looks for the row with the checks of ``validate``, which left the file alone if it is large.

    Raises:
        ConfigError: It names the file, the row and the column.
    """
    info, _ = read_info(data_args.dataset_dir)
    if info is None or name not in info:
        return
    found = entry(name, info[name], plugins=True)
    if found.file_name is None:
        return
    folder = data_args.dataset_dir if isinstance(data_args.dataset_dir, str) else "."
    for file in data_files(Path(folder, found.file_name), name):
        require_format(found, read_table(file, LARGEST), data_args.max_samples)


def _reason(error: BaseException) -> str:
    """Returns an error in one sentence: what stands behind it, where datasets only says that it happened."""
    cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ is not None else error
    if isinstance(cause, KeyError):
        return f"no row has the column {cause.args[0]!r}" if cause.args else "a column is missing"
    if isinstance(cause, StopIteration):
        return "it has no rows"
    first = " ".join(str(cause).split())
    return f"{type(cause).__name__}: {first[:300]}" if first else type(cause).__name__
