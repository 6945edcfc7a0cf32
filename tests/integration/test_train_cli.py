"""Every kind of run through LLaMA-Factory, as ``dataflex-cli train`` starts it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from dataflex.core.files import LAST_SCORES, METRICS, ROWS, RUN, SEGMENTS
from dataflex.run.record import read_trace
from safetensors.torch import load_file
from stopped import as_if_stopped

SHORT = ["warmup_step=2", "update_step=2", "update_times=2"]

AS_STATIC = '''
import torch
from dataflex.core.registry import register_selector
from dataflex.train.selector.base_selector import Selector


@register_selector("as_static_run")
class AsStaticRun(Selector):
    """The rows that the static run would have drawn."""

    def rows(self, start, count):
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randperm(len(self.dataset), generator=generator)[start : start + count].tolist()

    def warmup(self, num_samples, replacement=False):
        return self.rows(0, num_samples)

    def select(self, model, step_id, num_samples, **kwargs):
        return self.rows(step_id * num_samples // 2, num_samples)
'''


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    path = tmp_path_factory.mktemp("a plugin") / "as static.py"
    path.write_text(AS_STATIC)
    return path


def losses(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def test_select_leaves_what_the_docs_promise(train, tmp_path, capsys):
    assert train("select_loss", *SHORT, "plot_loss=true") == 0
    out = tmp_path / "run"
    said = [line.partition(" >> ")[2] for line in capsys.readouterr().err.splitlines() if "[INFO|dataflex]" in line]
    start, first, second, end = said  # one at the start, one per update, one at the end
    assert start == f"rows by loss; 6 steps of 4 rows, 2 updates, the first at step 2; 60 rows; output_dir: {out}"
    assert first.startswith("update 0 of 2 at step 2: loss chose 8 of 60 rows in ")
    assert first.endswith(" s; next at step 4")
    assert second.startswith("update 1 of 2 at step 4: loss chose 8 of 60 rows in ")
    assert second.endswith(" s; the last one")
    assert end.endswith(f"; the record is in {out} -> dataflex-cli report {out}")
    assert "2 updates" in end
    lines = read_trace(out)
    assert [line["step"] for line in lines] == [2, 4]
    for line in lines:
        assert {"kind", "component", "num_samples", "seconds", "decision_hash", "scores"} <= line.keys()
        assert (line["kind"], line["component"], line["num_samples"]) == ("select", "loss", 8)
    assert len(losses(out)) == 6
    facts = json.loads((out / RUN).read_text())
    assert (facts["status"], facts["step"], facts["updates"]) == ("finished", 6, 2)
    assert [source["name"] for source in facts["sources"]] == ["instructions"]
    assert all((out / name).stat().st_size for name in (METRICS, SEGMENTS, ROWS, LAST_SCORES))
    for step in (0, 2, 4):
        saved = np.load(out / "dataflex_selections" / f"step_{step:08d}.npz")
        assert len(set(saved["indices"].tolist())) == 8
        assert ("scores" in saved) == (step > 0)
    assert (out / "training_loss.png").exists()
    assert (out / "dataflex_scores.png").exists()
    assert not (out / "dataflex_shares.png").exists(), "it mixes nothing"
    assert (out / "adapter_model.safetensors").exists()

    config = yaml.safe_load((out / "dataflex_config.yaml").read_text())
    assert config["dataflex_versions"]["llamafactory"]
    assert train(str(out / "dataflex_config.yaml"), out="again") == 0
    assert losses(tmp_path / "again") == losses(out)


def test_the_same_command_continues_a_run_that_was_stopped(train, tmp_path):
    assert train("select_loss", *SHORT, "save_steps=3") == 0
    out = tmp_path / "run"
    whole = load_file(out / "adapter_model.safetensors")
    shutil.rmtree(out / "checkpoint-6")
    (out / "adapter_model.safetensors").unlink()
    as_if_stopped(out)
    assert train("select_loss", *SHORT, "save_steps=3") == 0
    again = load_file(out / "adapter_model.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert [line["step"] for line in read_trace(out)] == [2, 4]


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_selector_that_returns_the_static_order_is_the_static_run(train, tmp_path, accumulation, plugin):
    size = [f"gradient_accumulation_steps={accumulation}", f"per_device_train_batch_size={4 // accumulation}"]
    chosen = [f"plugins=['{plugin}']", "component_name=as_static_run"]
    assert train("select_random", *SHORT, *size, *chosen, "learning_rate=1.0e-3", out="dynamic") == 0
    assert train("static_sft", "max_steps=6", *size, "learning_rate=1.0e-3", out="static") == 0
    assert len(losses(tmp_path / "static")) == 6
    assert losses(tmp_path / "dynamic") == losses(tmp_path / "static")


def test_mixing_trains_the_planned_proportions(train, tmp_path):
    assert train("mix_random", *SHORT, "init_mixture_proportions=[0.6,0.3,0.1]", "val_size=7") == 0
    lines = read_trace(tmp_path / "run")
    assert [(line["kind"], line["step"]) for line in lines] == [("mix", 2), ("mix", 4)]
    assert all(sum(line["proportions"].values()) == pytest.approx(1) for line in lines)
    assert list(lines[0]["proportions"]) == ["code", "docstrings", "prose"]
    assert lines[0]["proportions"] != lines[1]["proportions"]
    state = torch.load(tmp_path / "run" / "checkpoint-6" / "dataflex_state.pt", weights_only=True)
    sizes = [rows for _, rows, _ in state["identity"]["data"]]
    shares = [[0.6, 0.3, 0.1], *(list(line["proportions"].values()) for line in lines)]
    for step, share in zip((0, 2, 4), shares, strict=True):
        rows = np.load(tmp_path / "run" / "dataflex_selections" / f"step_{step:08d}.npz")["indices"]
        counts = np.bincount(np.searchsorted(np.cumsum(sizes), rows, side="right"), minlength=3)
        assert (abs(counts - np.array(share) * len(rows)) < 1 + 1e-9).all()


def test_a_static_mixture(train, tmp_path):
    assert train("mix_static", "train_step=3") == 0
    assert len(losses(tmp_path / "run")) == 3
    assert read_trace(tmp_path / "run") == []


def test_weighing_and_its_uniform_twin(train, tmp_path, workspace):
    components = tmp_path / "components.yaml"
    components.write_text("weighters: {flat: {name: loss, params: {strategy: uniform}}}")
    twin = [f"components_cfg_file={components}", "component_name=flat", "warmup_step=0"]
    pt = ["stage=pt", "dataset=prose", "eval_dataset=null", "finetuning_type=full", "train_step=4"]
    for accumulation in (1, 4):
        size = [f"gradient_accumulation_steps={accumulation}", f"per_device_train_batch_size={4 // accumulation}"]
        common = [*pt[:-1], *size, "learning_rate=1.0e-3"]
        assert train("weight_loss", *common, *twin, "train_step=4", out=f"w{accumulation}") == 0
        assert train("weight_loss", *common, "train_type=static", "max_steps=4", out=f"s{accumulation}") == 0
        assert losses(tmp_path / f"w{accumulation}") == losses(tmp_path / f"s{accumulation}")
    assert train("weight_loss", *pt, "warmup_step=0", "learning_rate=1.0e-3", out="weighted") == 0
    assert losses(tmp_path / "weighted") != losses(tmp_path / "s1")


def test_json_files_and_minus_one_updates(train, tmp_path, workspace):
    config = yaml.safe_load((workspace / "select_random.yaml").read_text())
    config |= {"warmup_step": 0, "update_step": 2, "update_times": -1, "train_step": 5}
    (tmp_path / "run file.json").write_text(json.dumps(config))
    assert train(str(tmp_path / "run file.json")) == 0
    assert [line["step"] for line in read_trace(tmp_path / "run")] == [0, 2, 4]


@pytest.mark.slow
def test_two_ranks_decide_as_one_does(workspace, tmp_path, train):
    """Runs torchrun as a user would; the folder of the workspace has a blank in its name."""
    command = [sys.executable, "-m", "dataflex", "train", "--quiet", str(workspace / "select_loss.yaml"), *SHORT]
    quick = ["do_eval=false", "plot_loss=false", "logging_steps=1", "cutoff_len=64", "max_samples=50", "seed=3"]
    quick.append("average_tokens_across_devices=true")  # transformers 4.51 has another default
    two = ["per_device_train_batch_size=2", f"output_dir={tmp_path / 'two ranks'}"]
    environ = os.environ | {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *quick, *two], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout + done.stderr
    assert said.count("[INFO|dataflex]") == 4, "--quiet leaves our lines, and each once"
    assert "[INFO|2" not in said
    assert ".py:" not in "".join(line for line in said.splitlines(True) if line.startswith("[INFO|")), "of transformers"
    assert "training example:" not in said
    assert "{'loss': " in said
    assert train("select_loss", *SHORT, *quick, "per_device_train_batch_size=4", out="one") == 0
    one, both = read_trace(tmp_path / "one"), read_trace(tmp_path / "two ranks")
    assert [line["decision_hash"] for line in one] == [line["decision_hash"] for line in both]
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two ranks"), rel=1e-4)


def of_docs(title):
    """Returns the Python block of docs/plugins.md under a heading."""
    page = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")
    return page.split(f"## {title}\n")[1].split("```python\n")[1].split("```")[0]


def test_a_selector_of_the_docs_asks_for_a_column_of_the_raw_data_and_shares_losses(train, tmp_path):
    """Rows that LLaMA-Factory drops shift no value, two datasets follow each other, one has no such column."""
    data, plugin = tmp_path / "data", tmp_path / "by_level.py"
    plugin.write_text(of_docs("Scores of the run"))
    rows = [
        {"instruction": f"say {i}", "input": "", "output": None if i % 5 == 1 else f"well {i}", "level": (i * 7) % 40}
        for i in range(40)
    ]
    data.mkdir()
    (data / "levels.json").write_text(json.dumps(rows))
    (data / "plain.json").write_text(
        json.dumps([{"instruction": f"say {i}", "input": "", "output": "no"} for i in range(9)])
    )
    (data / "dataset_info.json").write_text(
        json.dumps({name: {"file_name": f"{name}.json"} for name in ("levels", "plain")})
    )
    keys = [f"dataset_dir={data}", "dataset=plain,levels", "eval_dataset=null", "val_size=0", f"plugins=['{plugin}']"]
    assert train("select_loss", *SHORT, *keys, "component_name=hard_by_level", "warmup_step=1", "update_times=1") == 0
    left = [row["level"] for row in rows if row["output"] is not None]
    levels = np.array([0] * 9 + left)
    saved = np.load(tmp_path / "run" / "dataflex_selections" / "step_00000001.npz")
    candidates = sorted(range(len(levels)), key=lambda row: (-levels[row], row))[:32]
    assert len(saved["indices"]) == 8
    assert set(saved["indices"].tolist()) <= set(candidates)
    assert np.isfinite(saved["scores"]).all()
    assert (np.diff(saved["scores"]) <= 0).all()
