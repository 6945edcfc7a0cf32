"""The batches of a planned run: a loader for what is left of a segment, made anew for each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, SequentialSampler

from dataflex.core.component import seeded
from dataflex.planning.selecting import Chosen
from dataflex.rows.views import PlannedRows
from dataflex.trainer.host import Host
from dataflex.trainer.workers import outliving_sigterm


def batches_of(trainer: Host, dataset: Any, collate: Any, chosen: Chosen, batch_size: int) -> Iterator[Any]:
    """Yields this rank's batches of some rows, on the device. Lookahead and workers end with them.

    Args:
        trainer: The trainer.
        dataset: The train dataset without the columns that the model does not take.
        collate: Makes a batch.
        chosen: The rows in the order of training.
        batch_size: Rows of a batch of this rank.
    """
    args = trainer.args
    generator = torch.Generator()
    generator.manual_seed(seeded(trainer.seed, "loader", trainer.state.global_step))
    planned = PlannedRows(dataset, chosen.rows)
    loader = DataLoader(
        planned,
        batch_size=batch_size,
        sampler=SequentialSampler(planned),
        collate_fn=collate,
        num_workers=args.dataloader_num_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
        multiprocessing_context=_worker_start(args),
        pin_memory=args.dataloader_pin_memory,
        generator=generator,
    )
    prepared = outliving_sigterm(trainer.accelerator.prepare_data_loader(loader))
    try:
        yield from prepared
    finally:
        trainer.accelerator._dataloaders.remove(prepared)  # it keeps every loader it prepared; ours come by the dozen


def _worker_start(args: Any) -> str | None:
    """Returns how workers are started; an argument that transformers 5.24 has and 5.6 has not."""
    how: str | None = vars(args).get("dataloader_multiprocessing_context")
    return how if args.dataloader_num_workers else None
