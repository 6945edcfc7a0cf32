"""A comparison from its file: arms, controls, what is refused, runs that go on, and what is said in the end."""

from __future__ import annotations

import csv
import json
import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from dataflex.cli import compare_file
from dataflex.cli.main import run
from dataflex.config.resolved import VERSIONS
from dataflex.core.errors import ConfigError, InvalidConfigError
from dataflex.core.files import CONFIG
from dataflex.experiments.comparing import Ran
from dataflex.experiments.equal_arms import with_equal_compute
from dataflex.experiments.equal_tokens import Measured
from dataflex.experiments.experiment_arms import arms_of
from dataflex.experiments.experiment_file import read_experiment
from dataflex.experiments.run_figures import RunFigures, lower_is_better, metrics_found
from dataflex.experiments.verdicts import comparison
from dataflex.run.completeness import mark_complete

BASE = {
    "train_type": "dynamic_select",
    "component_name": "less",
    "warmup_step": 10,
    "update_step": 10,
    "update_times": 5,
    "output_dir": "out",
    "do_train": True,
    "do_eval": True,
    "learning_rate": 1e-4,
    "model_name_or_path": "some/model",
    "dataset": "rows",
    "eval_dataset": "held_out",
    "dataset_dir": "data",
    "template": "default",
}
ROW = {"instruction": "How?", "input": "", "output": "So."}
SOURCES = {"train_type": "dynamic_mix", "component_name": "odm", "dataset": "rows,others"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with data and a base run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    names = ("rows", "others", "held_out")
    Path("data/dataset_info.json").write_text(json.dumps({name: {"file_name": f"{name}.json"} for name in names}))
    for name in names:
        Path(f"data/{name}.json").write_text(json.dumps([ROW] * 999))
    write("base.yaml", BASE)
    return tmp_path


def write(name, content):
    Path(name).write_text(yaml.safe_dump(content, sort_keys=False))


def asked(arms=None, base=None, **keys):
    """Returns the experiment of a file."""
    if base is not None:
        write("base.yaml", {key: value for key, value in (BASE | base).items() if value is not None})
    given = {"base": "base.yaml", "arms": arms or {"mine": {}}, "seeds": [1, 2, 3], "output_dir": "compared"}
    write("compare.yaml", {key: value for key, value in (given | keys).items() if value is not None})
    return read_experiment("compare.yaml")


def arms(*args, **keys):
    """Returns name -> arm."""
    return {arm.name: arm for arm in arms_of(asked(*args, **keys))}


def component(arm):
    return [(part.component.kind.name, part.component.name) for part in arm.spec.axes]


def refused(*args, **keys):
    with pytest.raises(InvalidConfigError) as found:
        arms_of(asked(*args, **keys))
    return [str(problem) for problem in found.value.problems]


# --- the file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"seds": [1]}, "seds: no such key of a comparison; allowed: arms, base, controls, "),
        ({"seeds": [1, 1]}, "seeds: found [1, 1], allowed: a list of different whole numbers from 0"),
        ({"seeds": 3}, "seeds: found 3, allowed: a list"),
        ({"seeds": [True]}, "seeds: found [True]"),
        ({"equal": "token"}, "equal: found 'token', allowed: steps | tokens | compute -> did you mean 'tokens'?"),
        ({"level": 5}, "level: found 5, allowed: a number above 0, below 0.5"),
        ({"controls": "no way"}, "controls: found 'no way', allowed: true | false"),
        ({"output_dir": None}, "output_dir: is missing -> name a folder for the runs and the table"),
        ({"arms": {"a/b": {}}}, "arms.a/b: is no name of an arm"),
        ({"arms": {"a": 3}}, "arms.a: found 3, allowed: keys of a run"),
        ({"arms": {"a": {"seed": 3}}}, "arms.a.seed: is given by the comparison: the seeds stand under seeds:"),
        ({"arms": [1]}, "arms: found [1], allowed: a mapping from names to keys of a run"),
        ({"metrics": {"eval_loss": "down"}}, "metrics.eval_loss: found 'down'; it says which way is better"),
        ({"metrics": [3]}, "metrics: found [3], allowed: names of numbers in all_results.json"),
        ({"jobs": 0}, "jobs: found 0, allowed: a whole number, 1 or more"),
    ],
)
def test_what_is_wrong_with_the_file_is_said_by_key(folder, keys, said):
    with pytest.raises(InvalidConfigError) as found:
        asked(**keys)
    assert str(found.value.problems[0]).startswith(said)


