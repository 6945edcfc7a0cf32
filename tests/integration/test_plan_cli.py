"""``dataflex-cli plan`` on files that people have: the workspace's, the README's, tokenised ones, and wrong ones."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from dataflex.cli.main import run
from dataflex.config.check import check
from dataflex.config.load import read_config
from dataflex.forecast.forecast import forecast
from dataflex.workspace.configs import RUNS
from datasets import Dataset, DatasetDict

README = Path(__file__).parents[2] / "README.md"
BLOCKS = [yaml.safe_load(b) for b in re.findall(r"^```yaml\n(.*?)^```", README.read_text("utf-8"), re.M | re.S)]
TRAINED = [block for block in BLOCKS if "train_type" in block]


def planned(file, *overrides):
    return forecast(check(read_config(str(file), list(overrides)), Path(file).parent))


@pytest.mark.parametrize("name", RUNS)
def test_each_file_of_the_workspace_is_planned(workspace, name, capsys):
    assert run(["plan", str(workspace / f"{name}.yaml")]) == 0
    page = capsys.readouterr().out
    assert re.match(r"deciding (will take about [\d.]+ %|takes nothing)", page.splitlines()[-1])
    assert "60 steps of 8 rows: 480 rows" in page


@pytest.mark.parametrize("block", TRAINED, ids=range(len(TRAINED)))
def test_each_run_of_the_readme_is_planned(workspace, block, tmp_path, capsys):
    base = yaml.safe_load((workspace / "static_pt.yaml").read_text("utf-8"))
    del base["max_steps"]
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({**base, "eval_dataset": "pretrain_eval", **block}), encoding="utf-8")
    assert run(["plan", str(file)]) == 0
    assert "1,100 steps of 8 rows" in capsys.readouterr().out


def test_there_are_runs_in_the_readme():
    assert len(TRAINED) >= 2


def test_the_forecast_of_rows_and_tokens_is_that_of_the_run(workspace, train, tmp_path):
    """Trained through LLaMA-Factory, tokens counted by the trainer."""
    changes = ["include_num_input_tokens_seen=all", "max_samples=60", "cutoff_len=64", "per_device_train_batch_size=4"]
    found = planned(workspace / "select_random.yaml", *changes)
    assert train("select_random", "include_num_input_tokens_seen=all") == 0
    results = json.loads((tmp_path / "run" / "all_results.json").read_text())
    assert found.schedule.total == 60
    assert found.facts.data.count == 60
    with_padding = sum(segment.training.tokens for segment in found.segments)
    assert results["num_input_tokens_seen"] == pytest.approx(with_padding, rel=0.08)


def test_a_tokenised_folder_is_measured_in_place_of_the_files(workspace, tmp_path):
    rows = [{"input_ids": [5] * n, "labels": [-100] * 10 + [5] * (n - 10)} for n in (20, 30, 40, 50)]
    held_out = [{"input_ids": [5] * 25, "labels": [5] * 25}] * 3
    DatasetDict({"train": Dataset.from_list(rows), "validation": Dataset.from_list(held_out)}).save_to_disk(tmp_path)
    changes = [f"tokenized_path={tmp_path}", "update_step=1", "warmup_step=0", "per_device_train_batch_size=2"]
    found = planned(workspace / "select_less.yaml", *changes)
    (train,), (target,) = found.facts.data.sources, found.facts.data.evaluated
    assert (train.count, train.mean, train.labels) == (4, 35, 100 / 140)
    assert (target.count, target.mean, target.labels) == (3, 25, 1)
    assert "4 tokenised rows" in train.how
    gradients = found.passes["gradients of rows"]
    assert (gradients.rows, gradients.tokens) == (5 * 7, 5 * (140 + 75))


def test_json_has_what_the_page_has(workspace, capsys):
    file = str(workspace / "select_less.yaml")
    assert run(["plan", file, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert run(["plan", file]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == found["says"]
    assert (found["steps"], found["updates"], len(found["segments"])) == (60, 5, 6)
    deciding = sum(segment["deciding_flops"] for segment in found["segments"])
    assert deciding == pytest.approx(found["deciding_flops"])
    assert found["share"] == pytest.approx(deciding / (deciding + found["training_flops"]))
    assert found["unknown"] == []
    assert found["advice"]["says"].startswith("candidates: ")


def test_what_is_advised_does_what_it_says_and_can_be_run(workspace, capsys):
    file = str(workspace / "select_less.yaml")
    assert run(["plan", file, "--json"]) == 0
    advised = json.loads(capsys.readouterr().out)["advice"]
    key, value = advised["says"].split(": ")
    assert run(["plan", file, "--json", f"component.{key}={value}"]) == 0
    assert json.loads(capsys.readouterr().out)["share"] == pytest.approx(advised["share"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "no file given"),
        (("FILE", "--row=3"), "no option --row; known: --json, --rows"),
        (("FILE", "--rows", "many"), "--rows: found 'many', allowed: a whole number of 1 or more"),
        (("FILE", "--rows"), "--rows: found ''"),
        (("FILE", "--ranks=0"), "--ranks: found '0'"),
        (("FILE", "--ranks=1.5"), "--ranks: found '1.5'"),
        (("FILE", "--tflops=-1"), "--tflops: found '-1', allowed: a number above 0"),
        (("FILE", "--tflops=nan"), "--tflops: found 'nan'"),
    ],
)
def test_a_wrong_command_line_is_refused_in_words(workspace, capsys, arguments, said):
    given = [str(workspace / "select_less.yaml") if each == "FILE" else each for each in arguments]
    assert run(["plan", *given]) == 2
    done = capsys.readouterr()
    assert said in done.err
    assert done.out == ""


@pytest.mark.parametrize(
    "change", ["component_name=les", "update_step=0", "dataset=nothing", "component.candidates=-3"]
)
def test_what_validate_refuses_plan_refuses_with_its_words(workspace, capsys, change):
    file = str(workspace / "select_less.yaml")
    assert run(["validate", file, change]) == 2
    expected = capsys.readouterr().err
    assert run(["plan", file, change]) == 2
    assert capsys.readouterr().err == expected


def test_a_plugin_without_a_cost_is_said_to_be_unknown_and_one_with_a_cost_is_counted(workspace, tmp_path, capsys):
    text = """
