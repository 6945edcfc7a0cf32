"""One optimizer step, split in some way over micro-batches and ranks, and what it computed: for tests of the objective.

Run under a process group, each rank takes its part of the same rows.
"""

from __future__ import annotations

import gc
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.kinds import MIXER, WEIGHTER
from dataflex.core.registry import register_mixer, register_weighter
from dataflex.rows.views import MixedSources
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args
from dataflex.train.mixer.base_mixer import Mixer
from dataflex.train.trainer import MixTrainer, WeightTrainer, trainer_class
from dataflex.train.weighter.base_weighter import Weighter
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback

ROWS = 16
LOSSES = {
    "cross entropy": ({}, {}, False),
    "smoothed": ({}, {"label_smoothing_factor": 0.3}, False),
    "dft": ({}, {}, True),
    "chunked": ({"weight_logits": "chunked"}, {}, False),
    "chunked dft": ({"weight_logits": "chunked"}, {}, True),
}
"""How a token's loss is made: keys of dataflex, training arguments, whether it is the DFT loss."""


@register_weighter("by_own_loss")
class ByOwnLoss(Weighter):
    """Weighs a sample by its own loss alone, and has a term that does not come from the losses."""

    def get_weighted_loss(self, losses, *, ctx=None, model=None, inputs=None):
        return (losses.detach().square() * losses).mean() + 0.01 * model.model.norm.weight.square().sum()


@register_weighter("passes_no_count_on")
class PassesNoCountOn(ByOwnLoss):
    """Trains as a weighter may that does not know of the count of labels."""

    def training_step(self, ctx, model, inputs, num_items_in_batch=None, use_weighter=False):
        with ctx.weighted_by(self):
            return ctx.plain_training_step(model, inputs)


@register_mixer("weighs_sources")
class WeighsSources(Mixer):
    def __init__(self, mixture_manager, weights=(1.0, 1.0)):
        super().__init__(mixture_manager)
        self.weights = np.array(weights)

    def mix(self, model, step_id, **kwargs):
        return self.mixture_manager.proportions

    def observe(self, step, losses_K, tokens_K):
        self.losses_K = losses_K

    def loss_weights(self):
        return self.weights


class Uneven(Dataset):
    """Rows of any length; one without a label, one whose only label is the first token's, some labelled throughout."""

    def __init__(self, count: int = ROWS, seed: int = 0) -> None:
        rows = TokenRows(count, lengths=range(6, 17), prompt=2, seed=seed)
        self.rows = [dict(rows[i]) for i in range(count)]
        self.rows[1]["labels"] = [-100] * len(self.rows[1]["labels"])
        self.rows[2]["labels"] = [5] + [-100] * (len(self.rows[2]["labels"]) - 1)
        for row in self.rows[3:8]:
            row["labels"] = list(row["input_ids"])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, list[int]]:
        return self.rows[i]


