"""Whatever differs between a checkpoint and the run that resumes it is refused by name, or has no effect."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from dataflex.config.arguments import DataflexArguments
from dataflex.config.known_keys import llamafactory_keys
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.errors import CheckpointError
from dataflex.core.kinds import MIXER, SELECTOR, WEIGHTER
from dataflex.core.registry import register_selector
from dataflex.run import identity
from dataflex.run.identity import identity_of_run, require_same
from dataflex.run.record import read_trace
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args
from dataflex.train.selector.base_selector import Selector
from dataflex.train.trainer import MixTrainer, SelectTrainer, WeightTrainer, trainer_class
from transformers import Trainer, TrainerCallback

TYPES = {
    "dynamic_select": (SelectTrainer, SELECTOR, "loss"),
    "dynamic_mix": (MixTrainer, MIXER, "random"),
    "dynamic_weight": (WeightTrainer, WEIGHTER, "loss"),
}
MIX, WEIGHT, SELECT = ("dynamic_mix",), ("dynamic_weight",), ("dynamic_select",)
STEPS, MIDDLE = 8, 4


@register_selector("reads_evaluation")
class ReadsEvaluation(Selector):
    """Its choice may depend on the evaluation rows."""

    def __init__(self, dataset, accelerator, data_collator, cache_dir, eval_dataset=None):
        super().__init__(dataset, accelerator, data_collator, cache_dir)
        self.eval_dataset = eval_dataset

    def select(self, model, step_id, num_samples, **kwargs):
        return self.generator(kwargs["context"].update).permutation(len(self.dataset))[:num_samples]


@dataclass(frozen=True)
class Run:
    """A run; a change of it is ``replace``d fields."""

    train_type: str
    component: str | None = None
    preset: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)
    args: dict[str, Any] = field(default_factory=dict)
    order: str = "ab"
    data: int = 1
    rows: int = 40
    evaluation: int = 9

    def trainer(self, folder):
        mixin, kind, name = TYPES[self.train_type]
        name = self.component or name
        keys = {"warmup_step": 2, "update_step": 3, "update_times": 2, "mixture_sample_rule": "uniform"} | self.keys
        component = ComponentSpec(kind, self.preset or name, name, self.params)
        model = tiny_model()
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.1
        defaults = {"max_steps": -1, "per_device_train_batch_size": 8, "learning_rate": 1e-2}
        made = trainer_class(mixin, Trainer)(
            model=model,
            args=tiny_training_args(folder, **(defaults | {"lr_scheduler_type": "constant"} | self.args)),
            train_dataset=self.dataset(),
            eval_dataset=TokenRows(4, lengths=16, seed=self.evaluation),
            data_collator=Watched(),
            dataflex=RunSpec(
                DataflexArguments(train_type=self.train_type, component_name=name, **keys),
                None if keys.get("static_mix") else component,
            ),
        )
        made.add_callback(made.data_collator)
        return made

    def dataset(self):
        if self.train_type == "dynamic_select":
            return TokenRows(self.rows, lengths=range(8, 17), seed=self.data)
        sources = {"a": TokenRows(self.rows, lengths=16, seed=self.data), "b": TokenRows(self.rows, lengths=12, seed=2)}
        return {name: sources[name] for name in self.order}


class Watched(TrainerCallback):
    """A collator that remembers the rows it was given."""

    def __init__(self):
        self.rows = []

    def __call__(self, rows):
        self.rows += [tuple(row["input_ids"]) for row in rows]
        return pad_collate(rows)

    def on_train_begin(self, *args, **kwargs):
        self.rows.clear()


def end(done):
    return {name: value.clone() for name, value in done.model.state_dict().items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns what makes a run of a type, never stopped, with a checkpoint of each step: its folder and weights."""

    @cache
    def make(train_type, component=None):
        folder = tmp_path_factory.mktemp(train_type)
        made = Run(train_type, component, args={"save_strategy": "steps", "save_steps": 4}).trainer(folder)
        made.train()
        return folder, end(made)

    return make


