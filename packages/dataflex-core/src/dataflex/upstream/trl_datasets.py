"""What TRL's trainers of preferences do to their train dataset, as far as a run that plans its rows must know it.

* Their constructors turn texts into tokens. Where a method of theirs does it (``_prepare_dataset``), each source of a
  mixture is prepared by itself; KTO did it inside of the constructor before TRL had such a method there.
* ``precompute_ref_log_probs`` adds columns with what the reference model gives to each row. Newer releases add them in
  the constructor (``_precompute_ref_logps``), older ones when their train dataloader is asked for, which a planned run
  never does: without the columns and without a reference model the policy would be compared with itself.
* KTO estimates the KL term from prompts with the completion of another row. TRL pairs neighbours of the dataset, for
  batches in the dataset's order. A planned batch has other rows, so there each row gets the completion of the row
  before it in its batch: the same rule, by which the completions of a batch stay the same set.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import datasets

from dataflex.core.errors import InvalidConfigError, Problem
from dataflex.discovery.installed import version_of
from dataflex.rows.views import MixedSources
from dataflex.utils.logging import logger

PREPARE = "_prepare_dataset"
"""The method of TRL's trainers that turns texts into tokens; see :mod:`dataflex.upstream.relied_on`."""
PRECOMPUTE = "_precompute_ref_logps"
"""The method that adds the reference's columns to a dataset, in releases that have one."""
_IN_CONSTRUCTOR = frozenset({"KTOTrainer", "ORPOTrainer", "CPOTrainer", "BCOTrainer"})  # where they have no PREPARE
_KEY = "precompute_ref_log_probs"
_OF_REFERENCE = frozenset({
    "ref_chosen_logps", "ref_rejected_logps", "ref_logps", "ref_KL_logps", "reference_logps", "reference_KL_logps",
})  # fmt: skip
_KL, _COMPLETION = "KL_completion_ids", "completion_ids"


def require_separate_sources(bases: Sequence[type], dataset: Any, args: Any) -> None:
    """Refuses a mixture of sources under a trainer that prepares one dataset alone.

    Args:
        bases: The classes of the trainer, in the order in which Python asks them.
        dataset: The train dataset.
        args: Its TrainingArguments, or None.

    Raises:
        InvalidConfigError: The trainer cannot keep the sources apart.
    """
    if not isinstance(dataset, MixedSources) or any(_is_of(base, "llamafactory") for base in bases):
        return  # its trainers go past TRL's constructors: their rows are prepared already
    release = f"of trl {version_of('trl')}"
    for base in bases:
        if _is_of_trl(base) and base.__name__ in _IN_CONSTRUCTOR and not _any_has(bases, PREPARE):
            what = f"is a mapping of sources, which {base.__name__} {release} cannot prepare one by one"
            raise InvalidConfigError([Problem("train_dataset", what, "give one dataset, or install a newer trl")])
        if _computes_in_loader(base, args) and not _any_has(bases, PRECOMPUTE):
            what = f"is true, and {base.__name__} {release} computes them for one dataset, not for a mapping of sources"
            raise InvalidConfigError([Problem(_KEY, what, f"set {_KEY}=False, or install a newer trl")])


def add_reference_columns(trainer: Any, bases: Sequence[type], train_dataloader: Callable[[], Any]) -> None:
    """Has an older TRL add the reference's columns to the train dataset now. Collective where it does.

    Args:
        trainer: The trainer, constructed, its model not trained yet.
        bases: The classes of the trainer underneath.
        train_dataloader: Its ``get_train_dataloader``; the loader that comes of it is thrown away.
    """
    if not any(_computes_in_loader(base, trainer.args) for base in bases) or _any_has(bases, PRECOMPUTE):
        return
    known = list(trainer.accelerator._dataloaders)
    train_dataloader()
    trainer.accelerator._dataloaders[:] = known


def without_reference_columns(dataset: Any) -> Any:
    """Returns the dataset as it was given: what a model computed of its rows says nothing about which rows they are."""
    if isinstance(dataset, MixedSources):
        found = {name: without_reference_columns(part) for name, part in _named(dataset).items()}
        changed = any(found[name] is not part for name, part in _named(dataset).items())
        return MixedSources(found) if changed else dataset
    computed = [column for column in _columns(dataset) if column in _OF_REFERENCE]
    return dataset.remove_columns(computed) if computed else dataset


def with_pairs_of_batch(bases: Sequence[type], dataset: Any, collate: Callable[[list[Any]], Any]) -> Any:
    """Returns a collator of planned batches: under KTO, one that pairs the rows of each batch anew.

    With columns of the reference, pairs stay as they are: it has seen these.

    Args:
        bases: The classes of the trainer underneath.
        dataset: The train dataset, prepared.
        collate: Makes a batch of a list of rows.
    """
    if not any(_is_of_trl(base) and base.__name__ == "KTOTrainer" for base in bases):
        return collate
    columns = _columns(dataset.sources[0] if isinstance(dataset, MixedSources) else dataset)
    if not columns or _is_paired(columns):  # a stream does not say which it has
        return PairsOfBatch(collate)
    if any(column.startswith("KL_") for column in columns):
        logger.info(
            "KTO: the KL term of a planned batch is estimated with completions of rows beside its own in the dataset, "
            "which may be of other batches -> loss_type='apo_zero_unpaired' needs no such term"
        )
    return collate


class PairsOfBatch:
    """Gives each row of a batch the completion of the row before it, and the first that of the last.

    Rows that have no completion of another row, or whose pairs the reference has seen, stay as they are.

    Args:
        collate: Makes a batch of a list of rows.
    """

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, rows: list[Mapping[str, Any]]) -> Any:
        """Returns the batch."""
        if not _is_paired(rows[0]):
            return self.collate(rows)
        return self.collate([{**row, _KL: rows[place - 1][_COMPLETION]} for place, row in enumerate(rows)])


def _is_paired(columns: Collection[str]) -> bool:
    """Whether rows have the completion of another row, and nothing that a reference gave to these two."""
    return _KL in columns and _OF_REFERENCE.isdisjoint(columns)


def _is_of_trl(base: type) -> bool:
    return _is_of(base, "trl")


def _is_of(base: type, package: str) -> bool:
    return base.__module__.partition(".")[0] == package


def _any_has(bases: Sequence[type], name: str) -> bool:
    return any(name in vars(base) for base in bases)


def _computes_in_loader(base: type, args: Any) -> bool:
    asked = args is not None and vars(args).get(_KEY) is True
    return asked and _is_of_trl(base) and "get_train_dataloader" in vars(base)


def _columns(dataset: Any) -> list[str]:
    return list(dataset.column_names or []) if isinstance(dataset, datasets.Dataset | datasets.IterableDataset) else []


def _named(mixed: MixedSources) -> dict[str, Any]:
    return dict(zip(mixed.names, mixed.sources, strict=True))
