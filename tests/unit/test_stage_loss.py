"""The loss of a pair or a tagged answer is the trainer's own: of its batch, and of the row alone."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from dataflex.core.errors import ConfigError
from dataflex.upstream.stage_interface import cut
from dataflex.upstream.stage_loss import KNOWN, Use, stage_loss
from packaging.version import Version

from tests.unit.stage_trainers import llamafactory_trainer, own_loss, require_the_trainers_loss, trl_trainer

pytestmark = [
    pytest.mark.llamafactory,
    pytest.mark.filterwarnings("ignore:The `padding_value` property is deprecated"),
    pytest.mark.filterwarnings("ignore:This trainer will soon be moved to trl.experimental"),
]

LLAMAFACTORY: dict[str, dict[str, Any]] = {
    "rm": {},
    "dpo": {},
    "dpo hinge": {"pref_loss": "hinge"},
    "dpo ipo": {"pref_loss": "ipo"},
    "dpo orpo": {"pref_loss": "orpo"},
    "dpo simpo": {"pref_loss": "simpo"},
    "dpo kto_pair": {"pref_loss": "kto_pair"},
    "dpo smoothed": {"dpo_label_smoothing": 0.2},
    "dpo with sft": {"pref_ftx": 0.5},
    "dpo ld": {"ld_alpha": 0.4},
    "kto": {"kto_chosen_weight": 1.3, "kto_rejected_weight": 0.7},
}
TRL: dict[str, dict[str, Any]] = {
    "rm": {},
    "rm centred": {"center_rewards_coefficient": 0.1},
    "dpo": {},
    **{f"dpo {name}": {"loss_type": [name]} for name in (
        "hinge", "ipo", "exo_pair", "nca_pair", "robust", "sppo_hard", "apo_zero", "apo_down", "discopop",
    )},
    "dpo several": {"loss_type": ["sigmoid", "hinge"], "loss_weights": [0.7, 0.3]},
    "dpo js": {"f_divergence_type": "js_divergence"},
    "dpo wpo": {"use_weighting": True},
    "dpo ld": {"ld_alpha": 0.4},
    "kto": {"desirable_weight": 1.3, "undesirable_weight": 0.7},
    "kto apo": {"loss_type": "apo_zero_unpaired"},
}  # fmt: skip
WEIGHABLE = [("lf", name) for name in LLAMAFACTORY] + [("trl", name) for name in TRL]
SCORED_ALONE = [*WEIGHABLE, ("trl", "dpo rpo"), ("trl", "dpo sft"), ("lf", "kto with sft")]
EXTRA = {"dpo rpo": {"rpo_alpha": 0.5}, "dpo sft": {"loss_type": ["sigmoid", "sft"]}, "kto with sft": {"pref_ftx": 0.5}}


def made(package: str, name: str, folder: Path) -> Any:
    stage = name.partition(" ")[0]
    if package == "lf":
        return llamafactory_trainer(stage, folder, **LLAMAFACTORY.get(name, EXTRA.get(name)))
    return trl_trainer(stage, folder, **TRL.get(name, EXTRA.get(name)))


def batch_of(trainer: Any, rows: int = 5) -> dict[str, Any]:
    return trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[n] for n in range(rows)]))


@pytest.mark.parametrize(("package", "name"), WEIGHABLE)
def test_the_mean_of_the_losses_of_rows_is_what_the_trainer_computes_and_so_are_gradients(package, name, tmp_path):
    trainer = made(package, name, tmp_path)
    require_the_trainers_loss(trainer, name.partition(" ")[0], batch_of(trainer))


@pytest.mark.parametrize(("package", "name"), SCORED_ALONE)
def test_the_loss_of_a_row_alone_is_the_one_that_the_trainer_computes_of_it_alone(package, name, tmp_path):
    trainer = made(package, name, tmp_path)
    trainer.model.eval()
    loss, inputs = stage_loss(trainer), batch_of(trainer)
    assert loss is not None
    assert loss.refused(trainer, Use.SCORE) is None
    smoothing = getattr(trainer, "label_smoothing", None)
    with torch.no_grad():
        alone_B = loss.alone(trainer, trainer.model, inputs)
        assert getattr(trainer, "label_smoothing", None) == smoothing, "scoring changed a setting of the trainer"
        for row in range(5):
            batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[row]]))
            torch.testing.assert_close(alone_B[row], own_loss(trainer, batch).squeeze(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("package", "settings", "use", "words"),
    [
        ("lf", {"pref_bco_weight": 1.0}, Use.SCORE, "pref_bco_weight: 1 compares a pair with the mean reward"),
        ("trl", {"loss_type": ["bco_pair"]}, Use.SCORE, "loss_type: bco_pair compares a pair"),
        ("trl", {"loss_type": ["aot"]}, Use.SCORE, "loss_type: aot sorts the answers"),
        ("trl", {"rpo_alpha": 1.0}, Use.WEIGH, "rpo_alpha"),
    ],
)
def test_a_loss_in_which_rows_meet_is_refused_by_its_name(package, settings, use, words, tmp_path):
    trainer = (llamafactory_trainer if package == "lf" else trl_trainer)("dpo", tmp_path, **settings)
    loss = stage_loss(trainer)
    assert loss is not None
    assert words in str(loss.refused(trainer, use))


def test_the_sft_term_of_kto_is_no_mean_over_rows(tmp_path):
    trainer = llamafactory_trainer("kto", tmp_path, pref_ftx=0.5)
    loss = stage_loss(trainer)
    assert loss is not None
    assert "pref_ftx: 0.5" in str(loss.refused(trainer, Use.WEIGH))


def test_a_subclass_that_computes_another_loss_is_refused_and_one_that_does_not_is_known(tmp_path):
    from trl import DPOTrainer

    class Other(DPOTrainer):
        def dpo_loss(self, *args: Any, **kwargs: Any) -> Any:
            return super().dpo_loss(*args, **kwargs)

    class Quiet(DPOTrainer):
        def log(self, *args: Any, **kwargs: Any) -> None: ...

    with pytest.raises(ConfigError, match=r"Other overrides dpo_loss of DPOTrainer, .* -> take DPOTrainer"):
        stage_loss(Other)
    assert stage_loss(Quiet) is stage_loss(DPOTrainer)


def test_a_release_of_trl_that_is_not_in_the_table_is_refused(monkeypatch):
    from trl import DPOTrainer

    monkeypatch.setattr("dataflex.upstream.stage_loss.version_of", lambda package: "0.23.1")
    with pytest.raises(ConfigError, match=r"DPOTrainer of TRL 0\.23\.1 is not known"):
        stage_loss(DPOTrainer)


def test_a_trainer_of_texts_is_not_in_the_table():
    from transformers import Trainer

    assert stage_loss(Trainer) is None


def test_what_a_loss_stands_on_is_there():
    import importlib

    for known in (known for known in KNOWN if known.holds(Version(version("trl")))):
        module, _, name = known.trainer.rpartition(".")
        owner = getattr(importlib.import_module(module), name)
        assert not [method for method in known.loss.stands_on if not hasattr(owner, method)], known.trainer


def test_one_row_is_cut_out_of_lists_and_tensors():
    batch = {"a": torch.arange(6).view(3, 2), "label": [True, False, True], "one": torch.tensor(3)}
    row = cut(batch, 1, 3)
    assert row["a"].tolist() == [[2, 3]]
    assert row["label"] == [False]
    assert row["one"] == 3
