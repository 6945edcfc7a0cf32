"""How many steps a run has is counted once: what ``validate`` says, what the trainers do, what the docs' table says."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path

import pytest
from dataflex.cli.validate import schedule_in_words
from dataflex.config.check import check
from dataflex.config.load import read_config
from dataflex.config.resolved import recorded_run
from dataflex.core.errors import ConfigError, InvalidConfigError
from dataflex.run.record import read_trace
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args
from dataflex.train.trainer import BY_TRAIN_TYPE, trainer_class
from transformers import Trainer

ROWS, BATCH = 21, 2  # of each of two sources
PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
COMPONENTS = {"dynamic_select": "free", "dynamic_mix": "random", "dynamic_weight": "loss"}
KINDS = [*COMPONENTS, "static_mix"]
GRID = [
    {"warmup_step": warmup, "update_step": 2, "update_times": times} | end
    for warmup, times, end in itertools.product(
        (0, 5), (-1, 0, 3), ({}, {"train_step": 7}, {"max_steps": 7}, {"num_train_epochs": 2.0})
    )
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    rows = [{"instruction": "x", "input": "", "output": "y"}] * ROWS
    for name in "ab":
        (folder / f"{name}.json").write_text(json.dumps(rows))
    info = {name: {"file_name": f"{name}.json"} for name in "ab"}
    (folder / "c.yaml").write_text("selectors: {free: {name: random, params: {replacement: true}}}")
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def checked(folder, kind, keys):
    """The run as ``validate`` and ``train`` see it."""
    train_type = "dynamic_mix" if kind == "static_mix" else kind
    config = {
        "train_type": train_type,
        "model_name_or_path": "a/model",
        "do_train": True,
        "dataset": "a,b",
        "dataset_dir": str(folder),
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": BATCH,
    }
    own = {"static_mix": True} if kind == "static_mix" else {"component_name": COMPONENTS[kind]}
    own |= {"components_cfg_file": "c.yaml"} if kind == "dynamic_select" else {}
    return check(config | own | keys, folder)


def trained(spec, folder, keys):
    """The trainer of the run."""
    rows = {name: TokenRows(ROWS, lengths=6, seed=seed) for seed, name in enumerate("ab")}
    arguments = {key: value for key, value in keys.items() if key in ("max_steps", "num_train_epochs")}
    train_type = spec.arguments.train_type
    return trainer_class(BY_TRAIN_TYPE[train_type], Trainer)(
        model=tiny_model(),
        args=tiny_training_args(folder / "out", per_device_train_batch_size=BATCH, **({"max_steps": -1} | arguments)),
        train_dataset=TokenRows(2 * ROWS, lengths=6) if train_type == "dynamic_select" else rows,
        data_collator=pad_collate,
        dataflex=spec,
        overwrite_output_dir=True,
    )


def steps_in_words(spec) -> int:
    """The number of steps that ``validate`` prints."""
    words = schedule_in_words(spec)
    if found := re.search(r"(\d+) steps in all", words):
        return int(found[1])
    if found := re.search(r"(\d+) steps, repeated for num_train_epochs: ([\d.]+)", words):
        return int(found[1]) * int(found[2])
    epochs = float(re.search(r"([\d.]+) epochs? of the data", words)[1])
    return math.ceil(epochs * 2 * ROWS / BATCH)


def steps_in_docs(keys) -> int | None:
    """The number of steps that the table of docs/configuration.md gives; None for passes over the rows."""
    table = re.findall(r"^\| (.*?) \| (.*?) \|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    start = table.index(("configured", "total number of steps"))
    values = {"train_step": keys.get("train_step", 0) or keys.get("max_steps", 0)} | {
        key: keys[key] for key in ("warmup_step", "update_step", "update_times")
    }
    holds = {
        "`train_step` above 0": values["train_step"] > 0,
        "`update_times` of 0 or more": values["update_times"] >= 0,
        "`update_times: -1`, or a formula that gives 0": True,
    }
    for configured, total in table[start + 2 : start + 5]:
        formula = re.fullmatch(r"`([a-z_ +*]+)`", total)
        if holds[configured] and formula is None:
            assert total == "`num_train_epochs` passes over the rows"
            return None
        if holds[configured] and eval(formula[1], {}, values):
            return eval(formula[1], {}, values)
    raise AssertionError("the table covers no such run")


@pytest.mark.parametrize("keys", GRID, ids=lambda keys: " ".join(f"{k}={v}" for k, v in keys.items()))
@pytest.mark.parametrize("kind", KINDS)
def test_validate_trainer_and_docs_count_the_same_steps(folder, kind, keys):
    spec = checked(folder, kind, keys)
    epochs = keys.get("num_train_epochs", 3.0)
    by_docs = steps_in_docs(keys)
    if by_docs is None:
        by_docs = int(epochs * 2 * ROWS / BATCH)
    elif kind == "dynamic_select" and "num_train_epochs" in keys:  # the whole schedule is run that many times
        by_docs *= int(epochs)
    trainer = trained(spec, folder, keys)
    assert trainer.schedule.total == steps_in_words(spec) == by_docs
    assert trainer.args.max_steps in (by_docs, -1)  # -1: the loop of a weighted run counts its epochs itself
    assert trainer.args.max_steps == by_docs or kind == "dynamic_weight"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keys", [{"warmup_step": 3, "update_step": 2, "update_times": 0}, {"num_train_epochs": 0.5}])
def test_as_many_steps_are_trained_as_validate_says(folder, kind, keys):
    keys = {"update_step": 2} | keys
    spec = checked(folder, kind, keys)
    trainer = trained(spec, folder, keys)
    trainer.train()
    assert trainer.state.global_step == trainer.schedule.total == steps_in_words(spec)


SHORT = [keys for keys in GRID if keys.keys().isdisjoint({"train_step", "max_steps", "num_train_epochs"})]
SHORT = [keys if keys["update_times"] >= 0 else keys | {"train_step": 7} for keys in SHORT]
SHORT.append({"warmup_step": 5, "update_step": 2, "update_times": 3, "max_steps": 7})
"""Shapes of a few steps. Of those that are as long as the rows, the test above trains one of each kind."""


@pytest.mark.parametrize("keys", SHORT, ids=lambda keys: " ".join(f"{k}={v}" for k, v in keys.items()))
@pytest.mark.parametrize("kind", KINDS)
def test_the_record_has_the_steps_and_the_updates_of_the_schedule(folder, kind, keys):
    spec = checked(folder, kind, keys)
    if spec.steps().total is None:
        return  # update_times: 0 without a warm-up gives no number of steps
    trainer = trained(spec, folder, keys)
    trainer.train()
    trainer.save_state()
    out = folder / "out"
    assert recorded_run(out).finished == trainer.state.global_step == steps_in_words(spec)
    again = check(read_config(out / "dataflex_config.yaml"), out)
    assert again.steps() == spec.steps()
    plan = again.steps().plan(2 * ROWS // BATCH)
    turns = [segment for step in range(plan.total) if (segment := plan.segment_at(step)).start == step]
    decided = {(line["update"], line["step"]) for line in read_trace(out) if "update" in line}
    assert decided == {(each.update, each.start) for each in turns if each.update is not None}


BAD = [
    ({"train_step": 5, "max_steps": 6}, "train_step: is 5 and max_steps is 6 -> remove one of the two"),
    ({"update_step": 0, "update_times": 2}, "update_step: is 0, but update_times: 2 asks for 2 updates -> "),
    (
        {"warmup_step": 4, "update_step": 1, "train_step": 4},
        "train_step: is 4, so the run ends before its first update",
    ),
    ({"num_train_epochs": 0.0, "update_step": 1}, "num_train_epochs: is 0, and nothing else gives the schedule a step"),
]


@pytest.mark.parametrize(("keys", "text"), BAD)
def test_a_wrong_schedule_is_refused_in_the_same_words_by_validate_and_by_the_trainer(folder, keys, text):
    with pytest.raises(InvalidConfigError) as said:
        checked(folder, "dynamic_mix", keys)
    assert text in str(said.value)
    spec = checked(folder, "dynamic_mix", {"update_step": 1})
    own = {key: value for key, value in keys.items() if key in spec.arguments.names()}
    changed = type(spec)(type(spec.arguments)(**(vars(spec.arguments) | own)), spec.component, {}, spec.epochs)
    if "num_train_epochs" in keys:
        changed = type(spec)(changed.arguments, spec.component, {}, keys["num_train_epochs"])
    with pytest.raises(ConfigError) as refused:
        trained(changed, folder, keys)
    assert str(said.value.problems[0]) == str(refused.value)