def test_all_that_is_wrong_with_the_file_is_said_at_once_and_overrides_are_its_keys(folder):
    with pytest.raises(InvalidConfigError) as found:
        asked(seeds=[], equal="", level="a")
    assert [problem.where for problem in found.value.problems] == ["seeds", "equal", "level"]
    asked()
    made = read_experiment("compare.yaml", ["seeds=[4]", "arms.mine.update_times=3", "equal=tokens", "level=1e-2"])
    assert (made.seeds, made.arms, made.equal, made.level) == ((4,), {"mine": {"update_times": 3}}, "tokens", 0.01)


def test_the_base_lies_beside_the_file_and_paths_of_its_run_beside_the_base(folder, monkeypatch):
    write("mine.yaml", {})
    made = arms(base={"components_cfg_file": "mine.yaml"})
    monkeypatch.chdir("data")
    assert made["mine"].config["components_cfg_file"] == str(folder / "mine.yaml")
    assert read_experiment("../compare.yaml").base == folder / "data" / ".." / "base.yaml"


# --- arms and controls ----------------------------------------------------------------------------------------------


def test_a_selector_has_random_rows_and_a_static_run_of_as_many_steps_beside_it(folder):
    made = arms({"mine": {}, "other": {"component_name": "loss"}})
    assert [*made] == ["random", "static", "mine", "other"]
    assert component(made["random"]) == [("selector", "random")]
    assert made["static"].spec.arguments.train_type == "static"
    assert {arm.steps for arm in made.values()} == {60}
    assert {name: (arm.control, arm.against) for name, arm in made.items()} == {
        "random": (True, None),
        "static": (True, "random"),
        "mine": (False, "random"),
        "other": (False, "random"),
    }


@pytest.mark.parametrize(
    ("base", "controls", "reference"),
    [
        (SOURCES, {"random": [("mixer", "random")], "static": []}, "static"),
        ({"train_type": "dynamic_reorder", "component_name": "sorting", "order": {"by": "length", "over": "run"}},
         {"random": [("order", "shuffle")], "static": []}, "random"),
        ({"train_type": "dynamic_weight", "component_name": "loss", "update_step": None, "update_times": None,
          "train_step": 60}, {"static": []}, "static"),
        ({"train_type": "dynamic", "component_name": None, "selector": "less", "order": {"component": "saw",
          "by": "loss"}},
         {"random": [("selector", "random"), ("order", "saw")], "static": []}, "random"),
        ({"train_type": "dynamic", "component_name": None, "selector": [{"component": "loss", "keep": 0.5}, "less"],
          "weighter": "loss"}, {"random": [("selector", "random"), ("weighter", "loss")], "static": []}, "random"),
        ({"train_type": "dynamic", "component_name": None, "mixer": "odm", "weighter": "loss",
          "dataset": "rows,others"},
         {"random": [("mixer", "random"), ("weighter", "loss")], "static": [("mixer", "static"), ("weighter", "loss")]},
         "static"),
    ],
    ids=["mix", "reorder", "weight", "dynamic", "filters", "dynamic mix"],
)  # fmt: skip
def test_each_kind_has_the_controls_that_look_at_nothing_and_keeps_its_other_axes(folder, base, controls, reference):
    made = arms(base=base)
    assert {name: component(arm) for name, arm in made.items() if arm.control} == controls
    assert made["mine"].against == reference
    assert made[reference].against is None
    assert {arm.steps for arm in made.values()} == {60}


def test_a_static_mixture_keeps_the_shares_and_makes_no_update(folder):
    static = arms(base=SOURCES | {"init_mixture_proportions": [0.7, 0.3]})["static"]
    assert static.spec.arguments.static_mix
    assert static.spec.arguments.init_mixture_proportions == (0.7, 0.3)


def test_a_control_that_the_file_has_is_not_doubled(folder):
    made = arms({"mine": {}, "by_chance": {"component_name": "random"}, "plain": {"train_type": "static"}})
    assert {name: arm.control for name, arm in made.items()} == {"by_chance": True, "plain": True, "mine": False}
    assert made["mine"].against == "by_chance"
    assert "component_name" not in made["plain"].config


