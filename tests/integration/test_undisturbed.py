"""Scoring leaves no trace: a selector that scores every row, draws random numbers and runs a backward pass, and then
returns the static order, makes the static run bit for bit."""

from __future__ import annotations

import json

import pytest
import torch
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.kinds import SELECTOR
from dataflex.run.record import read_trace
from dataflex.scoring import per_sample_losses, undisturbed
from dataflex.testing import tiny_training_args
from dataflex.train.selector.base_selector import Selector
from dataflex.train.trainer import SelectTrainer, trainer_class
from safetensors.torch import load_file
from transformers import Trainer

SCORES_EVERYTHING = '''
import random

import numpy as np
import torch
from dataflex.core.registry import register_selector
from dataflex.scoring import per_sample_losses
from dataflex.train.selector.base_selector import Selection, Selector


@register_selector("scores_everything")
class ScoresEverything(Selector):
    """The rows that the static run would have drawn, after everything that must leave no trace."""

    def order(self):
        return torch.randperm(len(self.dataset), generator=torch.Generator().manual_seed(self.seed)).tolist()

    def warmup(self, num_samples, replacement=False):
        return self.order()[:num_samples]

    def select(self, model, step_id, num_samples, **kwargs):
        losses = per_sample_losses(
            model, self.dataset, collator=self.data_collator, accelerator=self.accelerator, progress=False
        )
        random.random(), np.random.rand(3), torch.rand(5), torch.nn.functional.dropout(torch.ones(9))
        batch = self.data_collator([dict(self.dataset[i]) for i in range(4)])
        model.train()
        model(**batch).loss.backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
        for p in model.parameters():
            p.grad = None
        start = step_id * num_samples // 2
        chosen = self.order()[start : start + num_samples]
        return Selection(chosen, losses[chosen])
'''

RUN = [
    "lora_dropout=0.1",
    "disable_gradient_checkpointing=false",
    "gradient_accumulation_steps=2",
    "per_device_train_batch_size=2",
    "learning_rate=1.0e-3",
    "save_steps=6",
]


def test_scoring_everything_and_returning_the_static_order_is_the_static_run(train, tmp_path):
    plugin = tmp_path / "scores everything.py"
    plugin.write_text(SCORES_EVERYTHING)
    steps = ["warmup_step=2", "update_step=2", "update_times=2"]
    chosen = [f"plugins=['{plugin}']", "component_name=scores_everything"]
    assert train("select_random", *steps, *RUN, *chosen, out="dynamic") == 0
    assert train("static_sft", "max_steps=6", *RUN, out="static") == 0
    static, dynamic = tmp_path / "static", tmp_path / "dynamic"
    assert [line["step"] for line in read_trace(dynamic)] == [2, 4]
    assert all(line["scores"]["std"] > 0 for line in read_trace(dynamic))
    assert losses(dynamic) == losses(static)
    assert len(losses(static)) == 6
    assert equal(load_file(dynamic / "adapter_model.safetensors"), load_file(static / "adapter_model.safetensors"))
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        a, b = (torch.load(out / "checkpoint-6" / name, weights_only=False) for out in (dynamic, static))
        assert equal(a, b), name


def losses(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def equal(a, b) -> bool:
    """Whether two nested states are the same to the last bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool((a == b).all()) if hasattr(a, "all") else a == b


class Normed(torch.nn.Module):
    """A classifier with dropout and BatchNorm, whose buffers any forward in train mode moves."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 3)
            )

    def forward(self, x, labels=None):
        logits = self.layers(x)
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


class Points(torch.utils.data.Dataset):
    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(48, 6, generator=generator)
        self.labels = torch.randint(0, 3, (48,), generator=generator)

    def __len__(self) -> int:
        return 48

    def __getitem__(self, i):
        return {"x": self.x[i], "labels": self.labels[i]}


class ScoresPoints(Selector):
    """Scores with the model in the mode in which it is given."""

    def warmup(self, num_samples, replacement=False):
        return self.order()[:num_samples]

    def order(self):
        return torch.randperm(len(self.dataset), generator=torch.Generator().manual_seed(self.seed)).tolist()

    def select(self, model, step_id, num_samples, **kwargs):
        assert not any(module.training for module in model.modules())
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with torch.no_grad():
            loss = model(self.dataset.x, self.dataset.labels)["loss"]
        assert torch.isfinite(loss)
        assert equal(before, dict(model.state_dict()))
        return self.order()[step_id * 8 : step_id * 8 + num_samples]


def points_trainer(cls, folder, **more):
    args = tiny_training_args(folder, max_steps=6, per_device_train_batch_size=8, learning_rate=1e-2, logging_steps=1)
    return cls(model=Normed(), args=args, train_dataset=Points(), **more)


def test_batch_norm_and_dropout_of_a_model_that_is_no_language_model_go_on_as_in_the_static_run(tmp_path, monkeypatch):
    from dataflex.core import registry

    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    registry.register_selector("scores_points")(ScoresPoints)
    arguments = DataflexArguments(train_type="dynamic_select", warmup_step=2, update_step=2, update_times=2)
    spec = RunSpec(arguments, ComponentSpec(SELECTOR, "scores_points", "scores_points", {}))
    static = points_trainer(Trainer, tmp_path / "static")
    static.train()
    dynamic = points_trainer(trainer_class(SelectTrainer, Trainer), tmp_path / "dynamic", dataflex=spec)  # seeds anew
    dynamic.train()
    assert [line["step"] for line in read_trace(tmp_path / "dynamic")] == [2, 4]
    assert equal(dict(dynamic.model.state_dict()), dict(static.model.state_dict()))
    assert dynamic.model.layers[1].num_batches_tracked == 6
    assert dynamic.model.layers[1].running_mean.abs().sum() > 0
    assert equal(dynamic.optimizer.state_dict(), static.optimizer.state_dict())


def test_a_forward_in_train_mode_would_move_the_buffers():
    """What the eval mode of scoring prevents; without it the test above could not fail."""
    model, points = Normed(), Points()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with undisturbed(model):
        model(points.x)
    assert equal(before, dict(model.state_dict()))
    assert model.training
    model(points.x)
    assert not equal(before, dict(model.state_dict()))


@pytest.mark.parametrize("mode", [True, False])
def test_scoring_puts_back_the_mode_of_each_module(mode):
    from dataflex.testing import TokenRows, pad_collate, tiny_model

    model = tiny_model().train(mode)
    model.model.layers[0].train(not mode)
    flags = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    per_sample_losses(model, TokenRows(6), collator=pad_collate, progress=False)
    assert [module.training for module in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), state)