# What must be refused, and under which name: for which types, what changes, and a word of the refusal.
REFUSED = {
    "seed": (TYPES, {"args": {"seed": 7}}, "seed: 42 in the checkpoint, 7 now"),
    "data_seed": (TYPES, {"args": {"data_seed": 7}}, "seed: 42 in the checkpoint, 7 now"),
    "other rows": (TYPES, {"data": 5}, "rows with the digest"),
    "fewer rows": (TYPES, {"rows": 39}, "40 rows with the digest"),
    "sources in another order": ((*MIX, *WEIGHT), {"order": "ba"}, "in this order: a, b in the checkpoint, b, a"),
    "component": (SELECT, {"component": "random"}, ":loss in the checkpoint, dataflex-selectors:random now"),
    "preset": (TYPES, {"preset": "other"}, "component_name: "),
    "parameters": (SELECT, {"params": {"focus": "low"}}, "params: {} in the checkpoint, {'focus': 'low'} now"),
    "global batch size": (TYPES, {"args": {"per_device_train_batch_size": 4}}, "global_batch_size: 8 in the .*, 4 now"),
    "warm-up": (TYPES, {"keys": {"warmup_step": 3, "train_step": 9}}, "warmup_step: 2 in the checkpoint, 3 now"),
    "update_step": ((*SELECT, *MIX), {"keys": {"update_step": 4}}, "update_step: 3 in the checkpoint, 4 now"),
    "shorter than what is done": (TYPES, {"keys": {"train_step": 3}}, "run of 8 steps and has done 4 of them.* has 3 "),
    "shorter": (TYPES, {"keys": {"train_step": 7}}, "run of 8 steps and has done 4 of them.* has 7 "),
    "static_mix": (MIX, {"keys": {"static_mix": True, "train_step": 8}}, "static_mix: not set in .*, True now"),
    "sample rule": (MIX, {"keys": {"mixture_sample_rule": "stratified"}}, "mixture_sample_rule: "),
    "proportions": (
        MIX, {"keys": {"mixture_sample_rule": "mixture", "init_mixture_proportions": (0.1, 0.9)}},
        "init_mixture_proportions: not set in the checkpoint",
    ),
    "unit": (MIX, {"keys": {"mixture_unit": "tokens"}}, "mixture_unit: not set in the checkpoint, tokens now"),
    "objective": (WEIGHT, {"keys": {"weight_objective": "token"}}, "weight_objective: not set in .*, token now"),
    **{
        key: (TYPES, {"args": {key: value}}, f"{key}: ")
        for key, value in {
            "learning_rate": 1e-3, "lr_scheduler_type": "linear", "warmup_steps": 3, "weight_decay": 0.1,
            "adam_beta1": 0.5, "max_grad_norm": 0.5, "label_smoothing_factor": 0.1, "optim": "sgd",
            "neftune_noise_alpha": 5.0,
        }.items()
    },
}  # fmt: skip
NO_EFFECT = {
    "workers": (TYPES, {"args": {"dataloader_num_workers": 1}}),
    "what is saved and logged": (TYPES, {"args": {"save_steps": 3, "logging_steps": 5, "save_strategy": "steps"}}),
    "evaluation": (TYPES, {"args": {"eval_strategy": "steps", "eval_steps": 2}}),
    "evaluation rows that nothing is learnt from": (TYPES, {"evaluation": 10}),
    "the same number of steps in other words": (TYPES, {"keys": {"train_step": 8}}),
}


def cells(table):
    return [pytest.param(kind, *rest, id=f"{kind}: {name}") for name, (kinds, *rest) in table.items() for kind in kinds]


def resumed(whole, tmp_path, kind, change):
    folder, _ = whole(kind)
    made = Run(kind, **change).trainer(tmp_path)
    made.train(resume_from_checkpoint=str(folder / f"checkpoint-{MIDDLE}"))
    return made


@pytest.mark.parametrize(("kind", "change", "said"), cells(REFUSED))
def test_what_matters_is_refused_by_name(whole, tmp_path, kind, change, said):
    with pytest.raises(CheckpointError, match=said):
        resumed(whole, tmp_path, kind, change)
    assert not (tmp_path / "dataflex_config.yaml").exists()


@pytest.mark.parametrize(("kind", "change"), cells(NO_EFFECT))
def test_what_is_accepted_changes_nothing_that_is_learnt(whole, tmp_path, kind, change):
    ended, expected = end(resumed(whole, tmp_path, kind, change)), whole(kind)[1]
    assert all(torch.equal(ended[name], value) for name, value in expected.items())


@pytest.mark.parametrize("kind", TYPES)
def test_a_step_that_is_split_in_another_way_has_the_same_rows(whole, tmp_path, kind):
    split = {"args": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}}
    one, two = (
        resumed(whole, tmp_path / name, kind, change).data_collator.rows
        for name, change in (("as before", {}), ("split", split))
    )
    planned = 8 if kind == "dynamic_select" else 8 * (STEPS - MIDDLE)  # dropout differs, and the next scores with it
    assert len(one) >= planned
    assert one[:planned] == two[:planned]


def test_evaluation_rows_that_a_component_learns_from_must_be_the_same(whole, tmp_path):
    folder, expected = whole("dynamic_select", "reads_evaluation")
    saved = str(folder / f"checkpoint-{MIDDLE}")
    run = Run("dynamic_select", "reads_evaluation", evaluation=10)
    with pytest.raises(CheckpointError, match="eval_dataset: 4 rows with the digest"):
        run.trainer(tmp_path).train(resume_from_checkpoint=saved)
    again = Run("dynamic_select", "reads_evaluation").trainer(tmp_path)
    again.train(resume_from_checkpoint=saved)
    assert all(torch.equal(end(again)[name], value) for name, value in expected.items())