def test_without_controls_the_first_arm_is_the_reference_unless_there_is_one_by_chance(folder):
    made = arms({"one": {}, "two": {"component_name": "loss"}}, controls=False)
    assert {name: arm.against for name, arm in made.items()} == {"one": None, "two": "one"}
    made = arms({"one": {}, "two": {"component_name": "random"}}, controls=False)
    assert {name: arm.against for name, arm in made.items()} == {"two": None, "one": "two"}


def test_arms_that_differ_by_chance_alone_are_arms(folder):
    made = arms(
        {"one": {"component_name": "random"}, "two": {"component_name": "random", "component": {"replacement": True}}}
    )
    assert {name: arm.against for name, arm in made.items() if not arm.control} == {"one": "static", "two": "static"}


def test_arms_of_two_kinds_have_controls_of_both(folder):
    mixing = {"train_type": "dynamic_mix", "component_name": "odm"}
    made = arms({"rows": {}, "shares": mixing}, base={"dataset": "rows,others"})
    assert {name: arm.against for name, arm in made.items() if not arm.control} == {
        "rows": "random",
        "shares": "static-mix",
    }
    assert component(made["random-mix"]) == [("mixer", "random")]


def test_an_arm_reaches_into_mappings_and_lists_and_takes_keys_out(folder):
    base = {"train_type": "dynamic", "component_name": None, "selector": [{"component": "loss", "keep": 0.5}, "less"]}
    made = arms(
        {"mine": {"selector.0.keep": 0.25, "selector.1.params.mode": "sample", "learning_rate": None}}, base=base
    )["mine"]
    assert made.spec.filters[0].keep == 0.25
    assert made.spec.selector.component.params["mode"] == "sample"
    assert "learning_rate" not in made.config


def test_another_component_leaves_the_parameters_of_the_base_behind(folder):
    made = arms({"mine": {}, "other": {"component_name": "loss"}}, base={"component": {"mode": "sample"}})
    assert made["mine"].spec.component.params["mode"] == "sample"
    assert "mode" not in made["other"].spec.component.params
    assert "mode" not in made["random"].spec.component.params


