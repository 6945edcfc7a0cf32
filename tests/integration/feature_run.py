"""A run of one cell, watched: its trainer, what changed, what was weighed, and in which type the model computed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from dataflex.objective.weighing import Weighing
from dataflex.trainer.dynamic import DynamicTrainer


@dataclass
class Watched:
    """What was seen of a run.

    Attributes:
        out: Its folder.
        trainer: Its trainer.
        before: Every parameter when training began.
        weighed: (B,) losses of each call of the weighter.
        dtypes: Types of the logits in training.
    """

    out: Path
    trainer: Any = None
    before: dict[str, torch.Tensor] = field(default_factory=dict)
    weighed: list[torch.Tensor] = field(default_factory=list)
    dtypes: set[torch.dtype] = field(default_factory=set)

    @property
    def model(self) -> Any:
        """The model without what an engine wraps around it."""
        return self.trainer.accelerator.unwrap_model(self.trainer.model)

    def changed(self) -> set[str]:
        """Returns the names of the parameters that training has moved."""
        return {n for n, p in self.model.named_parameters() if not torch.equal(p.detach(), self.before[n])}

    def logged(self, key: str) -> dict[int, float]:
        """Returns step -> value of a metric."""
        history = json.loads((self.out / "trainer_state.json").read_text())["log_history"]
        return {entry["step"]: entry[key] for entry in history if key in entry}

    @property
    def losses(self) -> list[float]:
        """The loss of each step."""
        return list(self.logged("loss").values())

    @property
    def optimizer(self) -> Any:
        """The optimizer without what accelerate wraps around it."""
        return getattr(self.trainer.optimizer, "optimizer", self.trainer.optimizer)


def watch(monkeypatch: pytest.MonkeyPatch, out: Path) -> Watched:
    """Returns a watch that fills when a dynamic run takes place."""
    seen = Watched(out)
    begin, weigh = DynamicTrainer.begin_record, Weighing.weigh

    def begin_record(trainer: Any) -> None:
        begin(trainer)
        seen.trainer = trainer
        seen.before = {name: p.detach().clone() for name, p in seen.model.named_parameters()}
        seen.model.get_output_embeddings().register_forward_hook(see_type)

    def see_type(module: torch.nn.Module, args: Any, output: torch.Tensor) -> None:
        if module.training:
            seen.dtypes.add(output.dtype)

    def weigh_(weighing: Weighing, losses_B: torch.Tensor) -> torch.Tensor:
        seen.weighed.append(losses_B.detach().clone())
        return weigh(weighing, losses_B)

    monkeypatch.setattr(DynamicTrainer, "begin_record", begin_record)
    monkeypatch.setattr(Weighing, "weigh", weigh_)
    return seen