@pytest.mark.llamafactory
@pytest.mark.parametrize("key", sorted(llamafactory_keys() or ()))
def test_every_key_of_a_yaml_is_refused_by_name_or_known_to_be_harmless(key):
    def made(value):
        keys = {} if value is None else {key: value}
        return identity_of_run(RunSpec(DataflexArguments("dynamic_select"), None, keys), 1) | {"data": []}

    apart = identity.LENGTH | {*identity.TRAINING_ARGUMENTS, *identity.ROW_ORDER, "seed", "data_seed"}
    if key in identity.MAY_DIFFER | apart:  # those in ``apart`` are compared as schedule, arguments and seed
        require_same(made("one"), made("two"), "x")
        return
    for before, now in (("one", "two"), (None, "two"), ("one", None)):
        with pytest.raises(CheckpointError, match=f"{key}: "):
            require_same(made(before), made(now), "x")


LONGER = {"more updates": ({"update_times": 4}, 14), "more steps": ({"update_times": -1, "train_step": 12}, 12)}


@pytest.fixture(scope="module")
def longer(tmp_path_factory):
    """Returns what makes a run that has more steps from the start: its weights."""

    @cache
    def make(kind, name):
        made = Run(kind, keys=LONGER[name][0]).trainer(tmp_path_factory.mktemp(kind))
        made.train()
        return end(made)

    return make


@pytest.mark.parametrize("step", [MIDDLE, STEPS], ids=["stopped", "finished"])
@pytest.mark.parametrize("name", LONGER)
@pytest.mark.parametrize("kind", TYPES)
def test_a_continued_run_is_the_run_that_was_longer_from_the_start(whole, longer, tmp_path, kind, name, step):
    keys, total = LONGER[name]
    continued = Run(kind, keys=keys).trainer(tmp_path)
    continued.train(resume_from_checkpoint=str(whole(kind)[0] / f"checkpoint-{step}"))
    assert continued.state.global_step == total
    assert all(torch.equal(end(continued)[name], value) for name, value in longer(kind, name).items())


def selections(folder):
    files = sorted((folder / "dataflex_selections").glob("step_*.npz"))
    return {int(path.stem.removeprefix("step_")): np.load(path)["indices"] for path in files}


@pytest.mark.parametrize("kind", [*SELECT, *MIX])
@pytest.mark.parametrize("keys", [{"update_times": -1}, {"update_times": 2}], ids=["until the end", "two updates"])
def test_a_run_that_ended_inside_of_a_segment_goes_on_from_there_and_keeps_what_it_did(tmp_path, kind, keys):
    saves = {"save_strategy": "steps", "save_steps": 1}
    Run(kind, keys=keys | {"train_step": 7}, args=saves, rows=64).trainer(tmp_path).train()
    before = selections(tmp_path)
    continued = Run(kind, keys=keys | {"train_step": 11}, args=saves, rows=64).trainer(tmp_path)
    continued.train(resume_from_checkpoint=True)
    after = selections(tmp_path)
    assert continued.state.global_step == 11
    assert list(before) == [0, 2, 5]
    assert all((after[step] == rows).all() for step, rows in before.items())
    more = [7, 8] if keys["update_times"] < 0 else [7]
    assert list(after) == [0, 2, 5, *more]
    assert sum(map(len, after.values())) == 11 * 8
    asked = [2, 5, *more] if kind == "dynamic_select" else [2, 5, *more[1:]]  # shares stand until they are set again
    assert [(line["update"], line["step"]) for line in read_trace(tmp_path)] == list(enumerate(asked))
    again = Run(kind, keys=keys | {"train_step": 11}, rows=64).trainer(tmp_path / "again")
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))
    assert all(torch.equal(end(again)[name], value) for name, value in end(continued).items())


@pytest.mark.parametrize("kind", SELECT)
def test_a_run_that_ended_inside_of_its_warm_up_has_the_rows_of_the_longer_one(tmp_path, kind):
    saves = {"save_strategy": "steps", "save_steps": 1}
    Run(kind, keys={"train_step": 1, "update_times": 0}, args=saves).trainer(tmp_path).train()
    Run(kind, args=saves).trainer(tmp_path).train(resume_from_checkpoint=True)
    Run(kind).trainer(tmp_path / "longer").train()
    parts, longer = selections(tmp_path), selections(tmp_path / "longer")
    assert np.concatenate([parts[0], parts[1]]).tolist() == longer[0].tolist()
