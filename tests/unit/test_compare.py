"""What `dataflex-cli compare` prints are the figures that the runs left, and what makes them unlike is said."""

from __future__ import annotations

import json

import pytest
import yaml
from dataflex.cli.main import run

CONFIG = {"train_type": "dynamic_select", "component_name": "random", "dataset": "a", "eval_dataset": "b", "seed": 1}


@pytest.fixture
def left(tmp_path, monkeypatch):
    """``left(name, loss, ...)`` writes what a run leaves; ``loss`` is that of the evaluation after its end."""
    monkeypatch.chdir(tmp_path)

    def left_(name, loss=None, *, steps=60, history=(), config=None):
        folder = tmp_path / name
        folder.mkdir()
        state = {"global_step": steps, "log_history": list(history)}
        (folder / "trainer_state.json").write_text(json.dumps(state))
        if loss is not None:
            (folder / "eval_results.json").write_text(json.dumps({"eval_loss": loss, "eval_runtime": 0.4, "epoch": 1}))
        if config is not None:
            (folder / "dataflex_config.yaml").write_text(yaml.safe_dump(CONFIG | config))

    return left_


def printed(capsys, *argv):
    code = run(["compare", *argv])
    out, err = capsys.readouterr()
    return code, out.splitlines(), err


def test_a_run_of_several_axes_is_named_by_its_components(left, capsys):
    left("one", 4.5, config={})
    composed = {"selector": [{"component": "loss", "keep": 0.5}, {"component": "less"}], "order": {"component": "saw"}}
    left("two", 3.25, config={"train_type": "dynamic", "component_name": None, **composed})
    _, lines, _ = printed(capsys, "one", "two")
    assert "dynamic loss + less + saw" in lines[2]


def test_each_run_stands_beside_the_first(left, capsys):
    left("random", 4.5, config={})
    left("less", 3.25, config={"component_name": "less"})
    left("static", 4.75)
    code, lines, _ = printed(capsys, "random", "less", "static")
    assert code == 0
    unknown = "not known: whether static had the same data and settings; no dataflex_config.yaml there"
    assert lines.pop() == unknown
    assert [line.split() for line in lines] == [
        ["run", "strategy", "steps", "eval_loss"],
        ["random", "select", "random", "60", "4.500"],
        ["less", "select", "less", "60", "3.250", "(-1.250)"],
        ["static", "static", "60", "4.750", "(+0.250)"],
    ]


def test_the_last_evaluation_counts_and_several_sets_stand_side_by_side(left, capsys):
    early = {"eval_a_loss": 9.0, "eval_b_loss": 9.0, "step": 5}
    left("one", history=[early, {"loss": 1.0, "step": 9}, {"eval_a_loss": 2.0, "eval_b_loss": 3.0, "step": 10}])
    left("two", history=[{"eval_b_loss": 2.5, "eval_a_accuracy": 1.0, "step": 10}])
    _, lines, _ = printed(capsys, "one", "two")
    assert [line.split()[3:] for line in lines[:3]] == [["eval_b_loss"], ["3.000"], ["2.500", "(-0.500)"]]


def test_a_run_that_only_evaluated_has_results_too(left, tmp_path, capsys):
    for name, loss in {"one": 2.0, "two": 1.0}.items():
        left(name, loss)
        (tmp_path / name / "trainer_state.json").unlink()
    _, lines, _ = printed(capsys, "one", "two")
    assert [line.split()[2:] for line in lines[1:3]] == [["0", "2.000"], ["0", "1.000", "(-1.000)"]]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"steps": 40}, "unlike: steps are 60, 40"),
        ({"config": {"eval_dataset": "c"}}, "unlike: eval_dataset is b | c"),
        ({"config": {"seed": 2}}, "unlike: seed is 1 | 2"),
        ({"config": {"learning_rate": 1e-4}}, "unlike: learning_rate is not set | 0.0001"),
        ({"config": {"seed": "1.0"}}, None),
        ({"config": {"component_name": "less", "update_step": 9}}, None),
    ],
)
def test_more_than_the_strategy_is_not_compared_in_silence(left, capsys, other, said):
    left("one", 1.0, config={})
    left("two", 1.0, **({"config": {}} | other))
    _, lines, _ = printed(capsys, "one", "two")
    assert lines[3:] == ([] if said is None else [said])


def test_a_loss_that_is_no_number_has_no_difference_and_a_truth_value_is_no_loss(left, capsys):
    left("one", 1.0, config={})
    left("two", float("nan"), config={}, history=[{"eval_loss": True, "eval_b_loss": True}])
    code, lines, _ = printed(capsys, "one", "two")
    assert code == 0
    assert [line.split()[-1] for line in lines] == ["eval_loss", "1.000", "nan"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((), "found nothing; expected the folders of two runs or more -> dataflex-cli compare DIR DIR ..."),
        (("one",), "found one; expected"),
        (("one", "nowhere"), "nowhere: no such folder -> name the output_dir of a run"),
        (("one", "empty"), "empty: holds no trainer_state.json, which a run writes at its end -> train it to the end"),
        (("one", "blind"), "blind: the run evaluated nothing -> give it an eval_dataset, and do_eval: true"),
        (("one", "cut"), "cut/trainer_state.json: cannot be read: "),
        (("one", "list"), "list/trainer_state.json: holds no results of a run -> "),
        (("one", "other"), "the runs have no loss in common (one: eval_loss; other: eval_x_loss) -> evaluate them on"),
    ],
)
def test_what_cannot_be_compared_is_said(left, tmp_path, capsys, argv, said):
    left("one", 1.0)
    left("blind")
    left("other", history=[{"eval_x_loss": 1.0}])
    for name, content in {"empty": None, "cut": '{"global', "list": "[]"}.items():
        (tmp_path / name).mkdir()
        if content is not None:
            (tmp_path / name / "trainer_state.json").write_text(content)
    code, lines, err = printed(capsys, *argv)
    assert (code, lines) == (2, [])
    assert err.startswith(f"error: {said}")
