"""What the log says of a run: one line when training begins, and one per update, however many axes decide in it."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
from dataflex import dynamic
from dataflex.core.schedule import Schedule, Segment
from dataflex.integrations.llamafactory.printed_numbers import of_update, replacements
from dataflex.planning.mixture import MANY, MixtureManager
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args
from dataflex.trainer.run_lines import say_update
from transformers import PrinterCallback, ProgressCallback, Trainer

STEPS = {"warmup_step": 1, "update_step": 1, "update_times": 3}
SOURCES = {"a": TokenRows(12, lengths=8), "b": TokenRows(24, lengths=8, seed=1)}


def said(caplog, folder, rows=None, resume=None, args=None, **axes):
    """Trains and returns the lines of the log, without the times."""
    made = dynamic(Trainer, **axes)(
        model=tiny_model(), args=tiny_training_args(folder, **({"max_steps": -1} | (args or {}))),
        train_dataset=TokenRows(24, lengths=8) if rows is None else rows, data_collator=pad_collate,
    )  # fmt: skip
    caplog.clear()
    with caplog.at_level("INFO", "dataflex"):
        made.train(resume_from_checkpoint=resume)
    lines = [record.getMessage() for record in caplog.records if record.name == "dataflex"]
    return [re.sub(r"in \d+\.\d s", "in N s", line) for line in lines]


def test_a_run_says_what_it_will_do_and_what_each_update_decided(tmp_path, caplog):
    assert said(caplog, tmp_path, selector="loss", **STEPS) == [
        f"rows by loss; 4 steps of 4 rows, 3 updates, the first at step 1; 24 rows; output_dir: {tmp_path}",
        "update 0 of 3 at step 1: loss chose 4 of 24 rows in N s; next at step 2",
        "update 1 of 3 at step 2: loss chose 4 of 24 rows in N s; next at step 3",
        "update 2 of 3 at step 3: loss chose 4 of 24 rows in N s; the last one",
    ]


def test_all_axes_of_an_update_are_one_line_and_one_that_rests_is_not_in_it(tmp_path, caplog):
    axes = {
        "selector": [{"component": "loss", "keep": 0.5, "every": 2}, "random"], "mixer": "random",
        "order": {"component": "sorting", "by": "length"}, "weighter": "loss",
    }  # fmt: skip
    start, *updates = said(caplog, tmp_path, SOURCES, **axes, **STEPS)
    assert start.endswith(
        "; 4 steps of 4 rows, 3 updates, the first at step 1; shares begin with the sizes of its "
        "sources in rows: a 0.333, b 0.667; 36 rows; "
        f"output_dir: {tmp_path}"
    )
    shape = [re.sub(r"\d\.\d{3}", "S", line) for line in updates]
    rest = "random set a S, b S; random chose 4 of {} rows; sorting arranged 4 rows in N s; "
    assert shape == [
        f"update 0 of 3 at step 1: loss kept 18 of 36 rows; {rest.format(18)}next at step 2",
        f"update 1 of 3 at step 2: {rest.format(18)}next at step 3",
        f"update 2 of 3 at step 3: loss kept 18 of 36 rows; {rest.format(18)}the last one",
    ]


def test_a_run_that_only_weighs_has_no_updates_to_announce(tmp_path, caplog):
    (start,) = said(caplog, tmp_path, weighter="loss", args={"max_steps": 3})
    assert start == f"weights by loss; 3 steps of 4 rows; 24 rows; output_dir: {tmp_path}"


def test_a_static_mixture_says_its_shares(tmp_path, caplog):
    keys = {"static_mix": True, "train_step": 2, "init_mixture_proportions": [0.25, 0.75]}
    (start,) = said(caplog, tmp_path, SOURCES, **keys)
    assert "; 2 steps of 4 rows; shares begin with init_mixture_proportions: a 0.250, b 0.750; 36 rows; " in start


def test_a_resumed_run_says_from_where(tmp_path, caplog):
    args = {"save_strategy": "steps", "save_steps": 2}
    said(caplog, tmp_path, selector="random", args=args, **STEPS)
    again = said(caplog, tmp_path, resume=str(tmp_path / "checkpoint-2"), selector="random", args=args, **STEPS)
    start, *updates = [line for line in again if re.match("rows by|update", line)]
    assert start.startswith("rows by random; from step 2 on, 4 steps of 4 rows, 3 updates, the first at step 1; ")
    assert [line.partition(":")[0] for line in updates] == ["update 1 of 3 at step 2", "update 2 of 3 at step 3"]


def trainer(schedule, *axes):
    parts = [SimpleNamespace(every=every, start=start, component=SimpleNamespace(kind=None)) for every, start in axes]
    return SimpleNamespace(schedule=schedule, spec=SimpleNamespace(axes=parts))


@pytest.mark.parametrize(
    ("schedule", "axes", "following"),
    [
        (Schedule(100, 10, 10, 9, 100, 100.0), [(1, 0)], "next at step 20"),
        (Schedule(100, 10, 10, 9, 100, 100.0), [(4, 0)], "next at step 50"),
        (Schedule(100, 10, 10, 9, 100, 100.0), [(4, 0), (3, 0)], "next at step 40"),
        (Schedule(100, 10, 10, 9, 100, 100.0), [(1, 75)], "next at step 80"),
        (Schedule(100, 10, 10, 9, 100, 100.0), [(9, 0)], "the last one"),
        (Schedule(100, 10, 10, 1, 100, 100.0), [(1, 0)], "the last one"),
        (Schedule(40, 10, 10, 1, 20, 20.0), [(1, 0)], "next at step 30"),
    ],
    ids=["each", "every 4th", "two axes", "from a step", "every 9th", "one update", "another cycle with a warm-up"],
)
def test_what_is_next_is_the_next_update_in_which_an_axis_takes_part(caplog, schedule, axes, following):
    line = {"update": 0, "seconds": 1.25, "component": "mine"}
    segment = schedule.segment_at(10)
    assert segment == Segment(10, segment.stop, 0)
    with caplog.at_level("INFO", "dataflex"):
        say_update(trainer(schedule, *axes), segment, 0, [(line, "chose")])
    assert caplog.messages == [
        f"update 0 of {schedule.updates} at step 10: mine chose in 1.2 s; {following}"
    ]  # fmt: skip


def test_of_many_sources_a_line_names_the_largest():
    shares = np.arange(1.0, 31) / np.arange(1.0, 31).sum()
    names = [f"s{i}" for i in range(30)]
    words = MixtureManager(names, np.full(30, 10), shares, seed=0).in_words()
    assert words == "s25 0.056, s26 0.058, s27 0.060, s28 0.062, s29 0.065, 25 others 0.699"
    few = MixtureManager(names[:MANY], np.full(MANY, 10), np.full(MANY, 1 / MANY), seed=0).in_words()
    assert few == ", ".join(f"s{i} 0.200" for i in range(MANY))


@pytest.mark.parametrize("kind", [ProgressCallback, PrinterCallback])
def test_the_numbers_of_an_update_are_not_printed_and_all_others_are(kind, capsys, monkeypatch):
    for cls, name, stand_in in replacements():
        monkeypatch.setattr(cls, name, stand_in)
    callback = kind()
    callback.training_bar = SimpleNamespace(write=print)
    state = SimpleNamespace(is_local_process_zero=True, is_world_process_zero=True)
    for logs in (
        {"dataflex/update": 1, "dataflex/seconds": 2.0, "epoch": 1.0},
        {"loss": 2.5, "dataflex/weight/max": 3},
    ):
        callback.on_log(None, state, None, logs=logs)
    (line,) = capsys.readouterr().out.splitlines()
    assert "2.5" in line
    assert "dataflex/weight/max" in line


@pytest.mark.parametrize(
    ("logs", "expected"),
    [({"dataflex/x": 1}, True), ({"epoch": 1.0}, False), ({}, False), ({"dataflex/x": 1, "loss": 2}, False)],
)
def test_a_line_is_of_an_update_where_all_its_numbers_are(logs, expected):
    assert of_update(logs) == expected