def test_every_problem_of_every_arm_is_said_with_its_name(folder):
    found = refused({"one": {"component_nam": "x"}, "two": {"component_name": "lss"}, "three": {"update_step": -1}})
    assert [text.partition(" ")[0] for text in found] == ["arms.one:", "arms.two:", "arms.three:"]
    assert "did you mean 'component_name'?" in found[0]
    assert "did you mean 'less' or 'loss'?" in found[1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"arms": {"mine": {"update_times": 7}}}, "arms.mine: has 80 steps and the base 60; equal: steps holds them "
         "equal -> set train_step: 60 in it, or equal: tokens | compute"),
        ({"arms": {"random": {}}}, "arms.random: is the name of a control, and this arm is not the control 'random' of "
         "random"),
        ({"base": {"do_eval": None}}, "do_eval: nothing is evaluated (mine, random, static) -> set do_eval: true"),
        ({"base": {"eval_dataset": None, "component_name": "loss"}}, "eval_dataset: gives no evaluation rows"),
        ({"base": {"update_step": None}}, "base: update_step: is 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_before_the_first_run(folder, given, said):
    assert refused(**given)[0].startswith(said)


def test_a_metric_of_training_needs_no_evaluation(folder):
    assert arms(base={"do_eval": None}, metrics=["train_loss"])


@pytest.mark.parametrize(
    ("name", "lower"),
    [("eval_loss", True), ("eval_math_loss", True), ("eval_accuracy", False), ("predict_rouge-l", False),
     ("train_steps_per_second", False), ("train_runtime", True), ("predict_bleu-4", False)],
)  # fmt: skip
def test_which_way_a_metric_is_better_is_told_by_its_end(name, lower):
    assert lower_is_better(name, None) is lower
    assert lower_is_better(name, not lower) is not lower


def test_each_evaluation_set_is_a_metric_and_not_their_mean_beside_them():
    def found(*names):
        return metrics_found({}, {"a": RunFigures(dict.fromkeys(names, 1.0))})

    assert found("eval_loss", "train_loss", "eval_runtime") == {"eval_loss": True}
    assert found("eval_loss", "eval_b_loss", "eval_a_loss") == {"eval_a_loss": True, "eval_b_loss": True}


def test_a_metric_whose_name_tells_nothing_is_refused_with_the_way_out():
    with pytest.raises(
        ConfigError, match=r"metrics.eval_x: its name does not tell .* -> write metrics: {eval_x: lower}"
    ):
        lower_is_better("eval_x", None)


# --- equal tokens and compute ---------------------------------------------------------------------------------------


def test_steps_follow_the_tokens_until_they_are_near(folder):
    measured = Measured()
    assert measured.note(60, 5000, 6000) == 72
    assert measured.steps(6000) == 72
    assert measured.note(72, 5950, 6000) == measured.settled == 72
    stuck = Measured()
    assert stuck.note(10, 1000, 1060) == 11
    assert stuck.note(11, 1125, 1060) == 10
    assert stuck.settled == 10  # 10 and 11 steps lie around what is wanted, and 10 nearer


def forecasting(monkeypatch, deciding, unknown=()):
    """Has the forecast say 10 for each step, and ``deciding`` for the updates of less; returns the calls."""
    calls = []

    def forecast(spec, *, ranks):
        calls.append((spec.steps(spec.llamafactory.get("max_steps", 0)).total, ranks))
        takes = deciding if spec.component and spec.component.name == "less" else 0
        return SimpleNamespace(training_flops=10 * calls[-1][0], deciding_flops=takes, unknown=unknown)

    monkeypatch.setattr("dataflex.forecast.forecast.forecast", forecast)
    return calls


@pytest.mark.parametrize(("deciding", "steps"), [(100, 50), (95, 50), (401, 19), (0, 60)])
def test_updates_are_paid_for_with_steps_and_their_number_stays(folder, monkeypatch, deciding, steps):
    calls = forecasting(monkeypatch, deciding)
    experiment = asked(equal="compute", jobs=2)
    made = {arm.name: arm for arm in with_equal_compute(experiment, arms_of(experiment))}
    assert {name: arm.steps for name, arm in made.items()} == {"random": 60, "static": 60, "mine": steps}
    assert made["mine"].spec.arguments.update_times == 5
    assert len(calls) < 20
    assert {ranks for _, ranks in calls} == {2}


def test_what_was_done_to_an_arm_to_make_it_equal_is_said(folder, monkeypatch):
    forecasting(monkeypatch, 100)
    experiment = asked(equal="compute")
    mine = with_equal_compute(experiment, arms_of(experiment))[-1]
    assert (mine.config["warmup_step"], mine.config["update_step"]) == (8, 8)
    assert mine.length == "60 -> 50 steps: warmup_step 8, update_step 8, update_times 5, train_step 50"


@pytest.mark.parametrize(
    ("deciding", "unknown", "said"),
    [
        (999, (), "mine: its updates alone take more compute than the whole of the run that it is compared with -> "),
        (
            0,
            ("the selector 'mine'",),
            "the selector 'mine': does not say what it costs, so compute cannot be held equal",
        ),
    ],
)
def test_compute_that_cannot_be_equal_is_refused(folder, monkeypatch, deciding, unknown, said):
    forecasting(monkeypatch, deciding, unknown)
    experiment = asked(equal="compute")
    with pytest.raises(ConfigError) as found:
        with_equal_compute(experiment, arms_of(experiment))
    assert str(found.value).startswith(said)


# --- runs -----------------------------------------------------------------------------------------------------------


@dataclass
class Trainer:
    """Leaves what a run leaves, with the loss of `losses`; ends as `codes` says of a name, once."""

    losses: dict
    codes: dict = field(default_factory=dict)
    tokens: dict = field(default_factory=dict)
    ran: list = field(default_factory=list)

    def __call__(self, run, overrides, environ):
        self.ran.append((run.arm.name, run.seed, *overrides))
        config = yaml.safe_load(run.file.read_text())
        assert (config["seed"], config["data_seed"], config["output_dir"]) == (run.seed, run.seed, str(run.folder))
        run.folder.mkdir(exist_ok=True)
        code, left = self.codes.pop((run.arm.name, run.seed), (0, None))
        dynamic = config["train_type"] != "static"
        if dynamic:
            of_run = {"id": "0" * 16, "finished": 60} if code == 0 else {"id": "0" * 16}
            (run.folder / CONFIG).write_text(
                yaml.safe_dump({"train_type": "x", "dataflex_run": of_run, VERSIONS: {"a": "1"}})
            )
        if left:
            (run.folder / left).mkdir()
            (run.folder / left / "trainer_state.json").write_text('{"global_step": 30}')
            (run.folder / left / "optimizer.pt").write_text("")
            mark_complete(run.folder / left, "0" * 16, 30)
        if code:
            return code
        steps = run.arm.steps
        state = {
            "global_step": steps,
            "max_steps": steps,
            "num_input_tokens_seen": int(self.tokens.get(run.arm.name, 100) * steps),
        }
        (run.folder / "trainer_state.json").write_text(json.dumps(state))
        results = {"train_runtime": 2.0, "eval_loss": self.losses[run.arm.name](run.seed), "epoch": 1.0}
        (run.folder / "all_results.json").write_text(json.dumps(results))
        return 0


class KilledError(Exception):
    """As if the process had been killed."""


def noise(arm, seed):
    return 0.01 * random.Random(f"{arm}/{seed}").random()


LOSSES = {
    "random": lambda seed: 3 + seed + noise("random", seed),
    "static": lambda seed: 3 + seed + noise("static", seed),
    "mine": lambda seed: 2 + seed + noise("mine", seed),
}


@pytest.fixture
def compare(folder, monkeypatch, capsys):
    """`compare(trainer, **keys)` -> (exit code, stdout, stderr) of the command, with its runs pretended."""
    for name in ("require_llamafactory", "require_working_packages"):
        monkeypatch.setattr(compare_file, name, lambda *_: None)

    def compare_(trainer, *argv, **keys):
        if not Path("compare.yaml").exists() or keys:
            asked(**keys)
        monkeypatch.setattr(compare_file, "_trainer", lambda experiment: trainer)
        code = run(["compare", "compare.yaml", *argv])
        out, err = capsys.readouterr()
        return code, out, err

    return compare_


def result():
    return json.loads(Path("compared/comparison.json").read_text())


def test_every_arm_is_trained_with_every_seed_and_the_verdict_is_said(compare):
    trainer = Trainer(LOSSES)
    code, out, err = compare(trainer)
    assert code == 0, err
    assert trainer.ran == [(arm, seed) for seed in (1, 2, 3) for arm in ("random", "static", "mine")]
    found = result()
    assert {key: found[key] for key in ("level", "equal", "base", "seeds")} == {
        "level": 0.05, "equal": "steps", "base": "base.yaml", "seeds": [1, 2, 3],
    }  # fmt: skip
    mine = found["metrics"]["eval_loss"]["arms"]["mine"]
    assert (mine["verdict"], mine["against"], mine["wins"], mine["seeds"]) == ("better", "random", 3, 3)
    assert mine["low"] < mine["difference"] < mine["high"] < 0
    assert mine["says"].startswith("eval_loss: mine is better than random: 4.00")
    assert "(95 % interval -1" in mine["says"]
    assert "better in 3 of 3 seeds" in mine["says"]
    assert mine["says"] in out
    static = found["metrics"]["eval_loss"]["arms"]["static"]
    assert (static["verdict"], static["says"], static["against"]) == (None, "", "random")
    assert len(set(found["arms"][0].pop("compute"))) == 1
    assert found["arms"][0] == {
        "name": "random", "control": True, "against": None, "failed": [], "length": "",
        "folders": [str(Path("compared/random").absolute() / f"seed-{seed}") for seed in (1, 2, 3)],
        "steps": [60] * 3, "tokens": [6000] * 3, "seconds": [2.0] * 3,
    }  # fmt: skip
    lines = list(csv.DictReader(Path("compared/comparison.csv").read_text().splitlines()))
    assert [(line["arm"], line["seed"]) for line in lines[2:4]] == [("random", "3"), ("static", "1")]
    assert [float(line["eval_loss"]) for line in lines[6:]] == mine["values"]
    assert "| mine | 4.0" in Path("compared/comparison.md").read_text()


def test_an_arm_by_luck_is_not_told_apart_and_the_seeds_that_would_tell_are_named(compare):
    losses = LOSSES | {"mine": lambda seed: LOSSES["random"](seed) + [0.01, 0.03, -0.01][seed - 1]}
    compare(Trainer(losses))
    mine = result()["metrics"]["eval_loss"]["arms"]["mine"]
    assert mine["verdict"] == "undecided"
    assert mine["says"].startswith(
        "eval_loss: mine cannot be told apart from random with 3 seeds: the difference is +0.01 ("
    )
    assert mine["says"].endswith(f"about {mine['needed']} would be needed for a difference of 0.01.")
    assert mine["needed"] == 34


def test_finished_runs_are_kept_and_a_stopped_one_goes_on_from_its_checkpoint(compare):
    first = Trainer(LOSSES, {("mine", 1): (130, "checkpoint-30")})
    code, out, err = compare(first)
    assert (code, out) == (130, "")
    assert "the same command goes on" in err
    assert first.ran[-1] == ("mine", 1)
    second = Trainer(LOSSES)
    code, _, err = compare(second)
    assert code == 0, err
    assert second.ran[0] == ("mine", 1, "resume_from_checkpoint=true")
    assert len(second.ran) == 7
    assert "run 3 of 9: mine, seed 1 (60 steps), from checkpoint-30; it writes to" in err
    third = Trainer(LOSSES)
    assert compare(third)[0] == 0
    assert third.ran == []


def test_a_static_run_goes_on_from_the_checkpoint_by_its_path_and_without_one_begins_anew(compare, folder):
    compare(Trainer(LOSSES, {("static", 1): (143, "checkpoint-30")}))
    second = Trainer(LOSSES, {("mine", 1): (143, None)})
    assert compare(second)[0] == 143
    path = json.dumps(str(folder / "compared" / "static" / "seed-1" / "checkpoint-30"))
    assert second.ran == [("static", 1, f"resume_from_checkpoint={path}"), ("mine", 1)]
    third = Trainer(LOSSES)
    compare(third)
    assert third.ran[0] == ("mine", 1, "overwrite_output_dir=true")


def test_a_run_that_was_killed_before_its_evaluation_is_trained_again(compare):
    compare(Trainer(LOSSES))
    file = Path("compared/mine/seed-2/all_results.json")
    file.write_text(
        json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != "eval_loss"})
    )
    second = Trainer(LOSSES)
    compare(second)
    assert second.ran == [("mine", 2, "overwrite_output_dir=true")]


