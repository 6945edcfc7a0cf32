"""Several evaluation datasets have one eval_loss: the mean over rows, as evaluating all of them at once gives."""

from __future__ import annotations

import math

import pytest
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.kinds import MIXER, SELECTOR, WEIGHTER
from dataflex.rows.views import MixedSources
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args
from dataflex.train.trainer import BY_TRAIN_TYPE, trainer_class
from dataflex.trainer.evaluation import over_rows
from transformers import EarlyStoppingCallback, Trainer

COMPONENTS = {
    "dynamic_select": (SELECTOR, "random"),
    "dynamic_mix": (MIXER, "random"),
    "dynamic_weight": (WEIGHTER, "loss"),
}
PARTS = {
    "a": TokenRows(3, lengths=[9] * 3, seed=1),
    "b": TokenRows(7, lengths=[17] * 7, seed=2),
    "c": TokenRows(1, lengths=[5], seed=3),
}


def made(folder, train_type="dynamic_mix", parts=PARTS, steps=4, **args):
    kind, name = COMPONENTS[train_type]
    keys = DataflexArguments(
        train_type=train_type, component_name=name, warmup_step=1, update_step=1, update_times=3, train_step=steps
    )
    rows = TokenRows(40, lengths=[12] * 40)
    args = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 1, "learning_rate": 1e-2} | args
    return trainer_class(BY_TRAIN_TYPE[train_type], Trainer)(
        model=tiny_model(),
        args=tiny_training_args(folder, max_steps=-1, **args),
        train_dataset={"a": rows, "b": rows} if kind is MIXER else rows,
        eval_dataset=parts,
        data_collator=pad_collate,
        dataflex=RunSpec(keys, ComponentSpec(kind, name, name, {})),
    )


def logged(trainer, key="eval_loss"):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


@pytest.mark.parametrize("train_type", COMPONENTS)
def test_the_overall_loss_is_that_of_all_rows_at_once(tmp_path, train_type):
    trainer = made(tmp_path, train_type)
    metrics = trainer.evaluate()
    whole = trainer.evaluate(MixedSources(PARTS))["eval_loss"]
    assert math.isclose(metrics["eval_loss"], whole, rel_tol=1e-5)
    assert not math.isclose(sum(metrics[f"eval_{name}_loss"] for name in PARTS) / 3, whole, rel_tol=1e-4)
    assert logged(trainer)[0] == metrics["eval_loss"]
    assert "eval_runtime" not in metrics
    assert "eval_samples_per_second" not in metrics
    given = trainer.evaluate({"x": PARTS["a"], "y": PARTS["b"]}, metric_key_prefix="test")
    assert {"test_loss", "test_x_loss", "test_y_loss"} <= given.keys()


@pytest.mark.parametrize(
    "args",
    [
        {"save_strategy": "best", "metric_for_best_model": "eval_loss"},
        {
            "save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": True, "metric_for_best_model": "loss",
            "greater_is_better": True,
        },
        {"save_strategy": "best", "metric_for_best_model": "eval_b_loss"},
    ],
    ids=lambda value: "-".join(map(str, value.values())),
)  # fmt: skip
def test_the_best_model_is_found_by_the_overall_loss(tmp_path, args):
    trainer = made(tmp_path, steps=2, **args)
    trainer.train()
    by = "eval_b_loss" if args.get("metric_for_best_model") == "eval_b_loss" else "eval_loss"
    losses = logged(trainer, by)
    assert len(losses) == 2
    assert trainer.state.best_metric == (max if args.get("greater_is_better") else min)(losses)


def test_the_learning_rate_can_follow_the_overall_loss(tmp_path):
    made(tmp_path, steps=2, lr_scheduler_type="reduce_lr_on_plateau", metric_for_best_model="eval_loss").train()


@pytest.mark.parametrize("by", ["eval_loss", "eval_a_loss"])
def test_early_stopping_counts_one_evaluation_of_several_datasets_once(tmp_path, by, caplog):
    trainer = made(
        tmp_path,
        metric_for_best_model=by,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
    )
    trainer.add_callback(EarlyStoppingCallback(2, early_stopping_threshold=100))
    trainer.train()
    assert trainer.state.global_step == 3, "the first evaluation counts as the best, and two more are waited for"
    assert "early stopping required" not in caplog.text


def test_the_overall_loss_is_the_same_after_a_resume(tmp_path):
    args = {
        "save_strategy": "steps",
        "save_steps": 1,
        "metric_for_best_model": "eval_loss",
        "load_best_model_at_end": True,
    }
    whole = made(tmp_path / "whole", steps=2, **args)
    whole.train()
    resumed = made(tmp_path / "resumed", steps=2, **args)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    assert logged(resumed) == logged(whole)
    assert resumed.state.best_metric == whole.state.best_metric


def test_only_what_every_dataset_has_and_what_is_of_the_rows_is_averaged():
    metrics = {
        "eval_a_loss": 1.0, "eval_b_loss": 4.0, "eval_a_accuracy": 0.5, "eval_a_runtime": 2.0, "eval_b_runtime": 2.0,
        "eval_a_steps_per_second": 2.0, "eval_b_steps_per_second": 2.0, "epoch": 1.0,
        "eval_a_b_loss": 10.0,
    }  # fmt: skip
    assert over_rows(metrics, {"a": 1, "b": 2}, "eval") == {"eval_loss": 3.0}
    assert over_rows(metrics, {"a": 1, "a_b": 1}, "eval")["eval_loss"] == 5.5
    assert over_rows(metrics, {"a": 0, "b": 0}, "eval") == {}
    assert over_rows(metrics, {"a": 0, "b": 2}, "eval") == {"eval_loss": 4.0}
