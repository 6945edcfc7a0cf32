"""Losses of rows in runs over TRL's preference trainers: scored, observed and weighed as TRL itself computes them."""

from __future__ import annotations

from collections import Counter
from typing import Any
from unittest.mock import patch

import numpy as np
import peft
import pytest
import torch
import trl
from dataflex import dynamic
from dataflex.core.errors import ComponentError, ConfigError
from dataflex.train.mixer.base_mixer import Mixer
from dataflex.train.weighter.base_weighter import Weighter
from packaging.version import Version
from transformers import TrainerCallback

from tests.unit.stage_trainers import texts_of_pairs, texts_with_tags, trl_trainer

RELEASE = Version(trl.__version__)
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This trainer will soon be moved"),
    pytest.mark.filterwarnings("ignore:.*padding_value"),
    pytest.mark.skipif(
        Version("0.24.99") < RELEASE < Version("1.16") or Version("0.24") > RELEASE,
        reason="the losses of rows are known for TRL 0.24 and 1.16",
    ),
]
STEPS = {"warmup_step": 0, "update_step": 2, "update_times": 1}
STAGES = ["dpo", "rm", "kto"]
ROWS = {"dpo": texts_of_pairs, "rm": texts_of_pairs, "kto": texts_with_tags}
QUIET = {"max_length": 64, "logging_steps": 1, "save_strategy": "no", "learning_rate": 1e-2}


def base_of(stage: str) -> Any:
    return getattr(trl, {"dpo": "DPOTrainer", "rm": "RewardTrainer", "kto": "KTOTrainer"}[stage])


def made(stage, folder, axes, rows=None, **settings):
    base = base_of(stage)

    def build(*, train_dataset, **given):
        return dynamic(base, **axes)(train_dataset=train_dataset if rows is None else rows, **given)

    return trl_trainer(stage, folder, build, **QUIET | settings)


class Times(Weighter):
    """Weighs every row by one number."""

    draws = False

    def __init__(self, factor: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor = factor

    def get_weighted_loss(self, losses, *, ctx, model, inputs):
        return (self.factor * losses).mean()


class Hears(Mixer):
    """Takes both sources alike and keeps what it observes."""

    def mix(self, model, step_id, **kwargs):
        return np.array([0.5, 0.5])

    def observe(self, step, losses_K, tokens_K):
        self.heard = losses_K, tokens_K


def log_of(trainer, *names):
    lines = [line for line in trainer.state.log_history if "loss" in line]
    return [{name: line[name] for name in ("loss", *names) if name in line} for line in lines]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_a_weighter_that_weighs_nothing_is_trls_run_bit_for_bit(stage, accumulation, tmp_path):
    steps = {"gradient_accumulation_steps": accumulation, "max_steps": 3}
    ours = made(stage, tmp_path / "o", {"weighter": Times}, **steps)
    ours.train()
    plain = trl_trainer(stage, tmp_path / "p", None, **QUIET | steps)
    plain.train()
    expected = plain.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in ours.model.state_dict().items())
    shown = ("rewards/chosen", "rewards/margins", "accuracy", "kl", "num_tokens")
    for line, other in zip(log_of(ours, *shown), log_of(plain, *shown), strict=True):
        assert line == pytest.approx(other, abs=1e-4)


class Passes(TrainerCallback):
    """Counts the forward passes of a trainer's model and of its reference while it takes steps."""

    def __init__(self, trainer):
        self.found, self.counts = Counter(), False
        models = {"model": trainer.model, "reference": vars(trainer).get("ref_model")}
        for name, model in models.items():
            if model is not None:
                model.register_forward_hook(lambda *_, name=name: self.found.update({name: int(self.counts)}))
        trainer.add_callback(self)

    def on_step_begin(self, args, state, control, **kwargs):
        self.counts = True

    def on_step_end(self, args, state, control, **kwargs):
        self.counts = False


@pytest.mark.parametrize("stage", STAGES)
def test_a_weighter_has_no_model_run_again(stage, tmp_path):
    ours = made(stage, tmp_path / "o", {"weighter": Times}, max_steps=2)
    plain = trl_trainer(stage, tmp_path / "p", None, **QUIET, max_steps=2)
    weighed, counted = Passes(ours), Passes(plain)
    ours.train()
    plain.train()
    assert counted.found["model"] >= 2
    assert weighed.found == counted.found


