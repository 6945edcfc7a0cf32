"""Small runs with a mixer that looks at gradients, and the same gradients by one backward pass for each row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, Part, RunSpec
from dataflex.core.kinds import MIXER, WEIGHTER
from dataflex.core.registry import register_mixer
from dataflex.interfaces.mixer import Mixer
from dataflex.interfaces.source_gradients import GradientSketch, SourceGradients
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args
from dataflex.train.trainer import BY_TRAIN_TYPE, trainer_class
from transformers import Trainer

FIRST = 20
"""Rows of source ``a``; those of ``b`` come after them."""
EXACT = {"proj_dim": None, "factor_dim": None, "layers": "all"}


@register_mixer("gradient_watch")
class GradientWatch(Mixer):
    """Keeps the proportions, and what it was told."""

    def __init__(
        self,
        mixture_manager,
        every: int = 1,
        proj_dim: int | None = 64,
        factor_dim: int | None = 4,
        layers: str = "linear",
        unit: str = "token",
        weights: list[float] | None = None,
    ) -> None:
        super().__init__(mixture_manager)
        self.every, self.weights = every, weights
        self._sketch = GradientSketch(proj_dim, factor_dim, layers, unit)
        self.told: list[tuple[int, SourceGradients]] = []

    @property
    def gradient_sketch(self) -> GradientSketch:
        return self._sketch

    def wants_gradients(self, step: int) -> bool:
        return self.every > 0 and step % self.every == 0

    def observe_gradients(self, step: int, gradients: SourceGradients) -> None:
        self.told.append((step, gradients))

    @property
    def weighs(self) -> bool:
        return self.weights is not None

    def loss_weights(self) -> np.ndarray:
        return np.array(self.weights)

    def mix(self, model, step_id, **kwargs):
        return self.mixture_manager.proportions


@dataclass
class Seen:
    """A step as it was trained on: the micro-batches with their row numbers, and the weights before it."""

    batches: list[tuple[Mapping[str, torch.Tensor], torch.Tensor]]
    state: dict[str, torch.Tensor]


@dataclass
class Run:
    trainer: Any
    steps: list[Seen] = field(default_factory=list)

    @property
    def told(self) -> list[tuple[int, SourceGradients]]:
        return self.trainer.components.observing_mixer.told

    @property
    def weights(self) -> list[torch.Tensor]:
        return [p.detach().clone() for p in self.trainer.model.parameters()]


def sources() -> dict[str, TokenRows]:
    return {
        "a": TokenRows(FIRST, lengths=range(8, 20), prompt=2, seed=1),
        "b": TokenRows(24, lengths=range(8, 20), prompt=3, seed=2),
    }


def made(
    folder: Path,
    params: Mapping[str, Any],
    *,
    name: str = "gradient_watch",
    model: Any = None,
    weighter: ComponentSpec | None = None,
    steps: int = 4,
    given: Mapping[str, Any] | None = None,
    **args: Any,
) -> Any:
    """Returns the trainer of a run."""
    keys = {"warmup_step": 2, "update_step": 2, "update_times": steps // 2 - 1}
    mixer = ComponentSpec(MIXER, name, name, dict(params))
    if weighter is None:
        spec = RunSpec(DataflexArguments(train_type="dynamic_mix", component_name=name, **keys), mixer)
    else:
        arguments = DataflexArguments(
            train_type="dynamic", mixer={"component": name}, weighter={"component": weighter.name}, **keys
        )
        spec = RunSpec(arguments, parts=(Part(mixer), Part(weighter)))
    sizes = {"max_steps": steps, "per_device_train_batch_size": 4, "learning_rate": 1e-2}
    return trainer_class(BY_TRAIN_TYPE[spec.arguments.train_type], Trainer)(
        model=tiny_model(seed=1) if model is None else model,
        args=tiny_training_args(folder, **(sizes | args)),
        train_dataset=sources(),
        data_collator=pad_collate,
        dataflex=spec,
        **(given or {}),
    )


def trained(folder: Path, params: Mapping[str, Any], **kwargs: Any) -> Run:
    """Trains a run whose steps are looked at."""
    run = Run(made(folder, params, **kwargs))
    taken = run.trainer.get_batch_samples

    def get_batch_samples(*args: Any, **named: Any) -> Any:
        batches, counted = taken(*args, **named)
        rows = run.trainer.batch_rows.of_step
        if batches:
            copies = [({k: v.clone() for k, v in b.items()}, r.clone()) for b, r in zip(batches, rows, strict=True)]
            state = {name: value.clone() for name, value in run.trainer.model.state_dict().items()}
            run.steps.append(Seen(copies, state))
        return batches, counted

    run.trainer.get_batch_samples = get_batch_samples
    run.trainer.train()
    return run


def row_gradients(model: Any, step: Seen) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns (N, P) float64 gradients of the rows' sums of token losses, (N,) sources, (N,) labels.

    By all trained parameters. One forward and one backward pass for each row, without padding of others.
    """
    model.load_state_dict(step.state)
    model.double().eval()
    grads, of, labels = [], [], []
    trained_parameters = [p for p in model.parameters() if p.requires_grad]
    for batch, rows in step.batches:
        for place, row in enumerate(rows.tolist()):
            inputs = {key: batch[key][place : place + 1] for key in ("input_ids", "attention_mask")}
            logp = model(**inputs).logits[0, :-1].log_softmax(-1)
            wanted = batch["labels"][place, 1:]
            there = wanted != -100
            loss = -logp[there].gather(1, wanted[there][:, None]).sum()
            found = torch.autograd.grad(loss, trained_parameters, allow_unused=True)
            pairs = zip(found, trained_parameters, strict=True)
            grads.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs]))
            of.append(int(row >= FIRST))
            labels.append(int(there.sum()))
    return torch.stack(grads), torch.tensor(of), torch.tensor(labels)


def apart(run: Run, model: Any, unit: str = "token") -> float:
    """Returns the largest relative difference of what the mixer was told to the gradients of :func:`row_gradients`."""
    worst = 0.0
    assert len(run.told) == len(run.steps)
    for (_, told), step in zip(run.told, run.steps, strict=True):
        grads_NP, of_N, labels_N = row_gradients(model, step)
        x_NP = grads_NP / labels_N[:, None] if unit == "row" else grads_NP
        for k in range(2):
            mine_NP = x_NP[of_N == k]
            assert told.rows[k] == len(mine_NP)
            assert told.counts[k] == (len(mine_NP) if unit == "row" else int(labels_N[of_N == k].sum()))
            if not len(mine_NP):
                continue
            sum_P = mine_NP.sum(dim=0)
            worst = max(worst, float((torch.from_numpy(told.sums[k]) - sum_P).norm() / sum_P.norm()))
            worst = max(worst, abs(told.squares[k] / float(mine_NP.square().sum()) - 1))
    return worst


WEIGHTERS = {
    "focal": ComponentSpec(WEIGHTER, "focal", "focal", {"gamma": 2.0}),
    "loss": ComponentSpec(WEIGHTER, "loss", "loss", {}),
}
