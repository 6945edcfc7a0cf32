"""Streaming datasets of LLaMA-Factory's (``streaming: true``) as sources of a mixture."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any
from unittest.mock import patch

import llamafactory.data.loader as data_loader
from datasets import IterableDataset

from dataflex.config.spec import RunSpec
from dataflex.rows.streams import BlockOrder, Stream, told_rows


def keys_for_llamafactory(spec: RunSpec) -> dict[str, Any]:
    """Returns LLaMA-Factory's keys; for streams with ``max_steps``, which it asks for and the schedule knows.

    ``max_steps: null`` is left out: the arguments of transformers take it for a number.
    """
    config = dict(spec.llamafactory)
    if config.get("max_steps") is None:
        config.pop("max_steps", None)
    if spec.mixes and config.get("streaming") and config.get("max_steps", -1) <= 0:
        config["max_steps"] = spec.steps().total  # a stream without it is refused
    return config


def in_one_piece(training_args: Any) -> Any:
    """Returns the arguments with which LLaMA-Factory does not cut a local file into as many parts as there are workers.

    The order would follow ``dataloader_num_workers``, and without workers there would be no part to read.
    """
    changed = copy.copy(training_args)
    changed.dataloader_num_workers = 1
    return changed


def load_stream(load: Callable[..., Mapping[str, Any]], data_args: Any, seed: int) -> dict[str, Any]:
    """Loads one source as LLaMA-Factory does, in the order of a :class:`~dataflex.rows.streams.BlockOrder`.

    ``buffer_size`` is the number of rows in a block. ``val_size`` takes the first rows of the stream.

    Args:
        load: Loads what ``data_args`` names.
        data_args: LLaMA-Factory's arguments, with one dataset.
        seed: The run's seed.

    Returns:
        What LLaMA-Factory returns, with the train dataset as a :class:`~dataflex.rows.streams.Stream`.
    """
    order = BlockOrder(data_args.buffer_size, seed, "stream", data_args.dataset[0])
    with (
        patch.object(data_loader, "align_dataset", _row_by_row(data_loader.align_dataset)),
        patch.object(data_loader, "split_dataset", _in_order(order, data_loader.split_dataset)),
    ):
        module = dict(load(data_args=data_args))
    told = None if data_args.packing else told_rows(module["train_dataset"])  # packed rows are not those of the files
    rows = None if told is None else max(0, told - int(data_args.val_size))
    module["train_dataset"] = Stream(module["train_dataset"], order, rows, data_args.dataset[0])
    return module


def _row_by_row(original: Callable[..., Any]) -> Callable[..., Any]:
    """Puts a step that does nothing under LLaMA-Factory's, so that the state of a stream counts rows and not tables."""

    def align_dataset(dataset: Any, *args: Any, **kwargs: Any) -> Any:
        rows = dataset.skip(0) if isinstance(dataset, IterableDataset) else dataset
        return original(rows, *args, **kwargs)

    return align_dataset


def _in_order(order: BlockOrder, original: Callable[..., Any]) -> Callable[..., Any]:
    """Shuffles the rows in blocks, where the original fills a buffer that cannot be saved."""

    def split_dataset(dataset: Any, eval_dataset: Any, data_args: Any, seed: int) -> tuple[dict[str, Any], Any]:
        evaluation = original(None, eval_dataset, data_args, seed)[1]
        held_out = int(data_args.val_size)
        if held_out:
            evaluation["validation"], dataset = dataset.take(held_out), dataset.skip(held_out)
        return {"train": order.apply(dataset)}, evaluation

    return split_dataset
