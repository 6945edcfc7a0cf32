"""One optimizer step that several things weigh, and the same by plain loops in float64: for tests of the objective.

Run under a process group, each rank takes its part of the same rows.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.kinds import MIXER
from dataflex.core.registry import register_mixer
from dataflex.objective.loop_scale import counts_first
from dataflex.objective.parts import Parts, WeighterPart
from dataflex.planning.selecting import Chosen
from dataflex.rows.views import MixedSources
from dataflex.testing import tiny_model, tiny_training_args
from dataflex.train.mixer.base_mixer import Mixer
from dataflex.train.trainer import MixTrainer, trainer_class
from split_step import LOSSES, ByOwnLoss, Noting, Packed, Uneven, WeighsSources, collate, dft_loss, trained

ROWS = 12
SOURCE_WEIGHTS = (0.3, 2.0)
ROW_WEIGHTS = np.linspace(0.25, 2.5, ROWS).astype(np.float32)
PENALTY = 0.01  # of ByOwnLoss, on the norm's weights


@register_mixer("plain_shares")
class PlainShares(Mixer):
    """Neither looks at losses nor weighs them."""

    def mix(self, model, step_id, **kwargs):
        return self.mixture_manager.proportions


@register_mixer("watching_shares")
class WatchingShares(PlainShares):
    """Looks at losses."""

    def observe(self, step, losses_K, tokens_K):
        self.losses_K, self.tokens_K = losses_K, tokens_K


@register_mixer("weighing_shares")
class WeighingShares(WeighsSources):
    """Weighs sources."""

    def observe(self, step, losses_K, tokens_K):
        self.losses_K, self.tokens_K = losses_K, tokens_K


MIXERS = {"none": "plain_shares", "observes": "watching_shares", "weighs": "weighing_shares"}


class Combined(MixTrainer):
    """A mixing trainer with a weighter and weights of rows, as a run of several axes has them."""

    weighter: Any = None
    row_weights: Any = None
    seen: Any = None

    def _dataflex_parts(self) -> Parts:
        found = super()._dataflex_parts()
        part = None if self.weighter is None else WeighterPart(self.weighter, "own", "own", 0)
        rows = None if self.row_weights is None else "selector 'rescales'"
        return Parts(part, found.mixer, rows, seen=self.seen)

    def _dataflex_plan(self, segment: Any) -> Any:
        rows = super()._dataflex_plan(segment)
        self.segments.chosen = Chosen(rows, None, self.row_weights)
        return rows


def combined(
    folder: Path, micro: int, loss: str = "cross entropy", *, weighter: str = "none", mixer: str = "none",
    rows: bool = False, packed: bool = False, ranks: int = 1, seen: Any = None, **more: Any,
) -> Any:  # fmt: skip
    """Returns the trainer of one step.

    Args:
        folder: Its output_dir.
        micro: Micro-batches of the step, on each rank.
        loss: What a token costs, a key of ``LOSSES``.
        weighter: ``none``, or what a weighted step is a mean over: ``sample`` or ``token``.
        mixer: A key of ``MIXERS``.
        rows: Whether rows have weights.
        packed: Whether rows hold documents.
        ranks: Ranks.
        seen: Is told of the losses of rows.
        **more: Training arguments.
    """
    keys, args, dft = LOSSES[loss]
    name = MIXERS[mixer]

    class Own(Combined):
        weighter = None
        row_weights = ROW_WEIGHTS if rows else None

    Own.weighter, Own.seen = ByOwnLoss() if weighter != "none" else None, staticmethod(seen) if seen else None
    sizes = {"per_device_train_batch_size": ROWS // ranks // micro, "gradient_accumulation_steps": micro}
    fixed = {"optim": "sgd", "max_grad_norm": 0.0, "remove_unused_columns": False, "max_steps": -1}
    sources = {"a": Packed(), "b": Packed()} if packed else {"a": Uneven(10), "b": Uneven(30, seed=1)}
    return trainer_class(Own, Noting)(
        model=tiny_model(layers=1),
        args=tiny_training_args(folder, **(sizes | fixed | args | more)),
        train_dataset=MixedSources(sources),
        data_collator=collate,
        compute_loss_func=dft_loss if dft else None,
        dataflex=RunSpec(
            DataflexArguments(
                "dynamic_mix", component_name=name, update_times=0, train_step=1, mixture_sample_rule="uniform",
                **(keys if weighter != "none" else {}),
                **({"weight_objective": weighter} if weighter != "none" else {}),
            ),
            ComponentSpec(MIXER, name, name, {"weights": list(SOURCE_WEIGHTS)} if mixer == "weighs" else {}),
            {"use_dft_loss": dft},
        ),
        overwrite_output_dir=True,
    )  # fmt: skip


def combined_step(
    folder: Path, micro: int, *, counted: bool = True, accelerator: Accelerator | None = None, **given: Any
) -> dict[str, np.ndarray]:
    """Returns the loss and gradient of the step of :func:`combined`, and what its mixer observed."""
    trainer = combined(folder, micro, ranks=1 if accelerator is None else accelerator.num_processes, **given)
    found = trained(trainer, counted, accelerator)
    if given.get("mixer", "none") != "none":
        found |= {"losses_K": trainer.component.losses_K, "tokens_K": trainer.component.tokens_K}
    return found


def expected(folder: Path, trainer: Any, *, counted: bool = True, **given: Any) -> dict[str, np.ndarray]:
    """Returns the same by plain loops over samples and tokens in float64, from the formula of docs/weighters.md.

    Args:
        folder: The output_dir of the step, which holds its rows.
        trainer: One that was made alike, for its dataset.
        counted: Whether the loop counts the labels of the step.
        **given: As for :func:`combined`.
    """
    loss, weighter, mixer = (
        given.get("loss", "cross entropy"),
        given.get("weighter", "none"),
        given.get("mixer", "none"),
    )
    recorded = np.load(folder / "dataflex_selections" / "step_00000000.npz")
    numbers, u_S = recorded["indices"], recorded.get("weights", ROW_WEIGHTS)
    model = copy.deepcopy(tiny_model(layers=1)).double().train()
    first = counted and loss != "smoothed" and counts_first(trainer)
    v_of = SOURCE_WEIGHTS if mixer == "weighs" else (1.0, 1.0)
    above, below, penalty = torch.zeros((), dtype=torch.float64), 0.0, model.model.norm.weight.square().sum()
    sums_K, tokens_K = np.zeros(2), np.zeros(2, dtype=int)
    for place, number in enumerate(numbers):
        row = trainer.train_dataset[int(number)]
        k = int(trainer.train_dataset.sources_of(np.array([number]))[0])
        u = float(u_S[place]) if given.get("rows") else 1.0
        for labels, costs, entropies in documents(model, row, loss, apart=weighter != "none"):
            sums_K[k] += sum(entropies)
            tokens_K[k] += len(entropies)
            m = len(labels) if first else len(costs)
            w = 1.0
            if weighter != "none" and costs:
                w = (sum(c.item() for c in costs) / len(costs)) ** 2  # ByOwnLoss: d (l^2 detached . l) / d l
            if not costs and weighter == "sample":
                continue  # not a sample with a label to predict
            b = 1.0 / m if weighter == "sample" else 1.0
            above = above + b * v_of[k] * u * w * sum(costs, torch.zeros((), dtype=torch.float64))
            below += b * v_of[k] * m
    total = above / below
    (total + (PENALTY * penalty if weighter != "none" else 0.0)).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).numpy()
    found = {"loss": total.detach().numpy(), "gradient": gradient}
    return found if mixer == "none" else found | {"losses_K": sums_K / tokens_K, "tokens_K": tokens_K}


def documents(model: Any, row: Any, loss: str, apart: bool) -> Any:
    """Yields (labels, costs, cross entropies) of each document of a row, or of the row where not apart.

    Labels are the tokens that have one; costs and entropies those that are predicted, also by the document before.
    """
    ids, labels = torch.tensor([row["input_ids"]]), row["labels"]
    positions = {"position_ids": torch.tensor([row["position_ids"]])} if "position_ids" in row else {}
    logp = model(input_ids=ids, **positions).logits[0].log_softmax(-1)
    starts = [t for t, at in enumerate(row["position_ids"]) if at == 0] if positions and apart else [0]
    for start, stop in zip(starts, [*starts[1:], len(labels)], strict=True):
        costs, entropies = [], []
        for t in range(max(start, 1), stop):
            if labels[t] != -100:
                c = -logp[t - 1, labels[t]]
                entropies.append(c.item())
                if "dft" in loss:
                    c = c * torch.exp(-c.detach())
                if loss == "smoothed":
                    c = 0.7 * c - 0.3 * logp[t - 1].mean()
                costs.append(c)
        yield [label for label in labels[start:stop] if label != -100], costs, entropies
