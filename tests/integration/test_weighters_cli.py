"""The weighters through LLaMA-Factory: sources that it would forget, files by row number, Liger, the target."""

from __future__ import annotations

import inspect
import json

import numpy as np
import pytest
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.kinds import SELECTOR

MIXED = ["dataset=[instructions, instructions_eval]", "eval_dataset=null"]
WEIGHT = ["warmup_step=0", "train_step=3", "weight_objective=token"]


def losses(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def presets(folder, **params):
    file = folder / "components.yaml"
    file.write_text(json.dumps({"weighters": {name: {"params": value} for name, value in params.items()}}))
    return f"components_cfg_file={file}"


def test_constant_weights_by_source_are_the_static_run_where_they_are_one(train, tmp_path):
    assert train("weight_loss", *MIXED, "train_type=static", "max_steps=3", out="static") == 0
    assert train("weight_loss", *MIXED, *WEIGHT, "component_name=dataset", presets(tmp_path), out="ones") == 0
    assert losses(tmp_path / "ones") == losses(tmp_path / "static")
    more = presets(tmp_path, dataset={"weights": {"instructions_eval": 0.0}})
    assert train("weight_loss", *MIXED, *WEIGHT, "component_name=dataset", more, out="one source") == 0
    assert losses(tmp_path / "one source") != losses(tmp_path / "static")


def test_an_unknown_source_and_a_mixing_that_forgets_sources_are_refused(train, tmp_path, capsys):
    wrong = presets(tmp_path, dataset={"weights": {"instruction": 1.0}})
    assert train("weight_loss", *MIXED, *WEIGHT, "component_name=dataset", wrong) == 2
    assert "weights.instruction: no such source" in capsys.readouterr().err
    interleaved = ["mix_strategy=interleave_under", "interleave_probs='0.5,0.5'"]
    assert train("weight_loss", *MIXED, *WEIGHT, "component_name=balancer", presets(tmp_path), *interleaved) == 2
    assert "must know the source of each row -> set mix_strategy: concat" in capsys.readouterr().err


def test_a_file_of_weights_has_a_number_per_tokenised_row(train, tmp_path, capsys):
    np.save(tmp_path / "w.npy", np.ones(60))
    good = presets(tmp_path, column={"file": str(tmp_path / "w.npy")})
    assert train("weight_loss", *WEIGHT, "component_name=column", good) == 0
    np.save(tmp_path / "w.npy", np.ones(61))
    assert train("weight_loss", *WEIGHT, "component_name=column", good, out="bad") == 2
    assert "has 61 numbers and no column row, for 60 rows of the train dataset" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["adapt", "balancer"])
def test_lora_is_weighed_by_hidden_states_and_their_gradients(train, tmp_path, name):
    dataset = ["dataset=[instructions, instructions_eval]"] if name == "balancer" else []
    assert train("weight_loss", *WEIGHT, *dataset, f"component_name={name}", "gradient_accumulation_steps=2") == 0
    assert len(losses(tmp_path / "run")) == 3


@pytest.mark.llamafactory
def test_liger_keeps_its_kernels_and_leaves_its_fused_loss_out_of_weighted_runs_alone(monkeypatch):
    from dataflex.integrations.llamafactory.patches import installed
    from llamafactory.model import loader

    calls = []

    def apply_liger_kernel(config, model_args, is_trainable, require_logits):
        calls.append(require_logits)

    assert list(inspect.signature(loader.apply_liger_kernel).parameters)[3] == "require_logits"
    monkeypatch.setattr(loader, "apply_liger_kernel", apply_liger_kernel)
    for train_type in ("dynamic_weight", "dynamic_select"):
        with installed(RunSpec(DataflexArguments(train_type=train_type))):
            loader.apply_liger_kernel(None, None, True, require_logits=False)
    for name in ("infobatch", "random"):  # the one gives rows weights in the loss
        selector = ComponentSpec(SELECTOR, name, name, {})
        with installed(RunSpec(DataflexArguments(train_type="dynamic_select", component_name=name), selector)):
            loader.apply_liger_kernel(None, None, True, require_logits=False)
    assert calls == [True, False, True, False]
    assert loader.apply_liger_kernel is apply_liger_kernel
