"""Which pass over the data a resumed run is in, for trainers that take their rows from a sampler.

transformers numbers the passes and tells the sampler, which shuffles each anew. In some versions (4.51 is one) the
loader that skips the batches already trained on begins at pass 0 again, so a run resumed inside its second pass would
see the rows of the first. Here the number of the pass cannot fall below the one that the run is in.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from accelerate.data_loader import BatchSamplerShard, SkipBatchSampler
from torch.utils.data import BatchSampler, DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


@runtime_checkable
class KnowsPass(Protocol):
    """A sampler that shuffles each pass anew, as ``DistributedSampler`` and ``SeedableRandomSampler`` do."""

    epoch: int

    def set_epoch(self, epoch: int) -> None:
        """Tells it the number of the pass that begins."""


class PassKeeper(TrainerCallback):
    """Tells the sampler of the train dataloader, at the start of each pass, which one it is at least."""

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
        sampler = _sampler(train_dataloader)
        if sampler is not None:
            _never_below(sampler, done)
            sampler.set_epoch(sampler.epoch)


def _never_below(sampler: KnowsPass, least: int) -> None:
    plain = type(sampler).set_epoch

    def set_epoch(epoch: int) -> None:
        plain(sampler, max(epoch, least))

    sampler.set_epoch = set_epoch  # type: ignore[method-assign]


def _sampler(loader: Any) -> KnowsPass | None:
    """Returns the sampler inside of a loader's batch samplers, which accelerate nests, where it knows passes."""
    holder = loader.batch_sampler if isinstance(loader, DataLoader) else None
    while isinstance(holder, BatchSamplerShard | SkipBatchSampler):
        holder = holder.batch_sampler
    sampler = holder.sampler if isinstance(holder, BatchSampler) else None
    return sampler if isinstance(sampler, KnowsPass) else None