@pytest.mark.parametrize("stage", STAGES)
def test_a_trainer_that_runs_its_model_once_more_is_refused(stage, tmp_path):
    trainer = made(stage, tmp_path, {"weighter": Times}, max_steps=1)
    base = base_of(stage)

    def twice(self, model, inputs, *args, **kwargs):
        own(self, model, dict(inputs), *args, **kwargs)
        return own(self, model, inputs, *args, **kwargs)

    own = base.compute_loss
    with (
        patch.object(base, "compute_loss", twice),
        pytest.raises(ComponentError, match="more forward passes than its loss is made of"),
    ):
        trainer.train()


@pytest.mark.parametrize("stage", STAGES)
def test_twice_the_weight_is_twice_the_gradient(stage, tmp_path):
    norms = []
    for factor in (1.0, 2.0):
        axes = {"weighter": Times, "params": {"factor": factor}}
        trainer = made(stage, tmp_path / str(factor), axes, max_steps=1, max_grad_norm=1e9)
        trainer.train()
        norms.append(next(line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line))
    assert norms[1] == pytest.approx(2 * norms[0], rel=1e-4)


def own_losses(trainer, stage):
    """The loss that TRL computes of each row alone, under the trainer's present weights."""
    found = []
    trainer.model.eval()
    trainer._set_signature_columns_if_needed()
    for row in trainer.train_dataset:
        kept = {key: row[key] for key in trainer._signature_columns if key in row}
        kept = kept if Version("1") <= RELEASE or stage != "kto" else dict(row)
        inputs = trainer._prepare_inputs(trainer.data_collator([kept]))
        with torch.no_grad():
            found.append(float(super(type(trainer).__mro__[1], trainer).compute_loss(trainer.model, inputs)))
    return np.array(found)


@pytest.mark.parametrize("stage", STAGES)
def test_scores_of_rows_are_the_losses_that_trl_computes_of_each_alone(stage, tmp_path):
    trainer = made(stage, tmp_path, {"selector": "loss"} | STEPS, learning_rate=0.0)
    trainer.train()
    saved = np.load(tmp_path / "dataflex_selections" / "step_00000000.npz")
    assert saved["scores"] == pytest.approx(own_losses(trainer, stage)[saved["indices"]], abs=2e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_a_mixer_observes_the_mean_loss_of_the_rows_of_each_source(stage, tmp_path):
    if stage == "kto" and Version("1") > RELEASE:
        pytest.skip("KTOTrainer of TRL 0.24 takes no mapping of sources")
    sources = {"a": ROWS[stage](8), "b": ROWS[stage](12, seed=5)}
    trainer = made(stage, tmp_path, {"mixer": Hears} | STEPS | {"update_step": 1}, sources, learning_rate=0.0)
    trainer.train()
    losses_K, rows_K = trainer.training_objective.parts.mixer.mixer.heard
    logged = log_of(trainer)[0]["loss"]
    assert rows_K.tolist() == [2, 2]
    assert float(np.average(losses_K, weights=rows_K)) == pytest.approx(logged, abs=1e-4)


def test_adapters_are_weighed_against_the_model_without_them(tmp_path):
    config = {"peft_config": peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])}
    runs = []
    for axes in ({"weighter": Times}, None):
        base = base_of("dpo")

        def build(*, ref_model, _axes=axes, _base=base, **given):
            made_of = _base if _axes is None else dynamic(_base, **_axes)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(7)  # the adapter begins with random numbers
                return made_of(**given, **config)

        trainer = trl_trainer("dpo", tmp_path / str(len(runs)), build, max_steps=3, **QUIET)
        trainer.train()
        runs.append(trainer)
    expected = runs[1].model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in runs[0].model.state_dict().items())
    assert len({round(line["loss"], 4) for line in log_of(runs[0])}) > 1


def test_a_loss_in_which_pairs_meet_is_planned_and_not_scored(tmp_path):
    trainer = made("dpo", tmp_path / "random", {"selector": "random"} | STEPS, loss_type=["aot"])
    trainer.train()
    assert trainer.state.global_step == 2
    with pytest.raises(ConfigError, match="loss_type: aot sorts the answers of a batch"):
        made("dpo", tmp_path / "loss", {"selector": "loss"} | STEPS, loss_type=["aot"]).train()
