"""Pipelines and reorders of the public implementation's components file: read as our composition, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from composed import checked, write_workspace
from dataflex.config.reorders import read_reorder
from dataflex.config.summary import in_words
from dataflex.core import registry
from dataflex.core.errors import InvalidConfigError
from dataflex.discovery.plugins import load_plugin_files

PEAKS = """

@register_order("peaks")
class Peaks(Wave):
    def __init__(self, sections: int = 3, ratio: float = 0.1, layers: int = 2, window: int = 0, ascending: bool = True):
        self.window = window

@register_order("halves")
class Halves(Wave):
    def __init__(self, front: float = 0.1, back: float = 0.1, ends: str = "opposite", ascending: bool = True):
        self.window = 0
"""
LOSS = {"kind": "dynamic", "pattern": "peaks", "polarity": "higher_later", "score_source": "model_loss"}
QUALITY = {"kind": "static", "pattern": "peaks", "apply_at": "raw", "score_params": {"score_field": "hardness"}}
FILTER = {"family": "selector", "component": "loss", "mode": "filter", "keep_ratio": 0.5}
MIX = {"family": "mixer", "component": "odm"}
SORT = {"family": "reorder", "component": "by_loss"}
WEIGH = {"family": "weighter", "component": "loss"}


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_registered", {})
    write_workspace(tmp_path)
    with open(tmp_path / "orders.py", "a") as file:
        file.write(PEAKS)
    return tmp_path


def write(*stages, **reorders):
    """Writes a components file with a pipeline of those stages."""
    content = {
        "selectors": {"loss": {"name": "loss", "params": {}}},
        "reorders": {"by_loss": {"name": "by_loss", "params": LOSS}}
        | {key: {"name": key, "params": params} for key, params in reorders.items()},
        "pipelines": {"line": {"name": "line", "params": {"cache_dir": "x", "stages": list(stages)}}},
    }
    Path("c.yaml").write_text(yaml.safe_dump(content))


def lego(*stages, **keys):
    write(*stages)
    steps = {"warmup_step": 10, "update_step": 10, "update_times": 40} | keys
    return checked(
        train_type="dynamic_lego", component_name="line", components_cfg_file="c.yaml", dataset="a,b", **steps
    )


def refused(*stages, **keys) -> str:
    with pytest.raises(InvalidConfigError) as caught:
        lego(*stages, **keys)
    (problem, *_) = caught.value.problems
    return str(problem)


RUNS = [
    (
        [
            FILTER | {"every": 200, "warmup_step": 10},
            MIX | {"every": 50},
            SORT | {"every": 50},
            WEIGH | {"warmup_step": 10},
        ],
        "filter to half by loss every 20th update; shares by odm every 5th update; "
        "order by_loss by loss over the run every 5th update; weights by loss from step 10",
    ),
    (
        [FILTER | {"every": 100}, SORT | {"every": 20}],
        "filter to half by loss every 10th update; order by_loss by loss over",
    ),
    (
        [MIX | {"every": 50}, WEIGH | {"warmup_step": 10}],
        "shares by odm every 5th update; weights by loss from step 10",
    ),
    ([FILTER | {"mode": "draw"}, WEIGH], "rows by loss; weights by loss"),
    ([FILTER | {"warmup_step": 30}], "filter to half by loss from step 30"),
    ([SORT, FILTER], "filter to half by loss; order by_loss by loss over the run"),
    ([FILTER | {"enabled": False}, MIX | {"every": 3}], "shares by odm"),
    ([FILTER | {"every": 20}, MIX | {"every": 40}], "filter to half by loss every 2nd update; shares by odm every 2nd"),
    ([FILTER | {"every": 40}, MIX | {"every": 20}], "filter to half by loss every 4th update; shares by odm every 2nd"),
    ([FILTER | {"every": 20, "warmup_step": 50}], "filter to half by loss every 2nd update from step 50"),
]


@pytest.mark.parametrize(("stages", "words"), RUNS, ids=[words[:50] for _, words in RUNS])
def test_a_pipeline_is_run_as_the_composition_of_its_stages(stages, words, caplog):
    spec = lego(*stages, update_step=10)
    assert spec.arguments.train_type == "dynamic"
    assert in_words(spec).startswith(words)


def test_a_weighter_begins_at_its_own_step_whatever_the_warm_up_of_the_run():
    assert lego(MIX, WEIGH).weighter.start == 0


REFUSED = [
    (
        [FILTER | {"every": 25}],
        "stages[0].every: is 25 steps, no multiple of update_step: 10, so it would act every 30 steps, at the marks of "
        "the run -> write every: 30, or write instead: train_type: dynamic; selector: {component: loss, keep: 0.5, "
        "every: 3}",
    ),
    ([FILTER | {"every": 20, "warmup_step": 20}], "stages[0].every: with warmup_step: 20 it acts first at update 1"),
    ([FILTER | {"every": 30}, MIX | {"every": 20}], "stages[1].every: is every 2 updates, and the stage before it"),
    ([FILTER, FILTER], "stages[1]: is a second stage of the family selector, of which a pipeline has one"),
    ([FILTER | {"mode": "draw"}, MIX], "stages[0].mode: is draw, and the stage mixer behind it chooses the rows"),
    ([FILTER | {"mode": "drow"}], "stages[0].mode: found 'drow', allowed: filter | draw -> did you mean 'draw'?"),
    (
        [FILTER | {"keep": 0.5}],
        "stages[0].keep: no such key; allowed: component, enabled, every, family, keep_ratio, mode",
    ),
    (
        [{"family": "sorter", "component": "x"}],
        "stages[0]: found family: 'sorter' and component: 'x' -> write family: sel",
    ),
    ([MIX | {"every": "often"}], "stages[0].every: found 'often', allowed: a whole number of steps"),
    ([MIX | {"score_max_age": 5}], "stages[0].score_max_age: has no counterpart for a stage"),
    ([MIX | {"enabled": False}], "params.stages: none is enabled -> enable one"),
]


@pytest.mark.parametrize(("stages", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_a_pipeline_without_a_counterpart_is_refused_with_the_lines_to_write(stages, message):
    said = refused(*stages)
    assert message in said
    assert "or write instead: train_type: dynamic" in said


def test_a_pipeline_that_is_not_there_is_refused():
    write(MIX)
    for keys, message in (
        (
            {"component_name": "lime", "components_cfg_file": "c.yaml"},
            "no pipeline named 'lime'; known: line -> did you",
        ),
        ({"component_name": "line"}, "components_cfg_file: is missing; train_type: dynamic_lego takes a pipeline from"),
        ({"components_cfg_file": "c.yaml"}, "component_name: is missing; train_type: dynamic_lego takes a pipeline"),
        ({"component_name": "line", "components_cfg_file": "d.yaml"}, "d.yaml: there is no such file"),
    ):
        with pytest.raises(InvalidConfigError) as caught:
            checked(train_type="dynamic_lego", **keys)
        assert message in str(caught.value)


def test_what_is_wrong_with_a_stage_beyond_that_is_said_as_of_any_composition():
    with pytest.raises(InvalidConfigError) as caught:
        lego(FILTER | {"keep_ratio": 1.5}, MIX | {"component": "odd"})
    where = [problem.where for problem in caught.value.problems]
    assert where == ["selector.keep", "mixer", "component_name"]


def test_presets_of_the_file_that_cannot_be_used_are_named_with_lines_that_need_no_file():
    write(FILTER | {"every": 20}, MIX, SORT, WEIGH)
    content = yaml.safe_load(Path("c.yaml").read_text())
    content["selectors"]["loss"]["params"] = {"scoring_size": 8}
    content["mixers"] = {"odm": {"name": "odm", "params": {"exploration": 0.9}}}
    Path("c.yaml").write_text(yaml.safe_dump(content))
    steps = {"warmup_step": 10, "update_step": 10, "update_times": 40}
    with pytest.raises(InvalidConfigError) as caught:
        checked(train_type="dynamic_lego", component_name="line", components_cfg_file="c.yaml", **steps)
    *problems, last = map(str, caught.value.problems)
    assert [problem.partition(": the ")[0].rpartition(": ")[2] for problem in problems] == [
        "selectors.loss.params.scoring_size",
        "mixers.odm.params.exploration",
    ]
    said = last.partition("write instead: ")[2]
    keys = yaml.safe_load(said.replace("; ", "\n"))
    assert keys["order"]["component"] == "peaks"
    assert in_words(checked(**steps, **keys)) == (
        "filter to half by loss every 2nd update; shares by odm; order peaks by loss over the run; weights by loss"
    )


ORDERS = [
    (LOSS, ({"sections": 2, "ratio": 0.0, "layers": 2, "ascending": True}, "loss", "run")),
    (LOSS | {"polarity": "higher_earlier"}, ({"ascending": False}, "loss", "run")),
    (LOSS | {"polarity": "lower_is_better", "ascending": False}, ({"ascending": True}, "loss", "run")),
    ({key: LOSS[key] for key in ("kind", "pattern")}, ({"ascending": False}, "loss", "run")),  # its class's default
    (
        LOSS | {"pattern_params": {"num_sections": 3, "folding_ratio": 0.075, "folding_layer": 4}, "window_size": 9},
        ({"sections": 3, "ratio": 0.075, "layers": 4, "window": 9}, "loss", "run"),
    ),
    (QUALITY, ({"ascending": True}, "column:hardness", "run")),
    (QUALITY | {"score_params": {}}, ({"ascending": True}, "column:score", "run")),
    (QUALITY | {"score_params": {"score_path": "s.npy"}}, ({}, "file:s.npy", "run")),
    (
        QUALITY | {"pattern": "halves", "pattern_params": {"x_pct": 20, "y_pct": 5}},
        ({"front": 0.2, "back": 0.05, "ends": "opposite", "ascending": True}, "column:hardness", "run"),
    ),
    (
        QUALITY | {"pattern": "halves", "pattern_params": {"front_is_high": True, "back_is_high": False}},
        ({"ends": "opposite", "ascending": False}, "column:hardness", "run"),
    ),
    (
        QUALITY | {"pattern": "halves", "pattern_params": {"front_is_high": True}},
        ({"ends": "same", "ascending": False}, "column:hardness", "run"),
    ),
    (QUALITY | {"pattern": "chance", "seed": 42}, ({"seed": 42}, None, "run")),
]


@pytest.mark.parametrize(("params", "expected"), ORDERS, ids=str)
def test_a_reorder_is_read_as_an_order(params, expected):
    load_plugin_files(["orders.py"])
    found = read_reorder("mine", params, "here")
    assert found.problems == []
    given, by, over = expected
    assert (found.by, found.over) == (by, over)
    assert found.params.items() >= given.items()


def test_a_reorder_runs_under_the_short_form_and_as_an_order():
    write(MIX, quality=QUALITY)
    short = checked(train_type="dynamic_reorder", component_name="quality", components_cfg_file="c.yaml")
    whole = checked(order="quality", components_cfg_file="c.yaml")
    assert short.axes == whole.axes
    assert in_words(short) == "order quality by the column hardness over the run"
    assert short.component.name == "peaks"


WRONG = [
    (LOSS | {"consume_once": False}, "params.consume_once: is false: each stretch would begin with the same rows"),
    (LOSS | {"score_source": "cached_selection"}, "params.score_source: found 'cached_selection', which has no"),
    (LOSS | {"score_source": "precomputed"}, "params.score_source: is precomputed with kind: dynamic"),
    (LOSS | {"polarity": "up"}, "params.polarity: found 'up', allowed: higher_later | higher_is_better |"),
    (LOSS | {"pattern": "peeks"}, "params.pattern: no order named 'peeks'"),
    (LOSS | {"patern": "peaks"}, "params.patern: no such key; allowed: apply_at, ascending, consume_once"),
    (LOSS | {"pattern_params": {"x": 1}}, "params.pattern_params.x: 'peaks' has no such key -> remove it"),
    (LOSS | {"kind": "odd"}, "params.kind: found 'odd', allowed: static | dynamic"),
    (
        LOSS | {"reorder_every": 3},
        "params.reorder_every: is 3, and a preset has no every -> write train_type: dynamic; order: {component: peaks, "
        "every: 3, by: loss, over: run, params: {sections: 2, ratio: 0.0, layers: 2, ascending: true}}",
    ),
]


@pytest.mark.parametrize(("params", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_a_reorder_without_a_counterpart_is_refused_where_it_is_used_alone(params, message):
    write(MIX, bad=params)
    checked(order={"component": "by_loss"}, components_cfg_file="c.yaml")
    with pytest.raises(InvalidConfigError) as caught:
        checked(order="bad", components_cfg_file="c.yaml")
    assert message in str(caught.value)
    assert "c.yaml: reorders.bad." in str(caught.value)


def test_rows_that_are_scored_although_the_preset_caps_them_are_said(caplog):
    write(MIX, capped=LOSS | {"score_params": {"batch_size": 8, "num_workers": 2, "max_samples": 20000}})
    checked(order="capped", components_cfg_file="c.yaml")
    assert "max_samples: read as if not there: all rows are scored" in caplog.text
