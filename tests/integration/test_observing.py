"""What a mixer is told of each step: the loss of each source, from the forward of training itself."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.errors import ComponentError, ConfigError
from dataflex.core.kinds import MIXER
from dataflex.core.registry import register_mixer
from dataflex.planning import run_schedule as steps
from dataflex.run.record import read_updates
from dataflex.run.state import load_state
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args
from dataflex.train.mixer.base_mixer import Mixer
from dataflex.train.trainer import MixTrainer, trainer_class
from transformers import Trainer

LENGTHS = range(6, 17)


class Rotating(Mixer):
    """Fixed but changing proportions; one source is left out at times."""

    def mix(self, model, step_id, **kwargs):
        return np.array([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]][kwargs["context"].update % 2])


@register_mixer("blind")
class Blind(Rotating):
    """Does not observe."""


@register_mixer("watching")
class Watching(Rotating):
    """Keeps what it is told."""

    def __init__(self, mixture_manager):
        super().__init__(mixture_manager)
        self.told = []

    def observe(self, step, losses_K, tokens_K):
        self.told.append((step, losses_K, tokens_K))

    def details(self):
        return {"told": len(self.told)}

    def state_dict(self):
        return {"losses": np.array([losses for _, losses, _ in self.told])}


@register_mixer("watching_squares")
class WatchingSquares(Watching):
    def token_values(self, inputs, losses_BT):
        assert inputs["input_ids"].shape == losses_BT.shape
        return losses_BT.square()


@register_mixer("failing_to_observe")
class Failing(Rotating):
    def observe(self, step, losses_K, tokens_K):
        raise KeyError("oops")


@register_mixer("overflowing")
class Overflowing(Rotating):
    def observe(self, step, losses_K, tokens_K):
        self.leave_out(1, "a loss")


class ByHand(Trainer):
    """Adds up each source's token losses row by row, in double precision, right before each micro-batch is trained."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        rows = self.train_dataset
        where = rows.sources_of(np.arange(len(rows)))
        self.source = {tuple(rows[i]["input_ids"]): int(where[i]) for i in range(len(rows))}
        self.sums = {}

    def training_step(self, model, inputs, *args, **kwargs):
        assert set(inputs) == {"input_ids", "attention_mask", "labels"}, "the batch is as the collator made it"
        sums = self.sums.setdefault(self.state.global_step + 1, np.zeros((3, 3)))
        model.eval()
        for ids, mask, labels in zip(inputs["input_ids"], inputs["attention_mask"], inputs["labels"], strict=True):
            n = int(mask.sum())
            domain = self.source[tuple(ids[:n].tolist())]
            with torch.no_grad():
                logp = model(input_ids=ids[None, :n])["logits"][0].double().log_softmax(-1)
            for t in range(1, n):
                if labels[t] != -100:
                    c = -logp[t - 1, labels[t]].item()
                    sums[:, domain] += [c, c * c, 1]
        model.train()
        return super().training_step(model, inputs, *args, **kwargs)


def sources():
    return {
        name: TokenRows(n, lengths=LENGTHS, seed=i) for i, (name, n) in enumerate({"a": 7, "b": 20, "c": 40}.items())
    }


def spec(name, **keys):
    keys = {"warmup_step": 2, "update_step": 2, "update_times": 2} | keys
    return RunSpec(
        DataflexArguments(train_type="dynamic_mix", component_name=name, **keys), ComponentSpec(MIXER, name, name)
    )


def trainer(folder, name, base=Trainer, collate=pad_collate, dropout=0.0, **changes):
    model = tiny_model()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = dropout
    sizes = {"max_steps": -1, "gradient_accumulation_steps": 2, "learning_rate": 1e-2} | changes
    return trainer_class(MixTrainer, base)(
        model=model,
        args=tiny_training_args(folder, **sizes),
        train_dataset=sources(),
        data_collator=collate,
        dataflex=spec(name),
    )


