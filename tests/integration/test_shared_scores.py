"""Scores that the components of a run share, through its trainer: one pass at an update, none of seen losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, Part, RunSpec
from dataflex.core.errors import ComponentError, ConfigError
from dataflex.core.kinds import MIXER, ORDER, SELECTOR
from dataflex.core.registry import register_selector
from dataflex.run.state import load_state
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args
from dataflex.train.selector.base_selector import Selector
from dataflex.trainer import DynamicTrainer, trainer_class
from transformers import Trainer

STEPS = {"warmup_step": 3, "update_step": 2, "update_times": 3}
N = 48


def part(kind, name, params=None, **more):
    return Part(ComponentSpec(kind, name, name, params or {}), **more)


def trainer(folder, *parts, rows=None, **changes):
    keys = DataflexArguments(
        train_type="dynamic",
        **{each.component.kind.name: {"component": each.component.name} for each in parts},
        **STEPS,
        **({"mixture_sample_rule": "uniform"} if any(each.component.kind is MIXER for each in parts) else {}),
    )
    return trainer_class(DynamicTrainer, Trainer)(
        model=tiny_model(),
        args=tiny_training_args(folder, max_steps=-1, learning_rate=1e-2, **changes),
        train_dataset=TokenRows(N, lengths=range(6, 18)) if rows is None else rows,
        data_collator=pad_collate,
        dataflex=RunSpec(keys, parts=parts),
    )


def scored(done):
    """Returns a list that grows by (step, rows) of each batch that goes through the model while it scores."""
    batches = []

    def count(_, given):
        if not done.model.training:
            batches.append((done.state.global_step, len(given[0])))

    done.model.get_input_embeddings().register_forward_pre_hook(count)
    return batches


def by_step(batches):
    found = {}
    for step, rows in batches:
        found[step] = found.get(step, 0) + rows
    return found


def chosen(folder, step):
    return np.load(folder / "dataflex_selections" / f"step_{step:08d}.npz")


def test_filter_selector_and_order_by_loss_send_each_row_through_the_model_once(tmp_path):
    parts = [
        part(SELECTOR, "loss", keep=0.5), part(SELECTOR, "loss", {"focus": "high"}),
        part(ORDER, "sorting", {"ascending": True, "window": 0}, by="loss", over="stretch"),
    ]  # fmt: skip
    done = trainer(tmp_path, *parts)
    batches = scored(done)
    done.train()
    assert by_step(batches) == {3: N, 5: N, 7: N}
    for step in (3, 5, 7):
        scores = chosen(tmp_path, step)["scores"]
        assert np.isfinite(scores).all()
        assert (np.diff(scores) >= 0).all(), "the order arranges by the losses that chose"


def test_a_selector_inside_of_sources_shares_its_losses_and_knows_its_own_rows(tmp_path):
    asked = {}

    @register_selector("asks_for_lengths")
    class Asks(Selector):
        def select(self, model, step_id, num_samples, *, context, **kwargs):
            assert context.scores.are_of(self.dataset)
            asked[self.name] = context.scores.of("length").tolist()
            return list(range(num_samples))

    rows = {"a": TokenRows(20, lengths=range(6, 18)), "b": TokenRows(28, lengths=range(6, 18), seed=1)}
    trainer(tmp_path / "own", part(MIXER, "static"), part(SELECTOR, "asks_for_lengths"), rows=rows).train()
    assert sorted(asked.values(), key=len) == [[len(row["input_ids"]) for row in part] for part in rows.values()]
    order = part(ORDER, "sorting", by="loss", over="stretch")
    done = trainer(tmp_path / "loss", part(MIXER, "static"), part(SELECTOR, "loss"), order, rows=rows)
    batches = scored(done)
    done.train()
    assert by_step(batches) == {3: N, 5: N, 7: N}


# --- seen


SEEN = {"scores": "seen"}


@pytest.mark.parametrize("name", ["loss", "delta_loss"])
def test_seen_losses_are_those_of_training_and_cost_no_pass(tmp_path, name):
    done = trainer(tmp_path, part(SELECTOR, name, SEEN))
    batches, trained = scored(done), {}

    def of_step(model, inputs, num_items_in_batch=None):
        step = done.state.global_step
        with torch.no_grad():
            for row, labels in zip(inputs["input_ids"], inputs["labels"], strict=True):
                logits = model(row[None]).logits[0, :-1]
                trained[tuple(row[row > 0].tolist())] = (step, torch.nn.functional.cross_entropy(logits, labels[1:]))

    original = done.training_step

    def training_step(model, inputs, *args, **kwargs):
        of_step(model, inputs)
        return original(model, inputs, *args, **kwargs)

    done.training_step = training_step
    done.train()
    assert batches == []
    seen = done.shared_scores.seen
    done.shared_scores.gather()
    tokens = [tuple(row["input_ids"]) for row in done.train_dataset]
    assert {row for row in range(N) if seen.steps[row] >= 0} == {tokens.index(row) for row in trained}
    for row, (step, loss) in trained.items():
        number = tokens.index(row)
        assert seen.steps[number] == step
        assert seen.losses[number] == pytest.approx(loss.item(), rel=1e-4)


@pytest.mark.parametrize("params", [SEEN, SEEN | {"max_age": 2}])
@pytest.mark.parametrize("name", ["loss", "delta_loss"])
def test_a_run_by_seen_losses_is_resumed_bit_for_bit(tmp_path, name, params):
    saving = {"save_strategy": "steps", "save_steps": 1}
    whole = trainer(tmp_path / "whole", part(SELECTOR, name, params), **saving)
    whole.train()
    again = trainer(tmp_path / "again", part(SELECTOR, name, params), **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    for step in (5, 7):
        for key in ("indices", "scores"):
            np.testing.assert_array_equal(chosen(tmp_path / "again", step)[key], chosen(tmp_path / "whole", step)[key])
    for ours, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    state = load_state(tmp_path / "whole" / "checkpoint-9")["shared_scores"]["seen_losses"]
    assert (state["steps"] >= 0).sum() > 8


def test_losses_that_are_too_old_are_computed_and_no_others(tmp_path):
    done = trainer(tmp_path, part(SELECTOR, "loss", SEEN | {"max_age": 2}))
    batches = scored(done)
    done.train()
    fresh = dict.fromkeys((3, 5, 7), N - 8)  # two steps of four different rows are at most two steps old
    assert by_step(batches) == fresh


@pytest.mark.parametrize("by", ["seen", "seen:2"])
def test_an_order_takes_seen_losses_too(tmp_path, by):
    done = trainer(tmp_path, part(ORDER, "sorting", by=by, over="run"))
    batches = scored(done)
    done.train()
    assert bool(batches) == (by != "seen")
    assert done.shared_scores.seen is not None


def test_a_run_whose_components_take_no_seen_losses_keeps_none(tmp_path):
    done = trainer(tmp_path, part(SELECTOR, "loss"))
    assert done.shared_scores.seen is None


# --- refused before training


@pytest.mark.parametrize(
    ("by", "words"),
    [
        ("column:level", "the train dataset has no column 'level' but attention_mask, input_ids, labels"),
        ("file:/nowhere.npy", "there is no such file"),
    ],
)
def test_scores_that_cannot_be_read_are_refused_before_training(tmp_path, by, words):
    with pytest.raises(ConfigError, match=words):
        trainer(tmp_path, part(ORDER, "sorting", by=by, over="run"))


def test_a_component_that_asks_for_seen_losses_without_saying_so_is_told_how(tmp_path):
    @register_selector("asks_for_seen")
    class Asks(Selector):
        def select(self, model, step_id, num_samples, *, context, **kwargs):
            return np.argsort(context.scores.of("seen"))[:num_samples]

    with pytest.raises(ComponentError, match="set takes_seen = True in the class that asks for them"):
        trainer(tmp_path, part(SELECTOR, "asks_for_seen")).train()