def test_a_failed_run_keeps_nobody_from_running_and_is_named(compare):
    trainer = Trainer(LOSSES, {("mine", 2): (1, None)})
    code, out, err = compare(trainer)
    assert code == 1
    assert len(trainer.ran) == 9
    assert "mine, seed 2 failed with exit code 1; the others go on" in err
    found = result()
    assert found["says"][0] == "mine, seed 2: the run failed and is left out."
    assert found["arms"][2]["failed"] == [2]
    assert found["metrics"]["eval_loss"]["arms"]["mine"]["values"][1] is None
    assert found["metrics"]["eval_loss"]["arms"]["mine"]["seeds"] == 2
    assert "1 failed" in out
    second = Trainer(LOSSES)
    assert compare(second)[0] == 0
    assert [ran[:2] for ran in second.ran] == [("mine", 2)]


def test_where_every_run_fails_there_is_no_table(compare):
    code, _, err = compare(Trainer(LOSSES, {(arm, seed): (1, None) for arm in LOSSES for seed in (1, 2, 3)}))
    assert code == 1
    assert "no run came to its end (random, seed 1, " in err
    assert not Path("compared/comparison.json").exists()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"learning_rate": 2e-4}, "learning_rate: 0.0001 before, 0.0002 now"),
        ({"eval_dataset": "others"}, "eval_dataset: 'held_out' before, 'others' now"),
        ({"component": {"mode": "sample"}}, "component: not set before, {'mode': 'sample'} now"),
    ],
)
def test_a_folder_of_another_configuration_is_refused_by_name_before_any_run(compare, change, line):
    compare(Trainer(LOSSES), seeds=[1])
    write("base.yaml", BASE | change)
    trainer = Trainer(LOSSES)
    code, _, err = compare(trainer)
    assert code == 2
    assert trainer.ran == []
    assert "holds a run of another configuration:" in err
    assert f"  - {line}" in err