@pytest.mark.parametrize("extra", [{}, {"label_smoothing_factor": 0.1}])
def test_each_step_tells_the_token_mean_of_each_source_over_its_micro_batches(tmp_path, extra):
    done = trainer(tmp_path, "watching", ByHand, **extra)
    done.train()
    told = done.component.told
    assert [step for step, _, _ in told] == [1, 2, 3, 4, 5, 6]
    for step, losses_K, tokens_K in told:
        cost, _, count = done.sums[step]
        assert tokens_K.tolist() == count.tolist()
        expected = [c / n if n else math.nan for c, n in zip(cost, count, strict=True)]
        np.testing.assert_allclose(losses_K, expected, rtol=1e-5)
    assert any(np.isnan(losses_K[2]) for _, losses_K, _ in told), "a source that was left out has no loss"
    assert [line["told"] for line in read_updates(tmp_path)] == [2, 4], "warm-up is observed; the trace has the details"


def test_token_values_replace_the_losses_token_by_token(tmp_path):
    done = trainer(tmp_path, "watching_squares", ByHand)
    done.train()
    for step, losses_K, _ in done.component.told:
        _, squares, count = done.sums[step]
        seen = count > 0
        np.testing.assert_allclose(losses_K[seen], (squares / np.maximum(count, 1))[seen], rtol=1e-5)


def test_a_run_that_is_observed_is_the_run_that_is_not_bit_for_bit(tmp_path):
    runs = []
    for name in ("blind", "watching"):
        runs.append(trainer(tmp_path / name, name, dropout=0.1))  # the constructor seeds the global generators
        runs[-1].train()
    losses = [[entry["loss"] for entry in run.state.log_history if "loss" in entry] for run in runs]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6
    a, b = (run.model.state_dict() for run in runs)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_step_is_told_before_its_checkpoint_is_written(tmp_path):
    done = trainer(tmp_path, "watching", save_strategy="steps", save_steps=1)
    done.train()
    for step in (1, 3, 6):
        state, _ = load_state(tmp_path / f"checkpoint-{step}")["components"]["stages"]["components"][0]
        assert len(state["losses"]) == step


def test_resuming_in_the_middle_of_a_segment_tells_the_same(tmp_path):
    whole = trainer(tmp_path / "w", "watching", save_strategy="steps", save_steps=1)
    whole.train()
    again = trainer(tmp_path / "r", "watching")
    again.train(resume_from_checkpoint=str(tmp_path / "w" / "checkpoint-3"))
    expected = {step: (losses_K, tokens_K) for step, losses_K, tokens_K in whole.component.told}
    assert [step for step, _, _ in again.component.told] == [4, 5, 6]
    for step, losses_K, tokens_K in again.component.told:
        np.testing.assert_array_equal(losses_K, expected[step][0])
        np.testing.assert_array_equal(tokens_K, expected[step][1])


def test_what_observe_raises_names_the_mixer_and_the_step(tmp_path):
    with pytest.raises(ComponentError, match="mixer 'failing_to_observe' at step 1 raised KeyError: 'oops'"):
        trainer(tmp_path, "failing_to_observe").train()


def packed(rows):
    """Makes one long row of all, as a padding-free collator does."""
    joined = {key: [token for row in rows for token in row[key]] for key in rows[0]}
    return pad_collate([joined])


def test_a_collator_that_merges_rows_is_refused_by_name(tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"data_collator: the mixer .* input_ids of shape \(1, .* of 2 rows -> use a collator that pads",
    ):
        trainer(tmp_path, "watching", collate=packed).train()
    trainer(tmp_path / "blind", "blind", collate=packed).train()


def test_a_loss_without_logits_is_refused_before_training(tmp_path):
    without = replace(spec("watching"), llamafactory={"enable_liger_kernel": True})
    with pytest.raises(ConfigError, match="enable_liger_kernel: the mixer 'watching' follows the loss of each source"):
        trainer_class(MixTrainer, Trainer)(
            model=tiny_model(), args=tiny_training_args(tmp_path), train_dataset=sources(), dataflex=without
        )
    blind = replace(spec("blind"), llamafactory={"enable_liger_kernel": True})
    trainer_class(MixTrainer, Trainer)(
        model=tiny_model(), args=tiny_training_args(tmp_path), train_dataset=sources(), dataflex=blind
    )


