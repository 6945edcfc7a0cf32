"""What `plan` takes a row of a stage to cost is how often LLaMA-Factory's trainer runs a model over it."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from dataflex.forecast.stage_passes import PAIRS, StagePasses, stage_passes
from dataflex.upstream.stage_loss import stage_loss

from tests.unit.stage_trainers import llamafactory_trainer

ROWS = 5
SETTINGS: list[dict[str, Any]] = [
    {"stage": "rm"},
    *({"stage": "dpo", "pref_loss": loss} for loss in ("sigmoid", "hinge", "ipo", "kto_pair", "orpo", "simpo")),
    {"stage": "kto"},
]


def counted(trainer: Any) -> Counter[bool]:
    """Returns whether with gradients -> rows that went through the model or its reference, from here on."""
    found: Counter[bool] = Counter()
    model = getattr(trainer.model, "pretrained_model", trainer.model)
    for each in filter(None, (model, getattr(trainer, "ref_model", None))):
        each.get_input_embeddings().register_forward_pre_hook(
            lambda _, given: found.update({torch.is_grad_enabled(): len(given[0])})
        )
    return found


@pytest.mark.llamafactory
@pytest.mark.filterwarnings("ignore:The `padding_value` property is deprecated")
@pytest.mark.filterwarnings("ignore:This trainer will soon be moved to trl.experimental")
@pytest.mark.parametrize("keys", SETTINGS, ids=lambda keys: " ".join(keys.values()))
def test_a_row_takes_as_many_passes_as_the_trainer_makes_in_training_and_in_scoring(keys, tmp_path: Path):
    trainer = llamafactory_trainer(keys["stage"], tmp_path, **{k: v for k, v in keys.items() if k != "stage"})
    loss = stage_loss(trainer)
    assert loss is not None
    inputs = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[n] for n in range(ROWS)]))
    found, passes = counted(trainer), stage_passes(keys)
    trainer.compute_loss(trainer.model, copy.deepcopy(inputs))
    assert found == {True: ROWS * passes.answers} | (
        {False: ROWS * passes.answers * (passes.forward - 1)} if passes.forward > 1 else {}
    )
    found.clear()
    with torch.no_grad():
        loss.alone(trainer, trainer.model, inputs)
    assert found == {False: ROWS * passes.answers * passes.forward}


def test_pairs_are_the_rows_of_two_answers():
    assert {
        stage for stage in ("pt", "sft", "rm", "dpo", "kto") if stage_passes({"stage": stage}).answers == 2
    } == PAIRS


@pytest.mark.parametrize("keys", [{}, {"stage": "sft"}, {"stage": "pt"}, {"stage": "sft", "pref_loss": "orpo"}])
def test_a_text_takes_one(keys):
    assert stage_passes(keys) == StagePasses(1, 1, every_logit=False)
