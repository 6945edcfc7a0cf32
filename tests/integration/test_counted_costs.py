"""What components declare that they cost, against the rows and tokens that go through a model in a real run."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, Part, RunSpec
from dataflex.core.cost import Ahead, Amount, Work
from dataflex.core.kinds import MIXER, ORDER, SELECTOR, WEIGHTER
from dataflex.forecast.data_size import DataSize, Rows
from dataflex.forecast.deciding import Asking, row_shares
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args
from dataflex.trainer import DynamicTrainer, trainer_class
from transformers import Trainer

LENGTH, N, M, BATCH = 12, 70, 6, 4
STEPS = {"warmup_step": 2, "update_step": 3, "update_times": 4, "explain_rows": 0}
MODEL = {"embedding": "model"}


def part(kind, name, params=None, **more):
    return Part(ComponentSpec(kind, name, name, params or {}), **more)


def spec_of(parts, keys=STEPS):
    named = {each.component.kind.name: {"component": each.component.name} for each in parts}
    mixed = {"mixture_sample_rule": "uniform"} if "mixer" in named else {}
    return RunSpec(DataflexArguments(train_type="dynamic", **named, **keys, **mixed), parts=tuple(parts))


def counted(folder, spec, rows, **changes):
    """Returns step -> the rows and tokens that went through the model while it decided, with gradients and without."""
    done = trainer_class(DynamicTrainer, Trainer)(
        model=tiny_model(),
        args=tiny_training_args(folder, max_steps=-1, per_device_train_batch_size=BATCH, **changes),
        train_dataset=rows,
        eval_dataset=TokenRows(M, lengths=LENGTH, seed=9),
        data_collator=pad_collate,
        dataflex=spec,
    )
    found = defaultdict(lambda: SimpleNamespace(plain=np.zeros(2), gradients=np.zeros(2)))

    def count(_, given):
        if not done.model.training:
            at = found[done.state.global_step]
            (at.gradients if torch.is_grad_enabled() else at.plain)[:] += len(given[0]), int((given[0] != 0).sum())

    done.model.get_input_embeddings().register_forward_pre_hook(count)
    done.train()
    return found, done.schedule


def declared(spec, rows, schedule, micro_batches=1):
    """Returns step -> the same, as the components declare it."""
    named = rows if isinstance(rows, dict) else {"train": rows}

    def of(name, given):
        lengths = np.array([len(row["input_ids"]) for row in given], dtype=float)
        return Rows(name, float(len(given)), np.sort(lengths), (LENGTH - 2) / LENGTH, "")

    data = DataSize(tuple(of(*item) for item in named.items()), (of("eval", TokenRows(M, lengths=LENGTH)),))
    step = Amount(BATCH * micro_batches, BATCH * micro_batches * LENGTH, BATCH * micro_batches * (LENGTH - 2))
    around = Ahead(step=step, micro_batches=micro_batches, width=32)
    asking = Asking(spec, data, row_shares(spec, data), schedule, around)
    found, at = {}, 0
    while at < schedule.total:
        segment = schedule.segment_at(at)
        if segment.update is not None:
            work = sum((decided.cost.update for decided in asking.at(segment)), start=Work())
            plain = work.losses + work.forward + work.hidden
            found[segment.start] = (plain, work.gradients)
        at = segment.stop
    return found, asking


def agree(found, said):
    """Asserts that each update saw the rows and tokens that it was said to see."""
    for step, (plain, gradients) in said.items():
        assert found[step].plain.tolist() == [round(plain.rows), round(plain.tokens)], f"without gradients, step {step}"
        given = [round(gradients.rows), round(gradients.tokens)]
        assert found[step].gradients.tolist() == given, f"with gradients, step {step}"
    assert set(found) <= set(said), "steps at which nothing was said to happen"


RUNS = {
    "loss": [part(SELECTOR, "loss")],
    "loss, seen": [part(SELECTOR, "loss", {"scores": "seen"})],
    "delta_loss": [part(SELECTOR, "delta_loss")],
    "random": [part(SELECTOR, "random")],
    "less": [part(SELECTOR, "less")],
    "less, candidates": [part(SELECTOR, "less", {"candidates": 30})],
    "less, every second update": [part(SELECTOR, "less", every=2)],
    "icons": [part(SELECTOR, "icons")],
    "icons, candidates": [part(SELECTOR, "icons", {"candidates": 30})],
    "greats": [part(SELECTOR, "greats")],
    "greats, of more candidates": [part(SELECTOR, "greats", {"ratio": 2.6})],
    "greats, of target rows for each step": [part(SELECTOR, "greats", {"eval_rows": 2})],
    "greats, every second update": [part(SELECTOR, "greats", every=2)],
    "greats of what a filter keeps": [part(SELECTOR, "loss", keep=0.5), part(SELECTOR, "greats")],
    "greats as a filter": [part(SELECTOR, "greats", keep=0.5), part(SELECTOR, "random")],
    "zeroth": [part(SELECTOR, "zeroth", {"directions": 3})],
    "near by n-grams": [part(SELECTOR, "near")],
    "near by the model": [part(SELECTOR, "near", MODEL)],
    "near, refreshed every second update": [part(SELECTOR, "near", MODEL | {"refresh": 2})],
    "near, rows again": [part(SELECTOR, "near", MODEL | {"exclude_seen": False, "refresh": 3})],
    "tsds by the model": [part(SELECTOR, "tsds", MODEL | {"refresh": 2})],
    "deita by n-grams": [part(SELECTOR, "deita", {"threshold": 1.0})],
    "deita by the model": [part(SELECTOR, "deita", MODEL | {"threshold": 1.0, "refresh": 2})],
    "deita by the model and the loss": [part(SELECTOR, "deita", MODEL | {"threshold": 1.0, "score": "loss"})],
    "semdedup by the model": [part(SELECTOR, "semdedup", MODEL | {"refresh": 2})],
    "dsir": [part(SELECTOR, "dsir", {"features": "tokens"})],
    "less of what semdedup keeps": [part(SELECTOR, "semdedup", MODEL, keep=0.5), part(SELECTOR, "less")],
    "coincide": [part(SELECTOR, "coincide", {"num_clusters": 4})],
    "coincide, refreshed every second update": [part(SELECTOR, "coincide", {"num_clusters": 4, "refresh": 2})],
    "cluster_less": [part(SELECTOR, "cluster_less", {"clusters": 5, "representatives": 3})],
    "cluster_less by the model": [
        part(SELECTOR, "cluster_less", MODEL | {"clusters": 5, "representatives": 3, "refresh": 2})
    ],
    "cluster_less, ucb": [
        part(SELECTOR, "cluster_less", {"clusters": 5, "representatives": 4, "budget": "ucb"}),
    ],
    "a filter, a selector and an order by one loss": [
        part(SELECTOR, "loss", keep=0.5), part(SELECTOR, "loss", {"focus": "high"}),
        part(ORDER, "sorting", by="loss", over="stretch"),
    ],
    "less of what a filter keeps": [part(SELECTOR, "loss", keep=0.5), part(SELECTOR, "less")],
    "an order by losses": [part(ORDER, "sorting", by="loss", over="run")],
    "an order that never changes": [part(ORDER, "sorting", by="length", over="run")],
}  # fmt: skip


@pytest.mark.parametrize("parts", RUNS.values(), ids=RUNS)
def test_each_update_sees_the_rows_that_its_components_declare(tmp_path, parts):
    spec, rows = spec_of(parts), TokenRows(N, lengths=LENGTH)
    found, schedule = counted(tmp_path, spec, rows)
    agree(found, declared(spec, rows, schedule)[0])


def test_a_selector_of_each_source_is_asked_for_what_whole_passes_leave(tmp_path):
    rows = {"a": TokenRows(N, lengths=LENGTH), "b": TokenRows(5, lengths=LENGTH, seed=1)}
    spec = spec_of([part(MIXER, "static"), part(SELECTOR, "less")])
    found, schedule = counted(tmp_path, spec, rows)
    agree(found, declared(spec, rows, schedule)[0])


@pytest.mark.parametrize(
    "mixer",
    [
        ("doge", {}),
        ("doge", {"target": "eval"}),
        ("pike", {}),
        ("odm", {"reward": "gradient_norm"}),
        ("odm", {"reward": "entropy"}),
    ],
    ids=str,
)
def test_mixers_that_look_at_gradients_make_no_pass_but_for_held_out_targets(tmp_path, mixer):
    rows = {"a": TokenRows(N, lengths=LENGTH), "b": TokenRows(15, lengths=LENGTH, seed=1)}
    spec = spec_of([part(MIXER, *mixer)])
    found, schedule = counted(tmp_path, spec, rows)
    if 0 in found:  # a row of two is tried when the trainer is made, before the first step
        del found[0]
    agree(found, declared(spec, rows, schedule)[0])


def test_adapt_embeds_its_target_as_often_as_it_declares(tmp_path):
    keys = {"warmup_step": 2, "train_step": 13, "explain_rows": 0}
    spec = spec_of([part(WEIGHTER, "adapt", {"refresh": 4, "anchors": 5}, start=2)], keys)
    rows = TokenRows(N, lengths=LENGTH)
    found, schedule = counted(tmp_path, spec, rows)
    weigher = declared(spec, rows, schedule)[1].weigher()
    seen = sum(at.plain for at in found.values())
    hidden = weigher.cost.step.hidden.times(schedule.total - 2)
    assert seen.tolist() == [round(hidden.rows), round(hidden.tokens)] == [15, 15 * LENGTH]


@pytest.mark.parametrize("name", ["loss", "trim"])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_scope_step_costs_a_forward_pass_where_a_step_has_several_micro_batches(tmp_path, name, micro_batches):
    spec = spec_of([part(WEIGHTER, name, {"scope": "step"})], {"train_step": 5})
    rows, seen = TokenRows(40, lengths=LENGTH), np.zeros(2)
    done = trainer_class(DynamicTrainer, Trainer)(
        model=tiny_model(),
        args=tiny_training_args(
            tmp_path, max_steps=-1, per_device_train_batch_size=BATCH, gradient_accumulation_steps=micro_batches
        ),
        train_dataset=rows,
        data_collator=pad_collate,
        dataflex=spec,
    )

    def count(_, given):
        if not torch.is_grad_enabled():
            seen[:] += len(given[0]), int((given[0] != 0).sum())

    done.model.get_input_embeddings().register_forward_pre_hook(count)
    done.train()
    weigher = declared(spec, rows, done.schedule, micro_batches)[1].weigher()
    forward = weigher.cost.step.forward.times(5)
    assert seen.tolist() == [forward.rows, forward.tokens]
    assert bool(forward.rows) == (micro_batches > 1)