def test_parameters_in_another_file_are_part_of_the_configuration_and_reports_are_not(compare):
    write("mine.yaml", {"selectors": {"less": {"name": "less", "params": {"decay": 0.9}}}})
    compare(Trainer(LOSSES), base={"components_cfg_file": "mine.yaml", "logging_steps": 5})
    write("base.yaml", BASE | {"components_cfg_file": "mine.yaml", "logging_steps": 9, "save_steps": 7})
    assert compare(Trainer(LOSSES))[0] == 0
    write("mine.yaml", {"selectors": {"less": {"name": "less", "params": {"decay": 0.5}}}})
    code, _, err = compare(Trainer(LOSSES))
    assert code == 2
    assert '"decay": 0.9' in err
    assert '"decay": 0.5' in err


def test_a_strangers_folder_is_never_written_to(compare):
    Path("compared/mine/seed-2").mkdir(parents=True)
    Path("compared/mine/seed-2/notes.txt").write_text("mine")
    trainer = Trainer(LOSSES)
    code, _, err = compare(trainer)
    assert (code, trainer.ran) == (2, [])
    assert "seed-2 holds something, and seed-2.yaml beside it" in err


def test_a_dry_run_lists_the_runs_and_writes_nothing(compare):
    code, out, _ = compare(None, "--dry-run")
    assert code == 0
    assert out.splitlines()[0] == ("9 runs: 3 arms with 3 seeds each, equal steps; compared: mine with random")
    assert [line.split()[:4] for line in out.splitlines()[2:4]] == [
        ["random,", "seed", "1", "60"],
        ["static,", "seed", "1", "60"],
    ]
    assert not Path("compared").exists()


