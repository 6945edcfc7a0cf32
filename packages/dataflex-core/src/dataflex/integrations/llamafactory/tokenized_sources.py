"""The sources of a run tokenised one by one, for runs that must know the source of each row.

Every key that means something to a static run's data means the same here; ``tests/integration/test_sources.py`` has the
table of them.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import llamafactory.data.loader as data_loader

from dataflex.config.checks.tokenized import EVALUATION, is_kept, source_folder, tokenized_problems
from dataflex.config.spec import RunSpec
from dataflex.core.errors import ConfigError, blaming, refuse
from dataflex.discovery.component_classes import find
from dataflex.integrations.llamafactory.reading import no_rows
from dataflex.integrations.llamafactory.stream_datasets import load_stream
from dataflex.interfaces.weighter import Weighter
from dataflex.rows.held_out import evenly, held_out_rows, in_words
from dataflex.rows.views import MixedSources
from dataflex.utils.logging import logger
from dataflex.utils.progress import Progress

NOTHING = 1e-6
"""LLaMA-Factory takes a ``val_size`` up to this for none."""


@dataclass(frozen=True)
class Loading:
    """How LLaMA-Factory loads data for a run.

    Attributes:
        load: ``load(data_args=...)`` returns what its ``get_dataset`` does.
        model_args: Its arguments.
        training_args: Its arguments.
        stage: ``pt`` or ``sft``.
        seed: The run's seed.
    """

    load: Callable[..., Mapping[str, Any]]
    model_args: Any
    training_args: Any
    stage: str
    seed: int


def knows_sources(spec: RunSpec, data_args: Any) -> bool:
    """Returns whether the run must know each row's source.

    Raises:
        ConfigError: It must, and LLaMA-Factory was told to mix the sources in a way that forgets them; or
            ``tokenized_path`` holds data of the other kind.
    """
    by_dataset = spec.arguments.mixture_by is None
    by_source = by_dataset and data_args.dataset is not None
    by_source = by_source and (spec.mixes or _weighter_needs_sources(spec, data_args))
    refuse(tokenized_problems(data_args.tokenized_path, by_source))
    return by_source


def load_sources(data_args: Any, loading: Loading) -> dict[str, Any]:
    """Tokenises each source once and returns them as one train dataset that knows where each begins.

    ``val_size`` is apportioned over the sources by size, see :mod:`dataflex.rows.held_out`; ``eval_dataset`` is loaded
    as in a static run; ``tokenized_path`` keeps one folder per source.

    Raises:
        ConfigError: A source gives no rows, or ``val_size`` leaves it none.
    """
    names, path = data_args.dataset, data_args.tokenized_path
    folders = {name: None if path is None else source_folder(path, name) for name in names}
    whole, counts = _held_out_counts(data_args, loading, [name for name in names if not is_kept(folders[name])])
    modules = {}
    for number, name in enumerate(names, 1):
        own = copy.copy(data_args)
        own.dataset, own.eval_dataset, own.val_size = [name], None, counts[name]
        own.tokenized_path = folders[name]
        with Progress(_tokenising(name, number, len(names)), bar=None):
            modules[name] = _load(loading, own, whole.get(name))
        train = modules[name].get("train_dataset")
        if train is None or (not data_args.streaming and len(train) == 0):
            raise no_rows(own, loading.stage, is_eval=False)
    result: dict[str, Any] = {"train_dataset": MixedSources({n: m["train_dataset"] for n, m in modules.items()})}
    evaluation: Any = {name: module["eval_dataset"] for name, module in modules.items() if module.get("eval_dataset")}
    if data_args.eval_dataset is not None:
        evaluation = _evaluation(data_args, loading)
    if evaluation:
        result["eval_dataset"] = evaluation
    return result


def load_held_out(data_args: Any, names: Sequence[str], load: Callable[..., Mapping[str, Any]]) -> dict[str, Any]:
    """Tokenises the datasets of ``mixer_eval_dataset``, the first one for the first source; all of their rows."""
    found = {}
    for number, (source, name) in enumerate(zip(data_args.dataset, names, strict=True), 1):
        own = copy.copy(data_args)
        own.dataset, own.eval_dataset, own.val_size = [name], None, 0.0
        own.tokenized_path, own.streaming = None, False
        with Progress(f"{_tokenising(name, number, len(names))}, held out for {source}", bar=None):
            found[source] = load(data_args=own)["train_dataset"]
    return found


def _tokenising(name: str, number: int, sources: int) -> str:
    return f"tokenising {name}" if sources == 1 else f"tokenising {name} ({number} of {sources})"


def _weighter_needs_sources(spec: RunSpec, data_args: Any) -> bool:
    if spec.weighter is None:
        return False
    component = spec.weighter.component
    cls = find(component.kind, component.name)
    with blaming(f"weighter '{component.preset}'"):
        needed = issubclass(cls, Weighter) and cls.needs_sources(component.params)
    if not needed:
        return False
    names = data_args.dataset or []
    who = f"the weighter '{component.preset}' must know the source of each row"
    if data_args.mix_strategy != "concat":
        raise ConfigError(f"mix_strategy: found {data_args.mix_strategy!r}, but {who} -> set mix_strategy: concat")
    if len(set(names)) < len(names):
        raise ConfigError(f"dataset: a source is named twice, but {who} -> name each source once")
    return True


def _held_out_counts(data_args: Any, loading: Loading, missing: Sequence[str]) -> tuple[dict[str, Any], dict[str, int]]:
    """Returns the rows of each source as they are in its files, where they had to be counted, and rows to hold out.

    Reading a file once matters: ``num_samples`` draws other rows the second time.
    """
    names, val_size = data_args.dataset, data_args.val_size
    if val_size <= NOTHING or not missing:  # what is kept was held out when it was tokenised
        return {}, dict.fromkeys(names, 0)
    if data_args.streaming:
        whole, counts = {}, evenly(names, val_size)
    else:
        args = loading.training_args
        shared = data_args.data_shared_file_system
        reading = Progress(f"reading {', '.join(names)}", bar=None)
        with args.main_process_first(desc="load dataset", local=not shared), reading:
            whole = data_loader._get_merged_dataset(
                names, loading.model_args, data_args, args, loading.stage, return_dict=True
            )
        counts = held_out_rows({name: len(rows) for name, rows in whole.items()}, val_size)
    logger.info("val_size: %g holds out %s", val_size, in_words(counts))
    return whole, counts


def _load(loading: Loading, own: Any, whole: Any) -> Mapping[str, Any]:
    if own.streaming:
        return load_stream(loading.load, own, loading.seed)

    def merged(names: Any, *args: Any, **kwargs: Any) -> Any:
        return whole if names else None

    read = nullcontext() if whole is None else patch.object(data_loader, "_get_merged_dataset", merged)
    with read:
        return loading.load(data_args=own)


def _evaluation(data_args: Any, loading: Loading) -> Any:
    own = copy.copy(data_args)
    own.dataset = None
    own.tokenized_path = None if own.tokenized_path is None else os.path.join(own.tokenized_path, EVALUATION)
    with Progress("tokenising eval_dataset", bar=None):
        return loading.load(data_args=own).get("eval_dataset")
