"""The configuration of a run of several axes: every combination, what is wrong with one, and its record."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from composed import AXES, COMBINATIONS, checked, combination, config, named, sentences, write_workspace
from dataflex.config.check import check
from dataflex.config.load import read_config
from dataflex.config.resolved import note_results, resolved, write_config, written_config
from dataflex.config.spec import RunSpec, places
from dataflex.config.summary import in_words
from dataflex.core import registry
from dataflex.core.errors import CheckpointError, ConfigError, InvalidConfigError
from dataflex.core.kinds import MIXER, ORDER, SELECTOR, WEIGHTER
from dataflex.run.identity import differences, identity_of_run, require_same, settings
from dataflex.utils.secret_values import without_secrets

main = import_module("dataflex.cli.main")  # the package has a function of that name too


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_registered", {})
    write_workspace(tmp_path)
    return tmp_path


def problems(**keys) -> list[str]:
    with pytest.raises(InvalidConfigError) as refused:
        checked(**keys)
    return [str(problem) for problem in refused.value.problems]


@pytest.mark.parametrize("axes", COMBINATIONS, ids=named)
def test_every_combination_is_checked_resolved_and_said_in_one_line(axes, capsys, tmp_path):
    spec = checked(**combination(axes))
    assert spec.component is None
    assert in_words(spec) == "; ".join(sentences(axes))
    assert [part is not None for part in (spec.selector, spec.mixer, spec.order, spec.weighter)] == [
        axis in axes for axis in AXES
    ]
    assert spec.plans == (axes != ("weighter",))
    assert spec.mixes == ("mixer" in axes)
    assert spec.steps().decides == (axes != ("weighter",))
    Path("run.yaml").write_text(yaml.safe_dump(config(**combination(axes))))
    assert main.run(["validate", "run.yaml"]) == 0
    said = capsys.readouterr().out
    assert f"  run:        {'; '.join(sentences(axes))}\n" in said


@pytest.mark.parametrize("axes", COMBINATIONS, ids=named)
def test_the_resolved_configuration_read_again_is_the_same_run(axes, tmp_path):
    spec = checked(**combination(axes))
    write_config(spec, str(tmp_path / "out"), "0" * 16)
    again = check(read_config(tmp_path / "out" / "dataflex_config.yaml"), tmp_path / "out")
    assert again.parts == spec.parts
    note_results(tmp_path / "out", "0" * 16, 3, {})
    said = written_config(tmp_path / "out")["dataflex_run"]
    assert said == {"id": "0" * 16, "does": in_words(spec), "finished": 3, "files": {}}
    same = ("selector", "mixer", "order", "weighter", "components_cfg_file")
    assert replace(again.arguments, **dict.fromkeys(same)) == replace(spec.arguments, **dict.fromkeys(same))
    assert (again.llamafactory, again.epochs) == (spec.llamafactory, spec.epochs)
    assert identity_of_run(again, 1) == identity_of_run(spec, 1)
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_the_example_of_the_docs_is_a_run_and_does_what_the_docs_say():
    page = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
    text = page.partition("## One run, every axis")[2]
    block, said = text.split("```yaml\n")[1].split("```")[0], text.split("\n    filter")[1].partition("\n")[0]
    small = {"dataset": "a,b", "warmup_step": 40, "update_step": 8, "update_times": 25}  # as the datasets here are
    example = yaml.safe_load(block) | small
    example["order"]["component"] = "wave"
    assert in_words(checked(**example)) == f"filter{said.replace('order saw', 'order wave')}"


def test_two_selectors_of_one_preset_keep_their_own_parameters_in_the_resolved_configuration(tmp_path):
    (tmp_path / "c.yaml").write_text("selectors: {hard: {name: loss, params: {focus: high, temperature: 2}}}")
    selectors = [{"component": "hard", "keep": 0.5}, {"component": "hard", "params": {"focus": "low"}}]
    spec = checked(selector=selectors, components_cfg_file="c.yaml", mixer=None)
    write_config(spec, str(tmp_path / "out"), "0" * 16)
    again = check(read_config(tmp_path / "out" / "dataflex_config.yaml"), tmp_path / "out")
    assert again.parts == spec.parts
    assert [part.component.params["focus"] for part in spec.parts] == ["high", "low"]


def test_defaults_of_a_part():
    spec = checked(
        selector={"component": "loss", "keep": 0.5}, order="wave", weighter="loss", train_step=100, update_times=-1
    )
    selector, order, weighter = spec.parts
    assert [part.component.kind for part in spec.parts] == [SELECTOR, ORDER, WEIGHTER]
    assert (selector.every, selector.start, selector.keep) == (1, 0, 0.5)
    assert (order.by, order.over) == ("loss", "run")  # a filter chooses no rows
    assert weighter.start == spec.arguments.warmup_step == 2
    assert spec.filters == (selector,)
    assert spec.selector is None


@pytest.mark.parametrize(
    ("keys", "by", "over"),
    [
        ({"order": "wave"}, "loss", "run"),
        ({"order": "wave", "selector": "loss"}, "selector", "stretch"),
        ({"order": {"component": "wave", "by": "loss"}, "selector": "loss"}, "loss", "stretch"),
        ({"order": "chance"}, None, "run"),
        ({"order": "chance", "selector": "loss"}, None, "stretch"),
        ({"order": "by_length", "selector": "loss"}, "length", "stretch"),
        ({"order": "slow"}, "loss", "run"),
        ({"order": "tidy", "components_cfg_file": "c.yaml"}, "column:hardness", "stretch"),
        ({"order": {"component": "tidy", "over": "run"}, "components_cfg_file": "c.yaml"}, "column:hardness", "run"),
        ({"order": {"component": "wave", "by": "file:scores.jsonl"}}, "file:{here}/scores.jsonl", "run"),
    ],
    ids=str,
)
def test_where_scores_come_from_and_what_is_arranged(tmp_path, keys, by, over):
    (tmp_path / "c.yaml").write_text("orders: {tidy: {name: wave, by: 'column:hardness', over: stretch}}")
    order = checked(**keys).order
    assert (order.by, order.over) == (by and by.format(here=tmp_path), over)


@pytest.mark.parametrize(
    ("keys", "by", "over", "words"),
    [
        ({}, "loss", "run", "order wave by loss over the run"),
        ({"order": {"by": "length", "over": "stretch"}}, "length", "stretch", "order wave by length"),
        ({"component_name": "tidy", "components_cfg_file": "c.yaml"}, "length", "stretch", "order tidy by length"),
    ],
    ids=str,
)
def test_the_short_form_of_an_order(tmp_path, keys, by, over, words):
    (tmp_path / "c.yaml").write_text("orders: {tidy: {name: wave, by: length, over: stretch, params: {window: 3}}}")
    spec = checked(**{"train_type": "dynamic_reorder", "component_name": "wave", "component": {"window": 8}} | keys)
    assert spec.parts == ()
    assert spec.component.kind is ORDER
    (part,) = spec.axes
    assert (part.by, part.over, part.component.params) == (by, over, {"window": 8})
    assert in_words(spec) == words
    assert places(spec) == ("order",)
    write_config(spec, str(tmp_path / "out"), "0" * 16)
    again = check(read_config(tmp_path / "out" / "dataflex_config.yaml"), tmp_path / "out")
    assert again.axes == spec.axes


SHORT = {
    "dynamic_select": ({"component_name": "loss"}, "rows by loss"),
    "dynamic_mix": ({"component_name": "odm"}, "shares by odm"),
    "dynamic_weight": ({"component_name": "loss"}, "weights by loss from step 2"),
    "static": ({}, "rows, order and weights as LLaMA-Factory has them"),
}


@pytest.mark.parametrize("train_type", SHORT)
def test_the_other_short_forms_are_said_as_well(train_type):
    keys, words = SHORT[train_type]
    few = {"update_step": 1, "update_times": 3}
    assert in_words(checked(train_type=train_type, **few, **keys)) == words


def test_a_mixture_that_stays_is_said():
    assert in_words(checked(train_type="dynamic_mix", static_mix=True)) == "shares that stay as they begin"


def test_other_shares_in_the_loss_are_said():
    said = in_words(checked(train_type="dynamic_mix", static_mix=True, objective_proportions=[3, 1]))
    assert said == "shares that stay as they begin, counted in the loss by objective_proportions"


def test_seen_losses_in_words():
    said = [in_words(checked(order={"component": "wave", "by": by})) for by in ("seen", "seen:3")]
    words = ["the losses seen in training", "the losses seen in the last 3 steps"]
    assert said == [f"order wave by {each} over the run" for each in words]


def test_shares_and_ordinals_in_words():
    keeps = [0.25, 0.5, 0.75, 1, 0.3, 0.125]
    said = [in_words(checked(selector={"component": "loss", "keep": keep}, mixer="odm")) for keep in keeps]
    words = ["a quarter", "half", "three quarters", "all", "30 %", "12.5 %"]
    assert said == [f"filter to {word} by loss; shares by odm" for word in words]
    everies = {1: "", 3: " every 3rd update", 11: " every 11th update", 22: " every 22nd update"}
    for every, words in everies.items():
        assert in_words(checked(mixer={"component": "odm", "every": every})) == f"shares by odm{words}"


FILTER = {"component": "loss", "keep": 0.5}
BAD = [
    # the keys of a part
    ({"selector": [FILTER | {"keep": 0}, "less"]}, "selector[0].keep: found 0, allowed: a number above 0, up to 1"),
    (
        {"selector": FILTER | {"keep": 50}},
        "selector.keep: found 50, allowed: a number above 0, up to 1 -> write 0.5",
    ),
    ({"selector": FILTER | {"keep": True}}, "selector.keep: found True, allowed: a number above 0"),
    ({"selector": FILTER | {"keep": "half"}}, "selector.keep: found 'half', allowed: a number"),
    ({"mixer": {"component": "odm", "every": 0}}, "mixer.every: found 0, allowed: a whole number, 1 or more"),
    ({"mixer": {"component": "odm", "every": 1.5}}, "mixer.every: found 1.5, allowed: a whole number, 1 or more"),
    ({"mixer": {"component": "odm", "from": -1}}, "mixer.from: found -1, allowed: a whole number, 0 or more"),
    (
        {"mixer": {"component": "odm", "evry": 2}},
        "mixer.evry: no such key; allowed: component, every, from, params -> d",
    ),
    ({"mixer": {"component": "odm", "keep": 0.5}}, "mixer.keep: no such key; allowed: component, every, from, params"),
    ({"mixer": {"name": "odm"}}, "mixer.name: no such key; allowed: component, every, from, params -> write component"),
    ({"selector": {"component": "loss", "focus": "low"}}, "-> parameters of the selector stand under selector.params"),
    ({"mixer": {"component": ""}}, "mixer.component: found '', allowed: a preset or the name of a component"),
    ({"mixer": {"every": 2}}, "mixer.component: is missing -> name one of: "),
    ({"mixer": 3}, "mixer: found 3, allowed: a name, or a mapping with component, every, from, params"),
    ({"mixer": ["odm"]}, "mixer: found a list of 1, allowed: one mixer -> write one name or mapping"),
    ({"selector": []}, "selector: found an empty list, allowed: one selector or more"),
    ({"selector": {"component": "loss", "params": [1]}}, "selector.params: found [1], allowed: a mapping"),
    ({"weighter": {"component": "loss", "every": 2}}, "weighter.every: a weighter weighs every batch"),
    ({"order": {"component": "wave", "by": "seen:0"}}, "order.by: found 'seen:0', allowed: loss | length | selector |"),
    ({"order": {"component": "wave", "by": "lenght"}}, "order.by: found 'lenght', allowed: loss | length | selector |"),
    (
        {"order": {"component": "wave", "by": "column:"}},
        "order.by: found 'column:', allowed: loss | length | selector |",
    ),
    (
        {"order": {"component": "wave", "over": "rnu"}},
        "order.over: found 'rnu', allowed: run | stretch -> did you mean",
    ),
    # the components
    ({"selector": "lss"}, "selector: no selector named 'lss'"),
    ({"selector": [FILTER, "lss"]}, "selector[1]: no selector named 'lss'"),
    ({"mixer": "less"}, "mixer: no mixer named 'less'"),
    ({"selector": {"component": "loss", "params": {"fokus": 1}}}, "selector.params.fokus: the selector 'loss' has no"),
    ({"selector": [FILTER | {"params": {"focus": "x"}}]}, "selector[0].params.focus: found 'x', allowed: "),
    ({"selector": {"component": "loss", "params": {"focus": "${x}"}}}, "selector.params.focus: found '${x}', and vari"),
    ({"mixer": "doremi"}, "-> write mixer.params: {reference_model: ...}"),
    ({"order": "tidy", "components_cfg_file": "c.yaml"}, "c.yaml: orders.tidy.by: found 'x', allowed: loss | length"),
    ({"mixer": "by", "components_cfg_file": "d.yaml"}, "d.yaml: mixers.by.over: no such key; allowed: name, params"),
    # beside each other
    ({}, "train_type: train_type: dynamic has no axis: none of selector, mixer, order, weighter is given"),
    ({"selector": ["loss", "less"]}, "selector[1]: chooses the rows of each stretch, and so does selector[0]"),
    ({"selector": ["less", FILTER]}, "selector[1]: has keep: 0.5, so it is a filter, and selector[0] has chosen"),
    (
        {"selector": {"component": "random", "keep": 0.5, "params": {"replacement": True}}},
        "selector.params.replacement: the selector 'random' returns rows twice, and with keep it is a filter",
    ),
    ({"mixer": "odm", "dataset": "a"}, "dataset: a mixer needs two sources or more, found one: a"),
    ({"order": {"component": "wave", "by": "selector"}}, "order.by: is selector, and no selector chooses the rows"),
    (
        {"order": {"component": "wave", "by": "selector"}, "selector": FILTER},
        "order.by: is selector, and no selector chooses the rows",
    ),
    ({"order": "wave", "selector": "random"}, "order: is selector, and the selector 'random' gives rows no scores"),
    (
        {"order": {"component": "wave", "over": "run"}, "selector": "loss"},
        "order.over: is run, and a selector chooses the rows of each stretch before the order comes -> set over: str",
    ),
    ({"order": {"component": "chance", "by": "loss"}}, "order.by: is loss, and the order 'chance' looks at no scores"),
    ({"order": {"component": "by_length", "by": "loss"}}, "takes its scores by: length alone -> remove it"),
    (
        {"order": {"component": "slow", "over": "stretch"}},
        "order.over: is stretch, and the order 'slow' works over: run",
    ),
    ({"order": "slow", "selector": "loss"}, "order: the order 'slow' chooses from the rows of the run itself"),
    (
        {"order": {"component": "wave", "by": "column:hardnes"}},
        "order.by: the dataset 'a' has no column 'hardnes'; its",
    ),
    (
        {"order": {"component": "wave", "by": "file:gone.jsonl"}},
        "gone.jsonl does not exist -> name a file with a score",
    ),
    ({"order": {"component": "wave", "by": "file:data"}}, "/data is no file -> name a file with a score"),
    # the schedule
    ({"mixer": {"component": "odm", "from": 302}}, "mixer.from: is 302, and the run ends after 302 steps -> give an"),
    ({"weighter": {"component": "loss", "from": 400}}, "weighter.from: is 400, and the run ends after 302 steps"),
    (
        {"mixer": {"component": "odm", "from": 3, "every": 200}},
        "mixer.from: is 3: with every: 200, none of the updates from there on",
    ),
    (
        {"mixer": "odm", "selector": FILTER, "update_times": 0, "train_step": 9},
        "update_times: is 0, and without an update selector and mixer do nothing -> set update_times: -1 and update",
    ),
    (
        {"order": "wave", "update_step": 0, "update_times": -1, "train_step": 9},
        "update_step: is 0, but update_times: -1",
    ),
    # the rows: 80 in all, 2 of a step
    (
        {"selector": "loss", "update_step": 41},
        "update_step: asks for 82 rows at once (41 steps of 2 rows), the dataset",
    ),
    (
        {"selector": [FILTER | {"keep": 0.25}, "loss"], "update_step": 11},
        "selector[0].keep: is 0.25: the filters keep 20 of the dataset's 80 rows, and an update asks for 22 "
        "(11 steps of 2 rows) -> set keep: 0.275 or more, or set update_step: 10 or less",
    ),
    (
        {"selector": [FILTER, FILTER, "loss"], "update_step": 11},
        "selector[0].keep: is 0.5: the filters keep 20 of the dataset's 80 rows, and an update asks for 22",
    ),
    # engine, model, data: as for one axis
    (
        {"weighter": "loss", "use_eaft_loss": True},
        "use_eaft_loss: is True: the EAFT loss replaces the loss that dynamic",
    ),
    (
        {"mixer": "odm", "mix_strategy": "interleave_over"},
        "mix_strategy: found 'interleave_over', but with train_type: d",
    ),
    (
        {"mixer": "odm", "stage": "ppo"},
        "stage: found 'ppo', which makes its rows as it trains; allowed",
    ),
    (
        {"mixer": "odm", "streaming": True, "selector": "loss"},
        "streaming: a run with selector: asks for rows by number",
    ),
    ({"order": "wave", "streaming": True}, "streaming: a run with order: asks for rows by number"),
    ({"weighter": "loss", "streaming": True}, "streaming: a checkpoint of a run with weighter: knows its dataset by"),
    ({"mixer": "odm", "selector": "less", "eval_dataset": None}, "eval_dataset: is missing; the selector 'less' aims"),
    (
        {"mixer": "dynamic_moe", "selector": "loss", "eval_dataset": None},
        "mixer_eval_dataset: is missing; the mixer 'dyn",
    ),
    ({"mixer": "odm", "init_mixture_proportions": [1]}, "init_mixture_proportions: found 1 numbers for 2 datasets"),
    ({"mixer": "odm", "dataloader_in_order": False}, "dataloader_in_order: is False, but a train_type: dynamic run"),
    ({"order": "wave", "include_tokens_per_second": True}, "include_tokens_per_second: takes a batch before the run"),
    ({"mixer": "odm", "max_steps": 9, "train_step": 8}, "train_step: is 8 and max_steps is 9 -> remove one"),
    (
        {"mixer": "odm", "weighter": "loss", "model_name_or_path": "encoder"},
        "holds an encoder-decoder (t5); the weighter 'loss' needs the loss of each row",
    ),
    # with the keys of the short forms
    (
        {"mixer": "odm", "component_name": "odm"},
        "component_name: is of the short forms of one axis; train_type: dynamic",
    ),
    ({"mixer": "odm", "component": {"a": 1}}, "component: is of the short forms of one axis"),
    ({"mixer": "odm", "static_mix": True}, "static_mix: is true, but train_type is dynamic -> remove it; with train_"),
    (
        {"train_type": "dynamic_select", "component_name": "loss", "selector": "less"},
        "selector: is a key of train_type: dynamic, and train_type is dynamic_select -> write component_name: NAME, or",
    ),
    (
        {"train_type": "dynamic_select", "component_name": "loss", "order": "wave"},
        "order: is a key of train_type: dynamic, and train_type is dynamic_select -> set train_type: dynamic, with a",
    ),
    ({"train_type": "static", "mixer": "odm"}, "mixer: is a key of train_type: dynamic, and train_type is static"),
    (
        {"train_type": "dynamic_reorder", "component_name": "wave", "order": {"component": "wave", "by": "length"}},
        "order.component: with train_type: dynamic_reorder the order is component_name, and here stand by and over",
    ),
    (
        {"train_type": "dynamic_reorder", "component_name": "wave", "order": {"by": "selector"}},
        "order.by: is selector, and no selector chooses the rows of the run -> write by: loss | length | column:NAME | "
        "file:PATH, or set train_type: dynamic and name a selector without keep",
    ),
    (
        {"train_type": "dynamic_reorder", "component_name": None},
        "component_name: is missing; train_type: dynamic_reorder ne",
    ),
    (
        {"train_type": "dynamic_reorder", "component_name": "wave", "streaming": True},
        "streaming: train_type: dynamic_reor",
    ),
]


@pytest.mark.parametrize(("keys", "message"), BAD, ids=[f"{i} {message[:40]}" for i, (_, message) in enumerate(BAD)])
def test_a_bad_combination_is_one_problem_with_its_place_what_was_found_and_the_way_out(tmp_path, keys, message):
    (tmp_path / "c.yaml").write_text("orders: {tidy: {name: wave, by: x}}")
    (tmp_path / "d.yaml").write_text("mixers: {by: {name: odm, over: run}}")
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "config.json").write_text(json.dumps({"is_encoder_decoder": True, "model_type": "t5"}))
    found = problems(**keys)
    assert [problem for problem in found if message in problem], found
    same = {problem.partition(":")[0] for problem in found}
    assert len(same) == 1 or "doremi" in str(keys), found
    assert all(" -> " in problem or "known: " in problem for problem in found), found


def test_all_that_is_wrong_is_said_at_once():
    found = problems(
        selector=[FILTER | {"keep": 2}, {"component": "lss"}, {"component": "loss", "params": {"focus": 1}}],
        mixer={"component": "odm", "every": -1},
        order={"component": "wave", "by": "file:gone", "over": "run"},
        weighter={"component": "loss", "every": 3},
        dataset="a",
    )
    assert sorted(problem.partition(":")[0] for problem in found) == [
        "dataset",
        "mixer.every",
        "order.by",
        "order.over",
        "selector[0].keep",
        "selector[1]",
        "selector[2]",
        "selector[2].params.focus",
        "weighter.every",
    ]


GOOD = [
    {"order": {"component": "wave", "by": "column:hardness"}, "update_step": None, "update_times": 0, "train_step": 9},
    {"order": {"component": "wave", "by": "length"}, "update_step": 0, "update_times": 0, "train_step": 9},
    {"order": "wave", "mixer": "odm", "dataset": "a,b"},
    {"order": {"component": "wave", "by": "seen"}},
    {"order": {"component": "wave", "by": "seen:3"}},
    {"weighter": "loss", "update_step": None, "update_times": None, "train_step": 9, "dataset": "a"},
    {"selector": FILTER | {"keep": 0.25}, "update_step": 10},
    {"mixer": {"component": "odm", "from": 301, "every": 1}, "update_step": 299, "update_times": -1, "train_step": 302},
    {"selector": {"component": "random", "params": {"replacement": True}}, "update_step": 500, "update_times": 1},
    {"mixer": "odm", "init_mixture_proportions": [1, 3], "streaming": True, "update_times": 3},
]


@pytest.mark.parametrize("keys", GOOD, ids=str)
def test_what_can_be_run_is_not_refused(keys):
    assert isinstance(checked(**keys), RunSpec)


LENGTHS = {"component": "wave", "by": "length"}
OVERRIDES = [
    ({"order": "wave"}, ["order.params.window=8"], "order", {"component": "wave", "params": {"window": 8}}),
    ({"order": "wave"}, ["order.by=length", "order.over=run"], "order", LENGTHS | {"over": "run"}),
    ({"order": {"component": "wave", "by": "loss"}}, ["order.by=length"], "order", LENGTHS),
    ({"selector": "loss"}, ["selector.keep=0.3"], "selector", {"component": "loss", "keep": 0.3}),
    ({"selector": "loss"}, ["selector.0.keep=0.3"], "selector", {"component": "loss", "keep": 0.3}),
    (
        {"selector": ["loss", "less"]},
        ["selector.0.keep=0.3", "selector.0.params.focus=low"],
        "selector",
        [{"component": "loss", "keep": 0.3, "params": {"focus": "low"}}, "less"],
    ),
    (
        {"selector": [FILTER, "less"]},
        ["selector.1=loss", "selector.0.keep=0.3"],
        "selector",
        [{"component": "loss", "keep": 0.3}, "loss"],
    ),
    ({"selector": FILTER}, ["selector.1.component=less"], "selector", [FILTER, {"component": "less"}]),
    ({}, ["mixer=odm", "mixer.every=2"], "mixer", {"component": "odm", "every": 2}),
    ({}, ["mixer.component=odm"], "mixer", {"component": "odm"}),
    ({"mixer": "odm"}, ["mixer=random"], "mixer", "random"),
    ({}, ["selector=[{component: loss, keep: 5e-1}, less]"], "selector", [{"component": "loss", "keep": 0.5}, "less"]),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "overrides", "axis", "expected"), OVERRIDES, ids=[str(each[1]) for each in OVERRIDES])
def test_the_command_line_reaches_into_an_axis_however_the_file_writes_it(tmp_path, keys, overrides, axis, expected):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config(**keys)))
    assert read_config(tmp_path / "run.yaml", overrides)[axis] == expected


@pytest.mark.parametrize(
    ("keys", "override", "message"),
    [
        ({"selector": ["loss", "less"]}, "selector.keep=0.3", "selector is a list of 2 -> write selector.0.keep=..."),
        (
            {"selector": ["loss"]},
            "selector.2.keep=0.3",
            "there are 1 under selector, counted from 0 -> write a number up",
        ),
        ({"selector": [3]}, "selector.0.keep=0.3", "it reaches into 3 -> give a name or a mapping there"),
        ({"mixer": "odm"}, "mixer..every=0.3", "is no key"),
    ],
)
def test_an_override_that_has_no_place_is_refused(tmp_path, keys, override, message):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config(**keys)))
    with pytest.raises(ConfigError) as refused:
        read_config(tmp_path / "run.yaml", [override])
    assert message in str(refused.value)


CHANGES = [
    ({"selector": [FILTER | {"keep": 0.25, "every": 2}, "less"]}, "selector[0].keep: 0.5 in the checkpoint, 0.25 now"),
    ({"selector": [AXES["selector"][0], "loss"]}, "selector[1].component: dataflex-selectors:less in the checkpoint, "),
    ({"selector": "less"}, "selector[0].keep: 0.5 in the checkpoint, not set now"),
    ({"mixer": "random"}, "mixer.component: dataflex-mixers:odm in the checkpoint, dataflex-mixers:random now"),
    ({"mixer": {"component": "odm", "params": {"smoothing": 0.5}}}, "mixer.params.smoothing: 0.9 in the checkpoint, 0"),
    ({"order": {"component": "wave", "by": "loss"}}, "order.by: length in the checkpoint, loss now"),
    ({"order": None}, "order.component: wave in the checkpoint, not set now"),
    ({"weighter": {"component": "loss", "from": 100}}, "weighter.from: 200 in the checkpoint, 100 now"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=[message[:30] for _, message in CHANGES])
def test_a_checkpoint_of_another_composition_is_refused_by_the_key_that_differs(tmp_path, change, message):
    before, now = (identity_of_run(checked(**AXES | keys), 1) | {"data": []} for keys in ({}, change))
    require_same(before, before, "here")
    with pytest.raises(CheckpointError) as refused:
        require_same(before, now, "here")
    assert message in str(refused.value)


def test_a_folder_of_another_composition_is_refused_by_the_key_that_differs(tmp_path):
    runs = [checked(**AXES), checked(**AXES | {"selector": [FILTER | {"every": 3}, "less"]})]
    before, now = (settings(without_secrets(resolved(run, tmp_path))) for run in runs)
    assert differences(before, now, "before") == ["selector[0].every: 2 before, 3 now"]


def test_a_short_form_is_known_in_a_checkpoint_as_before():
    spec = checked(train_type="dynamic_mix", component_name="odm", update_times=3)
    assert set(identity_of_run(spec, 1)) == {"train_type", "component", "component_name", "params", "seed", "settings"}


def test_a_file_of_scores_may_lie_in_another_folder_when_the_run_is_resumed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "scores.jsonl").write_text("")
    paths = ["scores.jsonl", "elsewhere/scores.jsonl"]
    specs = [checked(order={"component": "wave", "by": f"file:{path}"}) for path in paths]
    assert identity_of_run(specs[0], 1) == identity_of_run(specs[1], 1)


def test_kinds_of_a_run_are_in_the_order_in_which_they_act():
    spec = checked(**dict(reversed(AXES.items())))
    assert [part.component.kind for part in spec.parts] == [SELECTOR, SELECTOR, MIXER, ORDER, WEIGHTER]
    assert places(spec) == ("selector[0]", "selector[1]", "mixer", "order", "weighter")
