"""Whoever follows an advice about steps or rows gets a run that can start: each number in it is tried here."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from dataflex.config.check import check
from dataflex.config.checks.enough_rows import Asked, too_few_rows
from dataflex.config.checks.steps import step_problems
from dataflex.config.checks.streaming import no_end
from dataflex.core.errors import InvalidConfigError
from dataflex.core.schedule import Steps
from hypothesis import given, settings
from hypothesis import strategies as st

FIELDS = {"num_train_epochs": "epochs", "max_steps": "train_step"}
NUMBERS = re.compile(r"\b(update_step|warmup_step|update_times|train_step|max_steps|num_train_epochs): (-?\d+)")
IN_WORDS = {
    "give the steps between two updates": [{"update_step": 1}, {"update_step": 7}],
    "set num_train_epochs above 0": [{"epochs": 0.1}, {"epochs": 3}],
    "leave num_train_epochs out": [{"repeat": False, "epochs": 3}],
    "set train_step": [{"train_step": 30}],
    "set update_step and update_times": [{"update_step": 2, "update_times": 3}],
}
RUNS = st.builds(
    Steps,
    warmup_step=st.integers(0, 9),
    update_step=st.integers(0, 9),
    update_times=st.integers(-1, 4),
    train_step=st.one_of(st.just(0), st.integers(1, 25)),
    epochs=st.sampled_from([0.0, 0.5, 1.0, 2.5]),
    repeat=st.booleans(),
    decides=st.booleans(),
)


def advised(way_out: str) -> list[list[dict[str, float]]]:
    """Returns, for each alternative of a way out, what following it may mean, as fields of ``Steps``."""
    found = []
    for text in way_out.split(", or "):
        numbers = {FIELDS.get(key, key): int(value) for key, value in NUMBERS.findall(text)}
        if not numbers:
            found.append(IN_WORDS[text])
        else:
            beyond = 1 if text.endswith("or more") else -1 if text.endswith("or less") else 0
            further = {key: max(value + beyond, 0) if beyond else value for key, value in numbers.items()}
            found.append([numbers, further])
    return found


@settings(max_examples=150)
@given(RUNS)
def test_following_the_advice_about_steps_mends_the_schedule(steps):
    problems = step_problems(steps)
    places = {problem.where for problem in problems}
    for problem in problems:
        assert problem.way_out, "there is always a way out"
        for alternative in advised(problem.way_out):
            for keys in alternative:
                left = {found.where for found in step_problems(replace(steps, **keys))}
                assert left <= places - {problem.where}, (keys, left)


@settings(max_examples=150)
@given(RUNS, st.integers(1, 8), st.integers(1, 60), st.integers(0, 7))
def test_following_the_advice_about_rows_lets_the_run_start(steps, batch, found, spare):
    steps = replace(steps, decides=True)
    if step_problems(steps):
        return
    asked = Asked(steps, batch, found + min(spare, batch - 1), found)
    for problem in too_few_rows(asked):
        *ways, last = problem.way_out.split(", or ")
        assert last == "use a selector with `replacement: true`"
        assert ways or found < batch or steps.train_step == 1, "a number would have helped"
        for way in ways:
            rows = re.match(r"train on (\d+) rows a step", way)
            if rows:
                changed = replace(asked, batch=int(rows[1]))
            else:
                keys = {FIELDS.get(key, key): int(value) for key, value in NUMBERS.findall(way)}
                changed = replace(asked, steps=replace(steps, **keys))
            assert not step_problems(changed.steps), way
            assert not too_few_rows(changed), way


@given(RUNS)
def test_following_the_advice_about_streams_gives_the_run_an_end(steps):
    steps = replace(steps, repeat=False)
    for problem in no_end(steps):
        assert problem.way_out == "give it, or update_step and update_times"
        assert not no_end(replace(steps, train_step=5))
        assert not no_end(replace(steps, update_step=2, update_times=3))


BASE = {"warmup_step": 2, "update_step": 2, "update_times": 2}


@pytest.fixture
def refused(tmp_path):
    """``refused(**keys)`` returns the one problem of a run over 100 rows, 8 a step, or None where it can start."""
    for folder in ("model", "data"):
        (tmp_path / folder).mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "data" / "a.json").write_text(json.dumps([{"instruction": "x", "input": "", "output": "y"}] * 100))
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps({"a": {"file_name": "a.json"}}))
    config = {
        "model_name_or_path": str(tmp_path / "model"), "stage": "sft", "do_train": True, "dataset": "a",
        "dataset_dir": str(tmp_path / "data"), "output_dir": str(tmp_path / "out"), "per_device_train_batch_size": 8,
        "train_type": "dynamic_select", "component_name": "random", **BASE,
    }  # fmt: skip

    def refused_(**keys):
        try:
            check(config | keys, tmp_path)
        except InvalidConfigError as error:
            (problem,) = error.problems
            return problem
        return None

    return refused_


@pytest.mark.parametrize(
    ("keys", "where", "ways"),
    [
        ({"max_steps": 500}, "max_steps", ["update_times: -1", "max_steps: 16"]),
        ({"train_step": 500}, "train_step", ["update_times: -1", "train_step: 16"]),
        ({"train_step": 500, "max_steps": 500}, "train_step and max_steps", ["update_times: -1", "max_steps: 16"]),
        ({"update_step": 13}, "update_step", ["update_step: 12"]),
        ({"warmup_step": 13}, "warmup_step", ["warmup_step: 12"]),
        ({"warmup_step": 13, "update_step": 14}, "update_step", ["update_step: 12 and warmup_step: 12"]),
        ({"update_times": 0, "warmup_step": 0}, "num_train_epochs", ["update_times: -1 and update_step: 12"]),
        ({"per_device_train_batch_size": 64}, "update_step", ["update_step: 1 and warmup_step: 1", "train on 50 rows"]),
    ],
)
def test_the_key_that_asks_for_too_many_rows_is_named_and_each_way_out_leads_out(refused, keys, where, ways):
    problem = refused(**keys)
    assert problem.where == where
    for way in ways:
        assert way in problem.way_out
    for alternative in problem.way_out.split(", or "):
        numbers = dict(NUMBERS.findall(alternative))
        if "train_step and max_steps" in alternative:
            numbers = dict.fromkeys(("train_step", "max_steps"), numbers["max_steps"])
        rows = re.match(r"train on (\d+) rows a step", alternative)
        change = {"per_device_train_batch_size": int(rows[1])} if rows else {k: int(v) for k, v in numbers.items()}
        if change:
            assert refused(**keys | change) is None, alternative
