"""What is sampled and what is optimised apart: rows of source k weigh w_k / q_k."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from dataflex.core.errors import ComponentError, ConfigError
from dataflex.core.registry import register_mixer, register_selector
from dataflex.interfaces.mixer import Mixer
from dataflex.interfaces.selector import Selection, Selector
from dataflex.planning.mixture import MixtureManager
from dataflex.testing import TokenRows, pad_collate, tiny_model
from dataflex.testing.small_trainers import small_trainer
from dataflex.trainer.evaluation import by_objective
from transformers import TrainerCallback

NAMES = ("a", "b")
W = {"a": 0.25, "b": 0.75}
SOURCES = {"a": TokenRows(12, lengths=10), "b": TokenRows(4, lengths=10, seed=1)}
LONGER = {"a": TokenRows(12, lengths=10), "b": TokenRows(4, lengths=18, seed=1)}
SGD = {"optim": "sgd", "learning_rate": 0.0, "max_grad_norm": 0.0, "weight_decay": 0.0}


class Gradients(TrainerCallback):
    """Keeps the gradient of each step."""

    def __init__(self):
        self.found = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double())


def gradients(folder, rows, batch=2, accumulation=1, steps=8, model=None, **given):
    """Returns the gradient of each step of a run whose model stays: (steps, P)."""
    sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    keys = {"static_mix": True, "mixture_sample_rule": "stratified", "train_step": steps} | given
    trainer = small_trainer(folder, rows, model=model or tiny_model(layers=1), args=SGD | sizes, **keys)
    noting = Gradients()
    trainer.add_callback(noting)
    trainer.train()
    return torch.stack(noting.found), trainer


def source_gradient(rows, model=None):
    """Returns the gradient of the mean over the tokens of rows, in float64, and the mean tokens of a row."""
    model = (model or tiny_model(layers=1)).double().eval()
    total, tokens = 0.0, 0
    for row in rows:
        batch = pad_collate([row])
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        labels = batch["labels"][:, 1:]
        losses = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), reduction="sum")
        total, tokens = total + losses, tokens + int((labels != -100).sum())
    (total / tokens).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()]), tokens / len(rows)


def close(found, wanted):
    np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize(("batch", "accumulation", "steps"), [(2, 1, 8), (1, 1, 16), (1, 4, 4), (16, 1, 1)])
def test_the_expected_gradient_is_that_of_the_mixture_that_is_wanted(tmp_path, batch, accumulation, steps):
    """Over a whole pass each row comes once. Weights divided by their own sum would be biased: with one row in a step
    they would be 1, whatever the source."""
    found, trainer = gradients(tmp_path, SOURCES, batch, accumulation, steps, objective_proportions=W)
    assert trainer.mixture_manager.by_name() == {"a": 0.75, "b": 0.25}
    wanted = sum(W[name] * source_gradient(rows)[0] for name, rows in SOURCES.items())
    close(found.mean(0), wanted)


def test_by_tokens_it_is_so_for_rows_of_any_length(tmp_path):
    found, trainer = gradients(
        tmp_path, LONGER, 16, 1, 1, objective_proportions=W, mixture_unit="tokens", init_mixture_proportions=None
    )
    own = {name: source_gradient(rows) for name, rows in LONGER.items()}
    tokens = {name: len(LONGER[name]) * mean for name, (_, mean) in own.items()}
    q = {name: count / sum(tokens.values()) for name, count in tokens.items()}
    v = trainer.mixture_manager.weights_by_name()["objective_weights"]
    wanted = sum(v[name] * q[name] * gradient for name, (gradient, _) in own.items())
    close(found.mean(0), wanted)
    shares = trainer.mixture_manager.by_name()
    assert {name: v[name] * shares[name] for name in NAMES} == pytest.approx(W)


def test_by_rows_of_other_lengths_its_direction_is_that_of_the_mixture(tmp_path):
    """Its length is that times the mean labels of a row of the mixture over those of a row that is drawn."""
    found, _ = gradients(tmp_path, LONGER, 16, 1, 1, objective_proportions=W)
    own = {name: source_gradient(rows) for name, rows in LONGER.items()}
    sums = sum(W[name] * mean * gradient for name, (gradient, mean) in own.items())
    wanted = sums / sum(W[name] * mean for name, (_, mean) in own.items())
    drawn = sum(share * own[name][1] for name, share in {"a": 0.75, "b": 0.25}.items())
    close(found.mean(0) * drawn / sum(W[name] * mean for name, (_, mean) in own.items()), wanted)


def test_the_shares_that_rows_have_change_nothing_bit_for_bit(tmp_path):
    plain, _ = gradients(tmp_path / "a", SOURCES)
    same, trainer = gradients(tmp_path / "b", SOURCES, objective_proportions=[3, 1])
    assert trainer.mixture_manager.objective_weights.tolist() == [1.0, 1.0]
    assert (plain == same).all()


def test_a_source_with_no_share_of_the_loss_has_no_gradient(tmp_path):
    found, _ = gradients(tmp_path, SOURCES, 16, 1, 1, objective_proportions={"a": 1, "b": 0})
    close(found[0], source_gradient(SOURCES["a"])[0])


@register_mixer("objective_test_moves")
class Moves(Mixer):
    """Shares that move at each update; the last ones leave a source out where it is asked to."""

    draws = False

    def __init__(self, mixture_manager, drops=False):
        super().__init__(mixture_manager)
        self.drops = drops

    def mix(self, model, step_id, **kwargs):
        update = kwargs["context"].update
        share = 0.0 if self.drops and update else 0.5 - 0.1 * update
        return np.array([1 - share, share])


def test_the_weights_follow_a_mixer_that_moves_the_shares(tmp_path):
    rows = {"a": TokenRows(1, lengths=10), "b": TokenRows(1, lengths=10, seed=1)}  # so that counts tell the gradient
    keys = {"warmup_step": 1, "update_step": 2, "update_times": 3, "mixture_sample_rule": "uniform"}
    mixer = {"static_mix": False, "mixer": "objective_test_moves"}
    found, trainer = gradients(tmp_path, rows, 10, steps=0, objective_proportions=W, **keys, **mixer)
    one = {name: source_gradient(part)[0] for name, part in rows.items()}
    lines = [json.loads(line) for line in (tmp_path / "dataflex_trace.jsonl").read_text().splitlines()]
    told = [line["objective_weights"] for line in lines if line["kind"] == "mix"]
    wanted = [{"a": 0.25 / q, "b": 0.75 / (1 - q)} for q in (0.5, 0.6, 0.7)]
    for mine, theirs in zip(told, wanted, strict=True):
        assert mine == pytest.approx(theirs)
    assert len(found) == 7
    for stretch in (found[:1], found[1:3], found[3:5], found[5:]):  # each of a whole number of rows of either source
        close(stretch.mean(0), 0.25 * one["a"] + 0.75 * one["b"])
    assert trainer.mixture_manager.proportions[0] == pytest.approx(0.7)


def test_a_share_of_0_for_a_source_that_is_wanted_is_refused_before_training_and_at_an_update(tmp_path):
    keys = {"static_mix": True, "train_step": 2, "objective_proportions": W}
    with pytest.raises(ConfigError, match="objective_proportions: give b a share of the loss"):
        small_trainer(tmp_path, SOURCES, init_mixture_proportions=[1, 0], **keys)
    mixer = {"name": "objective_test_moves", "params": {"drops": True}}
    steps = {"warmup_step": 1, "update_step": 1, "update_times": 3, "mixture_sample_rule": "uniform"}
    trainer = small_trainer(tmp_path, SOURCES, mixer=mixer, objective_proportions=W, **steps)
    with pytest.raises(ComponentError, match=r"mixer 'objective_test_moves' at update 1 .step 2.: objective_prop.* b "):
        trainer.train()
    manager = MixtureManager(NAMES, (4, 4), (0.5, 0.5), 1, objective=(1.0, 0.0))
    manager.set_proportions((1.0, 0.0))
    assert manager.objective_weights.tolist() == [1.0, 1.0]


def test_a_mixer_that_weighs_the_sources_itself_is_refused(tmp_path):
    tiny_model().save_pretrained(tmp_path / "reference")
    keys = {"params": {"reference_model": str(tmp_path / "reference")}, "objective_proportions": W}
    with pytest.raises(ConfigError, match="the mixer 'doremi' weighs the loss of each source itself"):
        small_trainer(tmp_path, SOURCES, mixer="doremi", warmup_step=1, update_step=1, update_times=1, **keys)


def test_a_mixer_that_weighs_with_some_parameters_is_refused_with_these_alone(tmp_path):
    steps = {"warmup_step": 1, "update_step": 1, "update_times": 1, "objective_proportions": W}
    with pytest.raises(ConfigError, match="the mixer 'doge' weighs the loss of each source itself"):
        small_trainer(tmp_path / "w", SOURCES, mixer="doge", params={"use": "loss_weights", "mu": 1.0}, **steps)
    made = small_trainer(tmp_path / "s", SOURCES, mixer="doge", params={"use": "sampling", "mu": 1.0}, **steps)
    assert made.mixture_manager.objective.tolist() == [0.25, 0.75]


def test_a_weighter_multiplies(tmp_path):
    weighter = {"name": "dataset", "params": {"weights": {"a": 1.0, "b": 2.0}}}
    keys = {"mixer": "static", "static_mix": False, "warmup_step": 0, "update_step": 4, "update_times": 2, "steps": 0}
    found, _ = gradients(tmp_path, SOURCES, 16, 1, **keys, weighter=weighter, objective_proportions=W)
    own = torch.stack([source_gradient(rows)[0] for rows in SOURCES.values()])
    ratio = torch.linalg.lstsq(own.T, found.mean(0)).solution
    assert float(ratio[1] / ratio[0]) == pytest.approx(2 * W["b"] / W["a"], rel=1e-3)


@register_selector("objective_test_rescales")
class Rescales(Selector):
    """The first rows, each counted half."""

    weighs = True
    draws = False

    def select(self, model, step_id, num_samples, **kwargs):
        return Selection(np.arange(num_samples), weights=np.full(num_samples, 0.5))


def test_the_weights_of_a_selector_multiply(tmp_path):
    keys = {"mixer": "static", "selector": "objective_test_rescales", "static_mix": False, "steps": 0}
    keys |= {"warmup_step": 0, "update_step": 1, "update_times": 1}
    found, _ = gradients(tmp_path, SOURCES, 8, 1, **keys, objective_proportions=W)
    first = {"a": [SOURCES["a"][row] for row in range(6)], "b": [SOURCES["b"][row] for row in range(2)]}
    close(found[0], 0.5 * sum(W[name] * source_gradient(first[name])[0] for name in NAMES))


def test_accumulation_and_a_resume_change_nothing(tmp_path):
    def end(folder, batch, accumulation, **more):
        args = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "save_steps": 3}
        args |= {"save_strategy": "steps", "learning_rate": 0.1, "optim": "sgd"}
        keys = {"warmup_step": 1, "update_step": 2, "update_times": 3, "mixture_sample_rule": "uniform"}
        keys |= {"mixer": "objective_test_moves", "objective_proportions": W}
        trainer = small_trainer(folder, SOURCES, args=args, **keys)
        trainer.train(**more)
        return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])

    whole = end(tmp_path / "a", 4, 1)
    torch.testing.assert_close(end(tmp_path / "b", 1, 4), whole, rtol=1e-4, atol=1e-6)
    resumed = end(tmp_path / "a", 4, 1, resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert (resumed == whole).all()


# --- the held-out loss


def test_the_held_out_loss_is_the_mean_by_the_shares():
    metrics = {"eval_a_loss": 2.0, "eval_b_loss": 4.0, "eval_c_loss": 9.0}
    assert by_objective(metrics, W, "eval") == {"eval_objective_loss": 3.5}
    assert by_objective(metrics, {"a": 1.0, "d": 0.0}, "eval") == {"eval_objective_loss": 2.0}
    assert by_objective(metrics, {"a": 0.5, "d": 0.5}, "eval") == {}
    assert by_objective(metrics, {}, "eval") == {}


def evaluated(folder, eval_dataset=None, metric="eval_objective_loss", **more):
    args = {
        "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "learning_rate": 0.05,
        "metric_for_best_model": metric, "load_best_model_at_end": True,
    }  # fmt: skip
    keys = {"static_mix": True, "train_step": 4, "objective_proportions": W} | more
    held_out = {"a": TokenRows(5, lengths=10, seed=5), "b": TokenRows(3, lengths=10, seed=6)}
    given = held_out if eval_dataset is None else eval_dataset
    return small_trainer(folder, SOURCES, args=args, eval_dataset=given, **keys)


def test_the_best_model_is_found_by_it(tmp_path):
    trainer = evaluated(tmp_path)
    trainer.train()
    logged = [line for line in trainer.state.log_history if "eval_objective_loss" in line]
    assert len(logged) == 4
    parts = [line for line in trainer.state.log_history if "eval_a_loss" in line or "eval_b_loss" in line]
    for number, line in enumerate(logged):
        a, b = parts[2 * number]["eval_a_loss"], parts[2 * number + 1]["eval_b_loss"]
        assert line["eval_objective_loss"] == pytest.approx(0.25 * a + 0.75 * b, rel=1e-9)
        assert line["eval_loss"] == pytest.approx((5 * a + 3 * b) / 8, rel=1e-9)
    assert trainer.state.best_metric == min(line["eval_objective_loss"] for line in logged)


def test_a_best_model_by_a_loss_that_nothing_gives_is_refused_before_training(tmp_path):
    with pytest.raises(ConfigError, match="has none of b -> name its sets as the sources, or set val_size"):
        evaluated(tmp_path, {"a": TokenRows(3)})
    with pytest.raises(ConfigError, match="has none of a, b"):
        evaluated(tmp_path, TokenRows(3))
    with pytest.raises(ConfigError, match="the held-out loss by objective_proportions, which are not given"):
        evaluated(tmp_path, objective_proportions=None)


def test_evaluation_sets_of_other_names_are_said_to_be_not_weighed(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="dataflex"):
        evaluated(tmp_path, {"x": TokenRows(3)}, metric="eval_loss").train()
    assert "needs held-out rows of each source, and eval_dataset has none of a, b: it is not computed" in caplog.text
