"""Which pass over the data a resumed run is in, for trainers that take their rows from a sampler.

transformers numbers the passes and tells the sampler, which shuffles each anew. In some versions (4.51 is one) the
loader that skips the batches already trained on begins at pass 0 again, so a run resumed inside its second pass would
see the rows of the first. Here the number of the pass cannot fall below the one that the run is in.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class PassKeeper(TrainerCallback):
    """Tells the samplers of the train dataloader, at the start of each pass, which one it is at least."""

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Sets the least number of the pass: whole epochs done."""
        done = int(state.epoch or 0)
        for sampler in _samplers(train_dataloader):
            _never_below(sampler, done)
            sampler.set_epoch(sampler.epoch)


def _never_below(sampler: Any, least: int) -> None:
    plain = type(sampler).set_epoch
    sampler.set_epoch = lambda number: plain(sampler, max(number, least))


def _samplers(loader: Any) -> Iterator[Any]:
    """Yields the samplers inside of a loader's (nested) batch samplers that know passes."""
    holder = getattr(loader, "batch_sampler", None)
    while holder is not None:
        sampler = getattr(holder, "sampler", None)
        if hasattr(sampler, "set_epoch") and hasattr(sampler, "epoch"):
            yield sampler
        holder = getattr(holder, "batch_sampler", None)
