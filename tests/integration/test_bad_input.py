"""Everything a user can get wrong ends with exit code 2 and a sentence, before a model is loaded and without a
traceback."""

from __future__ import annotations

import json

import llamafactory.train.pt.workflow as pt
import llamafactory.train.sft.workflow as sft
import pytest

pytestmark = pytest.mark.llamafactory

STEPS = ["warmup_step=2", "update_step=2", "update_times=1"]

CASES = {
    "no such train type": (
        ["train_type=dynamic_selct"],
        ["train_type: found 'dynamic_selct'", "did you mean 'dynamic_select'"],
    ),
    "misspelt key": (["updat_step=3"], ["updat_step", "did you mean 'update_step'"]),
    "misspelt key of llamafactory": (["learning_rat=3"], ["learning_rat", "did you mean 'learning_rate'"]),
    "unknown component": (["component_name=losss"], ["losss", "loss"]),
    "missing components file": (["components_cfg_file=nowhere.yaml"], ["components_cfg_file", "nowhere.yaml"]),
    "negative proportion": (["init_mixture_proportions=[0.5,0.7,-0.2]"], ["init_mixture_proportions", "-0.2"]),
    "update step of zero": (["update_step=0"], ["update_step", "0"]),
    "more rows than exist": (["update_step=500"], ["2000 rows", "60", "replacement: true"]),
    "no dataset": (["dataset=null"], ["dataset"]),
    "unknown dataset": (["dataset=instruction"], ["instruction", "did you mean 'instructions'"]),
    "missing plugin file": (["plugins=[gone.py]"], ["plugins", "gone.py"]),
    "batch size of zero": (
        ["per_device_train_batch_size=0"],
        ["per_device_train_batch_size: found 0, allowed: a whole number of at least 1"],
    ),
    "misspelt template": (["template=alpca"], ["template: found 'alpca'", "did you mean 'alpaca'"]),
    "quoted number": (["learning_rate='1e-4'"], ["learning_rate: found '1e-4'", "remove the quotes"]),
    "number that is not decimal": (["max_steps=1_0"], ["line 1: found 1_0, allowed: decimal numbers"]),
    "blank in a key": (["update_step =3"], ["'update_step ' is no key", "write update_step="]),
    "model that is none": (["model_name_or_path=/dev/null"], ["model_name_or_path: /dev/null is no folder"]),
    "no such file": (None, ["nothing.yaml", "no such file"]),
}


@pytest.fixture(autouse=True)
def no_model(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(sft, "load_model", refuse)
    monkeypatch.setattr(pt, "load_model", refuse)


@pytest.fixture
def complaint(train, capsys):
    """Runs and returns what stderr said, after checking the exit code and that no traceback was shown."""

    def complaint_(name, *overrides):
        assert train(name, *overrides) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        assert "error: " in said
        return said

    return complaint_


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case, complaint):
    overrides, expected = CASES[case]
    said = complaint("nothing.yaml") if overrides is None else complaint("select_loss", *STEPS, *overrides)
    for words in expected:
        assert words in said


def test_a_static_run_is_checked_too(complaint):
    """What LLaMA-Factory would end with a traceback for."""
    said = complaint("static_sft", "per_device_train_batch_size=0", "val_size=1.0", "seed=a")
    assert "3 problems in the configuration" in said


def test_unknown_parameter(complaint, tmp_path):
    (tmp_path / "c.yaml").write_text("selectors: {loss: {params: {focuss: high}}}")
    said = complaint("select_loss", *STEPS, "components_cfg_file=c.yaml")
    assert "focuss" in said
    assert "did you mean 'focus'" in said


def test_a_bad_value_of_a_parameter_is_told_before_training(train, tmp_path, capsys, monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("selectors: {loss: {params: {focus: hihg}}}")
    assert train("select_loss", *STEPS, "components_cfg_file=c.yaml") == 2
    said = capsys.readouterr().err
    assert "focus" in said
    assert "hihg" in said


def test_malformed_yaml_names_the_line(complaint, tmp_path):
    (tmp_path / "bad.yaml").write_text("train_type: static\nmodel: [1, 2\nother: 3\n")
    assert "bad.yaml, line 3: malformed YAML" in complaint("bad.yaml")


@pytest.mark.parametrize(
    ("proportions", "words"),
    [("[0.5,0.5]", "2"), ("[0,0,0]", "nothing would be drawn"), ("[.nan,1,1]", "nan"), ("[a,b,c]", "a")],
)
def test_impossible_proportions(complaint, proportions, words):
    said = complaint("mix_random", f"init_mixture_proportions={proportions}")
    assert "init_mixture_proportions" in said
    assert words in said


def test_mixing_one_source(complaint):
    assert "dynamic_mix" in complaint("mix_random", "dataset=prose", "init_mixture_proportions=null")


def test_an_empty_dataset(complaint, tmp_path, workspace):
    (tmp_path / "empty.json").write_text("[]")
    (tmp_path / "dataset_info.json").write_text(json.dumps({"empty": {"file_name": "empty.json"}}))
    said = complaint("select_loss", *STEPS, f"dataset_dir={tmp_path}", "dataset=empty", "eval_dataset=null")
    assert "empty" in said


def test_llamafactorys_own_complaint_is_passed_on(complaint):
    said = complaint("select_loss", *STEPS, "finetuning_type=full", "adapter_name_or_path=x")
    assert "Adapter is only valid for the LoRA method" in said


def test_llamafactorys_complaints_of_a_static_run_are_passed_on_too(complaint, tmp_path):
    said = complaint("static_sft", "finetuning_type=full", "adapter_name_or_path=x")
    assert "LLaMA-Factory refuses the configuration: Adapter is only valid for the LoRA method" in said
    rows = [{"instruction": "x", "input": "", "output": "y"}] * 4
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [*rows, rows[0] | {"output": 5}])))
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mixed": {"file_name": "a.jsonl"}}))
    keys = [f"dataset_dir={tmp_path}", "dataset=mixed", "eval_dataset=null", "val_size=0", "max_samples=4"]
    said = complaint("static_sft", *keys)  # validate looks at the rows that are certain to be read
    assert "the dataset 'mixed'" in said
    assert "a.jsonl" in said


def test_an_output_dir_that_holds_another_run(complaint, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "dataflex_config.yaml").write_text("train_type: dynamic_mix\n")
    said = complaint("select_loss", *STEPS)
    assert "train_type: dynamic_mix before, dynamic_select now" in said
    assert "overwrite_output_dir: true" in said
    assert (tmp_path / "run" / "dataflex_config.yaml").read_text() == "train_type: dynamic_mix\n"


def test_an_output_dir_that_holds_a_static_run(complaint, tmp_path):
    checkpoint = tmp_path / "run" / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    assert "holds the checkpoints of another run" in complaint("select_loss", *STEPS)
    said = complaint("select_loss", *STEPS, f"resume_from_checkpoint={checkpoint}")
    assert "is not a checkpoint of a dynamic run" in said


def test_resuming_by_true_without_a_checkpoint(complaint):
    assert "holds no complete checkpoint" in complaint("select_loss", *STEPS, "resume_from_checkpoint=true")


def test_all_problems_are_told_at_once(complaint):
    said = complaint("select_loss", "warmup_step=-1", "component_name=losss", "learning_rat=1")
    assert "3 problems in the configuration" in said