class Packed(Uneven):
    """The same, with two or three documents in each row."""

    def __init__(self) -> None:
        super().__init__()
        for i, row in enumerate(self.rows):
            n = len(row["input_ids"])
            cuts = [0, n // 2, n] if i % 2 else [0, n // 3, 2 * n // 3, n]
            row["position_ids"] = [t for a, b in itertools.pairwise(cuts) for t in range(b - a)]


def collate(rows: Any) -> dict[str, torch.Tensor]:
    batch = pad_collate([{key: row[key] for key in ("input_ids", "attention_mask", "labels")} for row in rows])
    if "position_ids" in rows[0]:
        positions = torch.zeros_like(batch["input_ids"])
        for place, row in zip(positions, rows, strict=True):
            place[: len(row["position_ids"])] = torch.tensor(row["position_ids"])
        batch |= {"position_ids": positions, "attention_mask": torch.ones_like(batch["attention_mask"])}
    return batch


def dft_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """The DFT loss as LLaMA-Factory has it; importing that takes long."""
    targets_BT = F.pad(labels, (0, 1), value=-100)[:, 1:]
    c_M = F.cross_entropy(outputs["logits"].flatten(0, 1), targets_BT.flatten(), reduction="none")
    c_M = c_M * torch.exp(-c_M.detach())
    return c_M.sum() / ((targets_BT != -100).sum() if num_items_in_batch is None else num_items_in_batch)


class Noting(Trainer):
    """Notes the losses that training steps return, and the factors of the samples' losses."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parts: list[float] = []

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)
        self.parts.append(loss.item())
        return loss


class Gradient(TrainerCallback):
    """Notes the gradient that the optimizer is given."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).numpy().copy()


def trained(trainer: Any, counted: bool, accelerator: Accelerator | None) -> dict[str, np.ndarray]:
    """Trains one step and returns loss and gradient of the step."""
    trainer.model_accepts_loss_kwargs = counted
    trainer.add_callback(noted := Gradient())
    gc.freeze()  # accelerate collects garbage at the end of each run: three fourths of its time, without this
    try:
        trainer.train()
    finally:
        gc.unfreeze()
    loss = torch.tensor(sum(trainer.parts), dtype=torch.float64)
    if accelerator is not None:
        loss = accelerator.reduce(loss, "mean")  # as the trainer logs it
    return {"loss": loss.cpu().numpy(), "gradient": noted.found}


def arguments(folder: Path, ranks: int, micro: int, **more: Any) -> Any:
    sizes = {"per_device_train_batch_size": ROWS // ranks // micro, "gradient_accumulation_steps": micro}
    fixed = {"optim": "sgd", "max_grad_norm": 0.0, "remove_unused_columns": False}
    return tiny_training_args(folder, **(sizes | fixed | more))


def weighted_step(
    folder: Path, micro: int, loss: str, accelerator: Accelerator | None = None, by: str = "sample",
    counted: bool = True, packed: bool = False, name: str = "by_own_loss", **more: Any,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Returns the loss and gradient of a weighted step, and the factor of each row's samples."""
    keys, args, dft = LOSSES[loss]
    ranks = 1 if accelerator is None else accelerator.num_processes
    factors = np.zeros(ROWS)

    class Watching(trainer_class(WeightTrainer, Noting)):  # type: ignore[misc]
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss, step = super().training_step(*args, **kwargs), self.training_objective.context
            np.add.at(factors, step.batch_rows.cpu().numpy(), step.sample_factors.cpu().double().numpy())
            return loss

    trainer = Watching(
        model=tiny_model(layers=1),
        args=arguments(folder, ranks, micro, max_steps=1, **args, **more),
        train_dataset=Packed() if packed else Uneven(),
        data_collator=collate,
        compute_loss_func=dft_loss if dft else None,
        dataflex=RunSpec(
            DataflexArguments("dynamic_weight", component_name=name, weight_objective=by, **keys),
            ComponentSpec(WEIGHTER, name, name, {}),
            {"use_dft_loss": dft},
        ),
        overwrite_output_dir=True,
    )
    found = trained(trainer, counted, accelerator)
    total = torch.from_numpy(factors)
    return found | {"factors": (total if accelerator is None else accelerator.reduce(total, "sum")).numpy()}


def mixed_step(
    folder: Path, micro: int, loss: str, accelerator: Accelerator | None = None,
    counted: bool = True, weights: tuple[float, ...] = (0.3, 2.0), **more: Any,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Returns the loss and gradient of a step whose sources have weights."""
    _, args, dft = LOSSES[loss]
    ranks = 1 if accelerator is None else accelerator.num_processes
    trainer = trainer_class(MixTrainer, Noting)(
        model=tiny_model(layers=1),
        args=arguments(folder, ranks, micro, max_steps=-1, **args, **more),
        train_dataset=MixedSources({"a": Uneven(10), "b": Uneven(30, seed=1)}),
        data_collator=collate,
        compute_loss_func=dft_loss if dft else None,
        dataflex=RunSpec(
            DataflexArguments(
                "dynamic_mix", component_name="weighs_sources", update_times=0, train_step=1,
                mixture_sample_rule="uniform",
            ),
            ComponentSpec(MIXER, "weighs_sources", "weighs_sources", {"weights": list(weights)}),
            {"use_dft_loss": dft},
        ),
        overwrite_output_dir=True,
    )  # fmt: skip
    return trained(trainer, counted, accelerator)