def test_the_trace_says_how_often_each_source_was_seen(tmp_path):
    trainer(tmp_path, "blind").train()
    first, second = read_updates(tmp_path)
    files = [np.load(path)["indices"] for path in sorted((tmp_path / "dataflex_selections").iterdir())]
    ends = np.cumsum([7, 20, 40])
    counts = np.cumsum([np.bincount(np.searchsorted(ends, rows, side="right"), minlength=3) for rows in files], axis=0)
    assert list(first["rows_seen"].values()) == counts[1].tolist()
    assert list(second["rows_seen"].values()) == counts[2].tolist()
    assert second["passes"]["a"] == pytest.approx(counts[2][0] / 7, abs=1e-6)


@pytest.mark.parametrize(("rule", "expected"), [("stratified", "natural"), ("uniform", "even")])
def test_a_mixture_in_tokens_starts_from_and_meets_shares_of_tokens(tmp_path, rule, expected):
    rows = {"long": TokenRows(30, lengths=40, seed=1), "short": TokenRows(60, lengths=8, seed=2)}
    keys = {"static_mix": True, "train_step": 60, "mixture_unit": "tokens", "mixture_sample_rule": rule}
    done = trainer_class(MixTrainer, Trainer)(
        model=tiny_model(),
        args=tiny_training_args(tmp_path, max_steps=-1),
        train_dataset=rows,
        data_collator=pad_collate,
        dataflex=RunSpec(DataflexArguments(train_type="dynamic_mix", **keys)),
    )
    done.train()
    planned = np.load(next((tmp_path / "dataflex_selections").iterdir()))["indices"]
    tokens = np.array([(planned < 30).sum() * 40, (planned >= 30).sum() * 8])
    share = {"natural": 30 * 40 / (30 * 40 + 60 * 8), "even": 0.5}[expected]
    assert done.mixture_manager.proportions[0] == pytest.approx(share)
    assert tokens[0] / tokens.sum() == pytest.approx(share, rel=0.01)


def test_a_long_static_mixture_is_planned_in_pieces_and_resumes_inside_of_one(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "PIECE", 3 * 8)
    keys = {"static_mix": True, "train_step": 7, "mixture_sample_rule": "uniform"}

    def made(folder, **changes):
        return trainer_class(MixTrainer, Trainer)(
            model=tiny_model(),
            args=tiny_training_args(folder, max_steps=-1, per_device_train_batch_size=8, **changes),
            train_dataset=sources(),
            data_collator=pad_collate,
            dataflex=RunSpec(DataflexArguments(train_type="dynamic_mix", **keys)),
        )

    whole = made(tmp_path / "w", save_strategy="steps", save_steps=1)
    whole.train()
    names = [path.name for path in sorted((tmp_path / "w" / "dataflex_selections").iterdir())]
    assert names == ["step_00000000.npz", "step_00000003.npz", "step_00000006.npz"]
    for step in (3, 4):
        again = made(tmp_path / str(step))
        again.train(resume_from_checkpoint=str(tmp_path / "w" / f"checkpoint-{step}"))
        a, b = whole.model.state_dict(), again.model.state_dict()
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_what_was_left_out_stands_in_the_trace_and_is_counted_on_from_a_checkpoint(tmp_path):
    trainer(tmp_path, "overflowing", save_strategy="steps", save_steps=3).train()
    assert [line["left_out"] for line in read_updates(tmp_path)] == [2, 4]
    again = trainer(tmp_path / "r", "overflowing")
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert again.component.left_out == 6
    trainer(tmp_path / "w", "watching").train()
    assert not any("left_out" in line for line in read_updates(tmp_path / "w"))