def test_tokens_are_measured_by_the_first_seed_and_the_others_follow(compare):
    trainer = Trainer(LOSSES, tokens={"mine": 80})
    code, out, err = compare(trainer, equal="tokens")
    assert code == 0, err
    assert trainer.ran[:4] == [("random", 1), ("static", 1), ("mine", 1), ("mine", 1)]
    found = {arm["name"]: arm for arm in result()["arms"]}
    assert found["mine"]["steps"] == [75, 75, 75]
    assert found["mine"]["tokens"] == found["random"]["tokens"] == [6000] * 3
    assert (
        "mine: 60 -> 75 steps: warmup_step 12, update_step 12, update_times 5, train_step 75, so that tokens are equal."
        in out
    )
    assert Path("compared/mine/measured-60-steps").is_dir()
    again = Trainer(LOSSES, tokens={"mine": 80})
    assert compare(again)[0] == 0
    assert again.ran == []
    assert {arm["name"]: arm for arm in result()["arms"]} == found


@pytest.mark.parametrize("call", [2, 3, 4, 5])
def test_measuring_goes_on_where_it_was_stopped(compare, call):
    def killed(run, overrides, environ):
        if len(trainer.ran) == call:
            run.folder.mkdir()
            raise KilledError
        return trainer(run, overrides, environ)

    trainer = Trainer(LOSSES, tokens={"mine": 80})
    with pytest.raises(KilledError):
        compare(killed, equal="tokens")
    again = Trainer(LOSSES, tokens={"mine": 80})
    assert compare(again)[0] == 0
    assert {tuple(arm["steps"]) for arm in result()["arms"] if arm["name"] == "mine"} == {(75, 75, 75)}
    assert len(trainer.ran) + len(again.ran) == 10


def test_a_metric_that_no_run_has_is_said_after_the_first(compare):
    trainer = Trainer(LOSSES)
    code, _, err = compare(trainer, metrics=["eval_accuracy"])
    assert code == 2
    assert len(trainer.ran) == 1
    assert "metrics: eval_accuracy: no run has it in all_results.json; they have epoch, eval_loss, train_runtime" in err


def test_a_loss_that_is_no_number_is_never_better(compare):
    losses = LOSSES | {"mine": lambda seed: math.nan if seed == 2 else LOSSES["mine"](seed)}
    assert compare(Trainer(losses))[0] == 0
    mine = result()["metrics"]["eval_loss"]["arms"]["mine"]
    assert (mine["verdict"], mine["values"][1]) == ("undecided", None)
    assert mine["says"] == "eval_loss: mine has no number with seed 2, so it is not called better than random."


