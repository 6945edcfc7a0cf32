"""How token losses of a weighted run are made, with logits and without, and what a step's loss is a mean over."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dataflex.core.errors import CheckpointError, ComponentError, ConfigError
from dataflex.model import label_losses
from dataflex.objective import logits_route
from dataflex.testing import TokenRows, pad_collate, tiny_batch, tiny_model, tiny_training_args
from peft import LoraConfig, get_peft_model
from transformers import Trainer
from weighted_run import weighted

ROWS = TokenRows(24, lengths=range(6, 17), prompt=3)
SOURCES = {"a": TokenRows(10, lengths=range(5, 12)), "b": TokenRows(14, lengths=range(5, 12), seed=1)}


def build(folder, name="loss", params=None, rows=ROWS, model=None, config=None, keys=None, **args):
    plain = {"max_steps": 4, "optim": "sgd", "learning_rate": 0.1, "gradient_accumulation_steps": 2}
    target = TokenRows(6, seed=5)
    given = {"keys": keys, "config": config, "model": model, "target": target}
    return weighted(folder, name, params, rows, **given, **(plain | args))


def run(*args, **kwargs):
    done = build(*args, **kwargs)
    done.train()
    return done


def losses(done):
    return [line["loss"] for line in done.state.log_history if "loss" in line]


def require_close(ours, theirs):
    np.testing.assert_allclose(losses(ours), losses(theirs), rtol=1e-4)
    for name, value in theirs.model.state_dict().items():
        torch.testing.assert_close(ours.model.state_dict()[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "rows", "keys", "args"),
    [
        ("loss", ROWS, {}, {}),
        ("loss", ROWS, {"warmup_step": 2}, {}),
        ("loss", ROWS, {"weight_objective": "token"}, {"gradient_accumulation_steps": 1}),
        ("focal", ROWS, {}, {"bf16": True}),
        ("adapt", ROWS, {}, {}),
        ("balancer", SOURCES, {}, {}),
    ],
)
def test_a_run_without_logits_is_the_run_with_them(tmp_path, name, rows, keys, args):
    params = {"scope": "step"} if name == "loss" else {}
    full = run(tmp_path / "f", name, params, rows, keys={"weight_logits": "full", **keys}, **args)
    shapes = []
    chunked = build(tmp_path / "c", name, params, rows, keys={"weight_logits": "chunked", **keys}, **args)
    chunked.model.register_forward_hook(lambda module, _, output: shapes.append((module.training, output.logits.shape)))
    chunked.train()
    assert {shape[-1] for training, shape in shapes if training} == {1}
    assert "forward" not in vars(chunked.model.lm_head)
    if args.get("bf16"):
        np.testing.assert_allclose(losses(chunked), losses(full), rtol=1e-3)
    else:
        require_close(chunked, full)


def test_the_pass_over_the_step_has_its_own_output_layer(tmp_path, monkeypatch):
    """Every token but the first has a label, so one batch's labels may be as many as another one's tokens."""
    rows = [TokenRows(1, lengths=9, prompt=0)[0], TokenRows(1, lengths=8, prompt=0, seed=1)[0]]
    args = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 1, "max_steps": 2}
    full = run(tmp_path / "f", "loss", {"scope": "step"}, rows, keys={"weight_logits": "full"}, **args)
    for name, limit in (("c", 2**16), ("n", 128)):  # the second pass with logits, and without
        monkeypatch.setattr(label_losses, "LEAST_VOCABULARY", limit)
        chunked = run(tmp_path / name, "loss", {"scope": "step"}, rows, keys={"weight_logits": "chunked"}, **args)
        require_close(chunked, full)
        assert "forward" not in vars(chunked.model.lm_head)


def test_lora_trains_alike_without_logits(tmp_path):
    def adapted():
        torch.manual_seed(0)
        return get_peft_model(tiny_model(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))

    full = run(tmp_path / "f", model=adapted(), keys={"weight_logits": "full"})
    chunked = run(tmp_path / "c", model=adapted(), keys={"weight_logits": "chunked"})
    require_close(chunked, full)


def test_evaluation_has_its_logits_and_its_loss(tmp_path):
    args = {"eval_strategy": "steps", "eval_steps": 2}
    full = run(tmp_path / "f", keys={"weight_logits": "full"}, **args)
    chunked = run(tmp_path / "c", keys={"weight_logits": "chunked"}, **args)
    found = [[line["eval_loss"] for line in done.state.log_history if "eval_loss" in line] for done in (full, chunked)]
    assert len(found[0]) == 2
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
    assert chunked.predict(TokenRows(3)).predictions.shape[-1] == 128


def test_auto_leaves_the_logits_out_for_a_large_vocabulary_and_for_liger(tmp_path, monkeypatch):
    assert build(tmp_path).training_objective.context.outputs is None
    assert build(tmp_path, config={"enable_liger_kernel": True}).training_objective.context.outputs is not None
    assert (
        build(
            tmp_path, config={"enable_liger_kernel": True}, keys={"weight_logits": "full"}
        ).training_objective.context.outputs
        is None
    )
    monkeypatch.setattr(logits_route, "LARGE_VOCABULARY", 128)
    assert build(tmp_path).training_objective.context.outputs is not None
    assert build(tmp_path, label_smoothing_factor=0.1).training_objective.context.outputs is None


def test_chunked_is_refused_where_the_logits_are_needed(tmp_path):
    keys = {"weight_logits": "chunked"}
    with pytest.raises(ConfigError, match="weight_logits: chunked cannot be done: label_smoothing_factor needs"):
        build(tmp_path, keys=keys, label_smoothing_factor=0.1)
    scaled = tiny_model()
    scaled.config.logit_scale = 0.5
    with pytest.raises(ConfigError, match="LlamaForCausalLM is adapted or quantised, or its logits are scaled -> set"):
        build(tmp_path, keys=keys, model=scaled)
    adapted = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM"))
    with pytest.raises(ConfigError, match="adapted or quantised"):
        build(tmp_path, keys=keys, model=adapted)


def test_a_model_that_changes_its_logits_unseen_stops_the_run(tmp_path):
    model = tiny_model()
    trainer = build(tmp_path, model=model, keys={"weight_logits": "chunked"})
    weighted = model.loss_function
    model.loss_function = lambda logits, *args, **kwargs: weighted(logits * 0.5, *args, **kwargs)
    with pytest.raises(ComponentError, match=r"modifies logits after the output layer.* weight_logits: full"):
        trainer.train()


@pytest.mark.parametrize("accumulation", [1, 3])
def test_uniform_weights_over_tokens_are_the_static_run_bit_for_bit_for_rows_of_any_length(tmp_path, accumulation):
    args = {"gradient_accumulation_steps": accumulation, "max_steps": 3}
    static = Trainer(
        model=tiny_model(),
        args=tiny_training_args(tmp_path / "s", optim="sgd", learning_rate=0.1, **args),
        train_dataset=ROWS,
        data_collator=pad_collate,
    )
    static.train()
    keys = {"weight_objective": "token"}
    ours = run(tmp_path / "w", params={"strategy": "uniform"}, keys=keys, **args)
    assert losses(ours) == losses(static)
    for name, value in static.model.state_dict().items():
        assert torch.equal(ours.model.state_dict()[name], value), name
    samples = run(tmp_path / "p", params={"strategy": "uniform"}, **args)
    assert losses(samples) != losses(static)


def test_a_token_mean_weighs_every_token_of_a_row_alike(tmp_path):
    """Against a loop over rows."""
    rows = TokenRows(4, lengths=[5, 9, 12, 16], prompt=3)
    np.save(tmp_path / "w.npy", np.array([1.0, 0.5, 2.0, 0.0]))
    params = {"file": str(tmp_path / "w.npy")}
    args = {"max_steps": 1, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    done = run(tmp_path, "column", params, rows, keys={"weight_objective": "token"}, **args)
    model, total = tiny_model(), 0.0
    for weight, i in zip([1.0, 0.5, 2.0, 0.0], range(4), strict=True):
        labels = sum(label != -100 for label in rows[i]["labels"])
        total += weight * labels * model(**tiny_batch([rows[i]])).loss.item()
    assert losses(done)[0] == pytest.approx(total / (2 + 6 + 9 + 13), abs=1e-3)


def test_a_run_is_not_resumed_under_another_objective(tmp_path):
    run(tmp_path / "a", save_strategy="steps", save_steps=2)
    with pytest.raises(CheckpointError, match="weight_objective"):
        build(tmp_path / "b", keys={"weight_objective": "token"}).train(str(tmp_path / "a" / "checkpoint-2"))
