"""Processes that read ahead for a dataloader, and leave it to the process they read for to end at SIGTERM."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from accelerate.data_loader import DataLoaderAdapter
from torch.utils.data import DataLoader

from dataflex.core import sigterm


@dataclass(frozen=True)
class _Undisturbed:
    """What a worker begins with: it ignores SIGTERM, and then does what it was to do anyway.

    torch installs its own handler before, so this stays. The worker ends as always: when its loader lets go of it, or
    when the process that made it is gone.
    """

    then: Callable[[int], object] | None

    def __call__(self, worker: int) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if self.then is not None:
            self.then(worker)


def outliving_sigterm(loader: Any) -> Any:
    """Returns the loader, its workers deaf to SIGTERM where the run itself ends a step before it obeys.

    Schedulers signal every process of a job, and torch ends a run one of whose workers was killed: there would be no
    checkpoint.

    Args:
        loader: A loader that has not started its workers; accelerate's are seen through. Whatever is no loader of
            torch's is returned as it is.
    """
    reads = loader.base_dataloader if isinstance(loader, DataLoaderAdapter) else loader
    if sigterm.may_be_asked() and isinstance(reads, DataLoader) and reads.num_workers:
        found = reads.worker_init_fn
        if not isinstance(found, _Undisturbed):
            reads.worker_init_fn = _Undisturbed(found)
    return loader
