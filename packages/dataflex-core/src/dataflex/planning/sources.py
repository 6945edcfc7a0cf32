"""From the datasets of a mixed run to its sources and the mixture that it starts with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import IterableDataset

from dataflex.config.arguments import DataflexArguments
from dataflex.config.checks.mixer_losses import weighs_itself
from dataflex.config.checks.source_keys import data_problems_of
from dataflex.config.checks.streaming import many_readers, no_sizes, no_sizes_for
from dataflex.config.mixture_sources import INITIAL, OBJECTIVE, MixtureBy, never_seen, share_problems, shares_in_order
from dataflex.config.spec import RunSpec
from dataflex.core.errors import ConfigError, refuse
from dataflex.core.source_labels import read_label_file
from dataflex.discovery.component_classes import find
from dataflex.interfaces.mixer import Mixer
from dataflex.planning.mixture import MixtureManager, initial_proportions, shares_in_words
from dataflex.planning.run_schedule import require_map_style
from dataflex.rows.label_columns import labels_of_column
from dataflex.rows.lengths import row_lengths
from dataflex.rows.split_sources import SplitSources, split
from dataflex.rows.streams import Stream, told_rows
from dataflex.rows.views import MixedSources
from dataflex.utils.logging import logger

FIRST_ROWS = 1000
"""Rows of a stream whose mean length stands for that of all."""


def mixed_sources(datasets: Any) -> MixedSources:
    """Returns the sources of a mapping name -> dataset, streams among them numbered in reading order.

    Raises:
        ConfigError: There are not two sources, one is empty, or only some are streams.
    """
    mixed = MixedSources(_readable(datasets)) if isinstance(datasets, Mapping) else datasets
    if not isinstance(mixed, MixedSources) or len(mixed.names) < 2:
        raise ConfigError("train_type: dynamic_mix needs two sources or more -> name them in dataset, or use static")
    empty = [name for name, size in zip(mixed.names, mixed.sizes, strict=True) if size == 0]
    if empty:
        raise ConfigError(f"the source {', '.join(empty)} has no rows -> check its file, or take it out of dataset")
    streams = [name for name, source in zip(mixed.names, mixed.sources, strict=True) if isinstance(source, Stream)]
    if streams and len(streams) < len(mixed.names):
        raise ConfigError(
            f"the source {', '.join(streams)} is a stream and the others are not -> make all of them streams, or none"
        )
    return mixed


def split_by_labels(dataset: Any, keys: DataflexArguments) -> Any:
    """Returns a dataset as the sources that ``mixture_by`` makes of it: by a column or a file, if it says so.

    Clusters are made once the trainer has prepared the rows: see :mod:`dataflex.trainer.clustered_rows`.

    Args:
        dataset: The train dataset as it was given; one that is split already comes back as it is.
        keys: The keys of the run.

    Raises:
        ConfigError: It is several datasets or a stream, or its rows do not all have a label.
    """
    by = MixtureBy.of(keys)
    if by is None or isinstance(dataset, SplitSources) or dataset is None:
        return dataset
    if isinstance(dataset, IterableDataset | Stream):
        refuse(data_problems_of(by, streaming=True, packing=False))
    if isinstance(dataset, Mapping | MixedSources):
        names = dataset.names if isinstance(dataset, MixedSources) else tuple(map(str, dataset))
        raise ConfigError(
            f"train_dataset: found a mapping of datasets ({', '.join(names)}), and mixture_by makes the sources of one "
            "-> leave mixture_by out, or give all as one with datasets.concatenate_datasets"
        )
    require_map_style(dataset, keys.train_type, keys)
    if by.column is not None:
        return split(dataset, labels_of_column(dataset, by.column))
    if by.file is not None:
        return split(dataset, read_label_file(by.file, len(dataset)))
    return dataset


def are_streams(mixed: MixedSources) -> bool:
    """Returns whether the sources are streams."""
    return isinstance(mixed.sources[0], Stream)


def require_streamable(spec: RunSpec, workers: int) -> None:
    """Refuses what cannot be done with streams: sizes that a mixer asks for, workers that would each get a part.

    Raises:
        ConfigError: In the words of ``validate``.
    """
    mixer = None if spec.mixer is None else spec.mixer.component
    sizes = mixer is not None and find(mixer.kind, mixer.name).needs_sizes  # type: ignore[attr-defined]  # a Mixer
    refuse([*(no_sizes_for(mixer.name) if mixer is not None and sizes else []), *many_readers(workers)])


def require_mixture(mixed: MixedSources, keys: DataflexArguments) -> None:
    """Refuses keys that say nothing of these sources.

    Raises:
        ConfigError: The sizes of streams are asked for, or the proportions are not one for each source.
    """
    refuse(no_sizes(keys) if are_streams(mixed) else [])
    refuse(share_problems(INITIAL, keys.init_mixture_proportions, mixed.names))
    refuse(share_problems(OBJECTIVE, keys.objective_proportions, mixed.names))


def require_objective(spec: RunSpec) -> None:
    """Refuses ``objective_proportions`` where the loss of the sources cannot be weighed by them. Loads no model.

    Raises:
        ConfigError: With the way out.
    """
    if spec.arguments.objective_proportions is None:
        return
    if not spec.mixes:
        raise ConfigError(
            f"{OBJECTIVE}: they weigh the sources of a mixture, and the run has none -> use a mixer, or leave them out"
        )
    if spec.mixer is not None:
        component = spec.mixer.component
        mixer: Any = find(component.kind, component.name)
        if mixer.loss_weights is not Mixer.loss_weights and mixer.weighs is Mixer.weighs:  # else its parameters decide
            raise ConfigError(str(weighs_itself(component.preset)))
    if spec.llamafactory.get("use_asft_loss"):
        raise ConfigError(
            f"use_asft_loss: computes the loss of a batch itself, so its sources cannot be weighed by {OBJECTIVE} -> "
            "set use_asft_loss: false, or leave them out"
        )


def mixture_of(spec: RunSpec, dataset: Any, seed: int) -> MixtureManager | None:
    """Returns the sources of a train dataset and the shares that a run starts with; None where it mixes nothing.

    Raises:
        ConfigError: As :func:`mixed_sources` and :func:`first_mixture`.
    """
    if not spec.mixes:
        return None
    mixed = mixed_sources(dataset)
    require_mixture(mixed, spec.arguments)  # of clusters nobody has looked yet
    return first_mixture(mixed, spec.arguments)(seed=seed)


def first_mixture(mixed: MixedSources, keys: DataflexArguments) -> Callable[..., MixtureManager]:
    """Returns what makes the mixture that a run starts with, once the seed is known.

    Raises:
        ConfigError: Tokens are to be counted where a source has none.
    """
    streams = are_streams(mixed)
    lengths = _mean_lengths(mixed) if keys.mixture_unit == "tokens" else None
    amounts = mixed.sizes if lengths is None else mixed.sizes * lengths
    given = shares_in_order(keys.init_mixture_proportions, mixed.names)
    shares = initial_proportions(keys.mixture_sample_rule, given, amounts)
    logger.debug("the mixture begins with %s: %s", origin_in_words(keys), shares_in_words(mixed.names, shares))
    objective = shares_in_order(keys.objective_proportions, mixed.names)
    if objective is not None:
        refuse(never_seen(mixed.names, shares, np.array(objective)))
    return functools.partial(
        MixtureManager, mixed.names, mixed.sizes, shares, mean_lengths=lengths, streams=streams, objective=objective
    )


def origin_in_words(keys: DataflexArguments) -> str:
    """Returns where the proportions come from, in words."""
    if keys.starts_from_sizes:
        return f"the sizes of its sources in {keys.mixture_unit}"
    return "equal shares" if keys.mixture_sample_rule == "uniform" else "init_mixture_proportions"


def _readable(datasets: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: Stream(part, rows=told_rows(part), name=name) if isinstance(part, IterableDataset) else part
        for name, part in datasets.items()
    }


def _mean_lengths(mixed: MixedSources) -> NDArray[np.float64]:
    """Returns (K,) mean tokens of a row of each source; of its first rows, where that is a stream.

    Raises:
        ConfigError: A source has no tokens at all.
    """
    means_K = np.array([_mean_length(source) for source in mixed.sources], dtype=np.float64)
    if not means_K.all():
        empty = [name for name, mean in zip(mixed.names, means_K, strict=True) if mean == 0]
        raise ConfigError(
            f"mixture_unit: tokens, but the rows of {', '.join(empty)} hold no token -> mixture_unit: rows"
        )
    return means_K


def _mean_length(source: Any) -> float:
    if not isinstance(source, Stream):
        return float(row_lengths(source).mean())
    lengths = [len(row["input_ids"]) for row in source.first(FIRST_ROWS)]
    return float(np.mean(lengths)) if lengths else 0.0