# --- verdicts -------------------------------------------------------------------------------------------------------


def said(experiment, made, draws):
    """Returns the verdicts on draws (arms, seeds) of an evaluation loss."""
    figures = {
        (arm.name, seed): RunFigures({"eval_loss": float(draws[i, j])})
        for i, arm in enumerate(made)
        for j, seed in enumerate(experiment.seeds)
    }
    found = comparison(experiment, Ran(list(made), figures))
    return [arm["verdict"] for arm in found["metrics"]["eval_loss"]["arms"].values() if arm["verdict"]]


def test_arms_that_do_nothing_are_not_called_better_more_often_than_the_level_says(folder):
    experiment = asked({"a": {}, "b": {"component_name": "loss"}, "c": {"component_name": "near"}})
    made = arms_of(experiment)
    rng, count = np.random.default_rng(0), 400
    found = [said(experiment, made, 3 + 0.02 * rng.normal(size=(5, 3))) for _ in range(count)]
    wrong = np.mean([{"better", "worse"} & set(each) != set() for each in found])
    assert wrong <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / count)


@pytest.mark.parametrize(
    ("mine", "words"),
    [
        ([1, 2, 3], "both have the same figures in each."),
        ([0, 1, 2], "it differs by -1 in each, and without a spread nobody can tell luck from effect."),
        ([1.001, 1.9991, 3.0001], "more than 1000 would be needed for a difference as small as "),
    ],
)
def test_what_cannot_be_told_is_said_as_it_is(folder, mine, words):
    experiment = asked()
    made = arms_of(experiment)
    draws = np.array([[1, 2, 3], [1, 2, 3], mine], dtype=float)
    figures = {(a.name, s): RunFigures({"eval_loss": draws[i, s - 1]}) for i, a in enumerate(made) for s in (1, 2, 3)}
    found = comparison(experiment, Ran(list(made), figures))["metrics"]["eval_loss"]["arms"]["mine"]
    assert found["verdict"] == "undecided"
    assert words in found["says"]
    alone = comparison(asked(seeds=[1]), Ran(list(made), {k: v for k, v in figures.items() if k[1] == 1}))
    assert (
        "1 seed is there for both mine and random; give 2 or more"
        in alone["metrics"]["eval_loss"]["arms"]["mine"]["says"]
    )


def test_what_else_an_arm_changes_is_said(folder):
    experiment = asked({"mine": {"learning_rate": 1e-3}})
    made = arms_of(experiment)
    figures = {(a.name, s): RunFigures({"eval_loss": float(s)}) for a in made for s in (1, 2, 3)}
    assert comparison(experiment, Ran(list(made), figures))["says"][-1] == (
        "mine differs from random in learning_rate too: it is not the strategy alone that is compared."
    )


def test_steps_that_were_not_equal_after_all_are_said(folder):
    experiment = asked()
    made = arms_of(experiment)
    figures = {
        (a.name, s): RunFigures({"eval_loss": 1.0}, steps=60 + (a.name == "mine")) for a in made for s in (1, 2, 3)
    }
    assert comparison(experiment, Ran(list(made), figures))["says"][-1] == (
        "mine did 61 steps and random 60: it is not the strategy alone that is compared."
    )


def test_other_ranks_are_another_configuration(compare):
    compare(Trainer(LOSSES), jobs=2)
    code, _, err = compare(Trainer(LOSSES), "jobs=4")
    assert code == 2
    assert "  - jobs: 2 before, 4 now" in err


def test_a_secret_of_the_base_is_in_no_file_and_reaches_the_run(compare, folder):
    given = []

    def train(run, overrides, environ):
        given.append(environ)
        return trainer(run, overrides, environ)

    trainer = Trainer(LOSSES)
    assert compare(train, base={"hub_token": "hf_s3ntinel0Value"})[0] == 0
    assert set(given[0].values()) == {"hf_s3ntinel0Value"}
    assert compare(train)[0] == 0
    assert len(trainer.ran) == 9
    inside = [path for path in Path("compared").rglob("*") if path.is_file()]
    assert inside
    assert not [path for path in inside if "s3ntinel" in path.read_text()]