from dataflex.core.cost import Cost, Work
from dataflex.core.registry import register_selector
from dataflex.train.selector.base_selector import Selector

class Takes(Selector):
    def select(self, model, step_id, num_samples, **kwargs):
        return list(range(num_samples))

@register_selector("says_nothing_{name}")
class Silent(Takes):
    pass

@register_selector("says_{name}")
class Says(Takes):
    @classmethod
    def cost(cls, params, ahead):
        return Cost(Work(forward=ahead.rows), notes=("it also asks a server",))
"""
    plugin = tmp_path / f"takes_{id(tmp_path)}.py"
    plugin.write_text(text.replace("{name}", str(id(tmp_path))), encoding="utf-8")
    file = [str(workspace / "select_random.yaml"), f"plugins=[{plugin}]"]
    assert run(["plan", *file, f"component_name=says_nothing_{id(tmp_path)}"]) == 0
    name = f"selector 'says_nothing_{id(tmp_path)}'"
    assert capsys.readouterr().out.splitlines()[-1] == f"what {name} costs is not known: the class has no cost()"
    assert run(["plan", *file, f"component_name=says_{id(tmp_path)}"]) == 0
    page = capsys.readouterr().out
    assert "deciding will take about" in page.splitlines()[-1]
    assert "it also asks a server" in page


def test_no_weights_are_read_and_nothing_is_imported_of_llamafactory(workspace, monkeypatch):
    def refused(*args, **kwargs):
        raise AssertionError("weights were read")

    monkeypatch.setattr("safetensors.torch.load_file", refused)
    monkeypatch.setattr("torch.load", refused)
    monkeypatch.setattr("transformers.modeling_utils.PreTrainedModel.from_pretrained", refused)
    before = "llamafactory.train" in sys.modules
    assert planned(workspace / "select_less.yaml").deciding_flops > 0
    assert ("llamafactory.train" in sys.modules) == before
