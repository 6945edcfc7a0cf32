"""``dynamic(...)`` over TRL's trainers of pairs and tagged answers, of the release that LLaMA-Factory takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import trl
from dataflex import dynamic
from dataflex.core.errors import ConfigError

from tests.unit.stage_trainers import trl_trainer

pytestmark = [
    pytest.mark.llamafactory,  # it pins the release
    pytest.mark.filterwarnings("ignore:This trainer will soon be moved to trl.experimental"),
    pytest.mark.filterwarnings("ignore:The `padding_value` property is deprecated"),
]
STAGES = ("rm", "dpo", "kto")
UPDATES = {"warmup_step": 1, "update_step": 1, "update_times": 2}
RUNS: dict[str, dict[str, Any]] = {
    "random": {"selector": "random", **UPDATES},
    "loss": {"selector": "loss", **UPDATES},
    "length": {"order": {"component": "sorting", "by": "length"}, "train_step": 3},
    "weighed": {"weighter": "loss", "train_step": 3},
}


def base_of(stage: str) -> Any:
    return {"rm": trl.RewardTrainer, "dpo": trl.DPOTrainer, "kto": trl.KTOTrainer}[stage]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", RUNS)
def test_a_run_over_trl_trains_to_its_end(stage, name, tmp_path):
    made = trl_trainer(stage, tmp_path, dynamic(base_of(stage), **RUNS[name]), logging_steps=1, save_strategy="no")
    made.train()
    losses = [line["loss"] for line in made.state.log_history if "loss" in line]
    assert len(losses) == 3
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_stage_has_not_is_refused_by_name(stage, tmp_path):
    made = dynamic(base_of(stage), selector="zeroth", **UPDATES)
    with pytest.raises(ConfigError, match=f"'zeroth' asks for losses of tokens, and the rows of stage {stage} are"):
        trl_trainer(stage, tmp_path, made)


@pytest.mark.parametrize("axis", [{"selector": "loss", **UPDATES}, {"weighter": "loss", "train_step": 3}], ids=str)
def test_a_setting_under_which_rows_have_no_loss_is_refused_before_training(axis, tmp_path):
    made = dynamic(trl.DPOTrainer, **axis)
    with pytest.raises(ConfigError, match="loss_type: bco_pair compares a pair"):
        trl_trainer("dpo", tmp_path, made, loss_type=["bco_pair"])


def test_a_subclass_with_another_loss_is_planned_and_not_scored(tmp_path):
    class Other(trl.DPOTrainer):
        def dpo_loss(self, *args: Any, **kwargs: Any) -> Any:
            return super().dpo_loss(*args, **kwargs)

    made = trl_trainer("dpo", tmp_path / "a", dynamic(Other, selector="random", **UPDATES), save_strategy="no")
    made.train()
    with pytest.raises(ConfigError, match="Other overrides dpo_loss of DPOTrainer"):
        trl_trainer("dpo", tmp_path / "b", dynamic(Other, selector="loss", **UPDATES), save_strategy="no")


@pytest.mark.parametrize("axis", [{"selector": "loss", **UPDATES}, {"weighter": "loss", "train_step": 3}], ids=str)
def test_a_collator_of_other_rows_is_refused_before_training(axis, tmp_path):
    def build(**given):
        return dynamic(trl.DPOTrainer, **axis)(data_collator=lambda rows: {"tokens": torch.zeros(2, 3)}, **given)

    with pytest.raises(ConfigError, match=r"made a batch of tokens, and .* of 'prompt_input_ids' -> use the collator"):
        trl_trainer("dpo", tmp_path, build)
