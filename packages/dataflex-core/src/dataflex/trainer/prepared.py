"""The sources of a mixture under a trainer that prepares its dataset, as TRL's do.

Such a trainer takes one ``datasets.Dataset``, tokenises, cuts and packs it in its constructor, and knows nothing of
sources. So it is shown the first source; when it comes to prepare that, every source is prepared in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dataflex.rows.split_sources import SplitSources
from dataflex.rows.streams import Stream
from dataflex.rows.views import MixedSources
from dataflex.upstream.online_trainers import online_stage
from dataflex.upstream.trl_datasets import PREPARE, require_separate_sources


class SourcesApart:
    """Shows a trainer what it can take of a train dataset.

    Args:
        dataset: The train dataset.
        bases: The classes of the trainer underneath.
        args: Its TrainingArguments, or None.

    Attributes:
        shown: What goes to its constructor: the first source of a mixture that it would prepare, or takes one dataset
            of, as a trainer that samples answers does; else the dataset.

    Raises:
        InvalidConfigError: The trainer underneath cannot keep the sources apart.
    """

    def __init__(self, dataset: Any, bases: Sequence[type], args: Any) -> None:
        require_separate_sources(bases, dataset, args)
        prepares = any(PREPARE in vars(base) or online_stage(base) is not None for base in bases)
        self._mixed = dataset if prepares and isinstance(dataset, MixedSources) else None
        self.shown = dataset if self._mixed is None else _given(self._mixed.sources[0])
        self._awaited = self.shown  # by which the next stage of the train dataset is known from other datasets

    def prepare(self, dataset: Any, prepare: Callable[[Any], Any]) -> Any:
        """Prepares a dataset; with the first source also all others. A trainer may do so in several stages.

        Args:
            dataset: What the trainer underneath prepares, for training or for evaluation.
            prepare: How it does that.
        """
        if self._mixed is None or dataset is not self._awaited:
            return prepare(dataset)
        parts = {name: prepare(_given(part)) for name, part in zip(self._mixed.names, self._mixed.sources, strict=True)}
        made = {name: _readable(part, self._mixed) for name, part in parts.items()}
        self._mixed = self._mixed.with_sources(made) if isinstance(self._mixed, SplitSources) else MixedSources(made)
        self._awaited = next(iter(parts.values()))
        return self._awaited

    def whole(self, dataset: Any) -> Any:
        """Returns the train dataset that a trainer was constructed with: all sources of a mixture, prepared or not.

        Args:
            dataset: The one that the trainer underneath made of :attr:`shown`.
        """
        self._awaited = None  # what is prepared from now on is for evaluation
        return dataset if self._mixed is None else self._mixed


def _given(source: Any) -> Any:
    return source.dataset if isinstance(source, Stream) else source


def _readable(prepared: Any, before: MixedSources) -> Any:
    return Stream(prepared) if isinstance(before.sources[0], Stream) else prepared
