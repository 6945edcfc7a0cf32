"""The loss of a pair or a tagged answer under the newest TRL is its trainer's: of the batch, and of the row alone."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import torch
import trl
from dataflex.core.errors import ConfigError
from dataflex.upstream.pair_losses import PAIR_LOSSES
from dataflex.upstream.stage_loss import Use, stage_loss
from dataflex.upstream.trl_preference import FusedDPO, FusedKTO
from packaging.version import Version

from tests.unit.stage_trainers import own_loss, require_the_trainers_loss, trl_trainer

pytestmark = pytest.mark.skipif(
    Version(trl.__version__) < Version("1.16"), reason="needs TRL 1.16: test_stage_loss.py has TRL 0.24"
)
SETTINGS: dict[str, dict[str, Any]] = {
    "rm": {},
    "rm centred": {"center_rewards_coefficient": 0.1},
    **{f"dpo {name}": {"loss_type": [name]} for name in PAIR_LOSSES if name not in ("exo_pair", "sft")},
    "dpo exo_pair": {"loss_type": ["exo_pair"], "label_smoothing": 0.1},
    "dpo robust smoothed": {"loss_type": ["robust"], "label_smoothing": 0.2},
    "dpo several": {"loss_type": ["sigmoid", "hinge"], "loss_weights": [0.7, 0.3]},
    "dpo js": {"f_divergence_type": "js_divergence"},
    "dpo forward": {"f_divergence_type": "forward_kl"},
    "dpo alpha": {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.5},
    "dpo wpo": {"use_weighting": True},
    "dpo ld": {"ld_alpha": 0.4},
    "dpo precomputed": {"precompute_ref_log_probs": True},
    "kto": {"desirable_weight": 1.3, "undesirable_weight": 0.7},
    "kto apo": {"loss_type": "apo_zero_unpaired"},
    "kto precomputed": {"precompute_ref_log_probs": True},
}
TOKENS = {"dpo sft": {"loss_type": ["sigmoid", "sft"]}}


def made(name, folder):
    return trl_trainer(name.partition(" ")[0], folder, **(SETTINGS | TOKENS)[name])


def batch_of(trainer, rows=5):
    columns = trainer._signature_columns or trainer._set_signature_columns_if_needed() or trainer._signature_columns
    found = [trainer.train_dataset[number] for number in range(rows)]
    kept = [{key: value for key, value in row.items() if key in columns} for row in found]
    return trainer._prepare_inputs(trainer.data_collator(kept))


@pytest.mark.parametrize("name", SETTINGS)
def test_the_mean_of_the_losses_of_rows_is_what_the_trainer_computes_and_so_are_gradients(name, tmp_path):
    trainer = made(name, tmp_path)
    require_the_trainers_loss(trainer, name.partition(" ")[0], batch_of(trainer))


@pytest.mark.parametrize("name", ["dpo ipo", "dpo sigmoid_norm"])
def test_an_answer_without_a_prompt_counts_all_of_its_tokens(name, tmp_path):
    trainer = made(name, tmp_path)
    trainer.model.eval()
    loss, inputs = stage_loss(trainer), batch_of(trainer)
    assert loss is not None
    trainer.beta = 20.0  # else a token more or less is hardly seen
    inputs["completion_mask"][2] = inputs["attention_mask"][2]
    rows_B = loss.row_losses(trainer, trainer.model, inputs)
    torch.testing.assert_close(rows_B.mean(), own_loss(trainer, inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SETTINGS | TOKENS)
def test_the_loss_of_a_row_alone_is_the_one_that_the_trainer_computes_of_it_alone(name, tmp_path):
    trainer = made(name, tmp_path)
    trainer.model.eval()
    loss, inputs = stage_loss(trainer), batch_of(trainer)
    assert loss is not None
    assert loss.refused(trainer, Use.SCORE) is None
    with torch.no_grad():
        alone_B = loss.alone(trainer, trainer.model, inputs)
        whole = {key: [row[key] for row in trainer.train_dataset] for key in trainer.train_dataset.column_names}
        for row in range(5):
            kept = {key: whole[key][row] for key in trainer._signature_columns if key in whole}
            batch = trainer._prepare_inputs(trainer.data_collator([kept]))
            torch.testing.assert_close(alone_B[row], own_loss(trainer, batch).squeeze(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "use", "words"),
    [
        ({"loss_type": ["aot"]}, Use.SCORE, "loss_type: aot sorts the answers"),
        ({"loss_type": ["sigmoid", "aot_unpaired"]}, Use.SCORE, "loss_type: aot_unpaired sorts the answers"),
        ({"loss_type": ["sigmoid", "sft"]}, Use.WEIGH, "loss_type: sft adds the mean over all tokens"),
    ],
)
def test_a_loss_in_which_rows_meet_is_refused_by_its_name(settings, use, words, tmp_path):
    trainer = trl_trainer("dpo", tmp_path, **settings)
    loss = stage_loss(trainer)
    assert loss is not None
    assert words in str(loss.refused(trainer, use))


def test_every_loss_type_of_the_trainer_is_known_or_refused(tmp_path):
    trainer = trl_trainer("dpo", tmp_path)
    named = set(re.findall(r'loss_type == "(\w+)"', inspect.getsource(trl.DPOTrainer._compute_loss)))
    assert named - set(PAIR_LOSSES) == {"aot", "aot_unpaired"}
    assert set(PAIR_LOSSES) <= named
    assert isinstance(stage_loss(trainer), FusedDPO)


def test_a_subclass_that_computes_another_loss_is_refused_and_one_that_does_not_is_known():
    class Other(trl.KTOTrainer):
        def _compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return super()._compute_loss(*args, **kwargs)

    class Quiet(trl.KTOTrainer):
        def log(self, *args: Any, **kwargs: Any) -> None: ...

    with pytest.raises(ConfigError, match=r"Other overrides _compute_loss of KTOTrainer, .* -> take KTOTrainer"):
        stage_loss(Other)
    assert isinstance(stage_loss(Quiet), FusedKTO)
