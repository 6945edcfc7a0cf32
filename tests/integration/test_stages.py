"""The stages rm, dpo and kto through LLaMA-Factory: every cell of the table in docs/stages.md."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataflex.cli.main import run
from dataflex.discovery.catalog import components
from safetensors.torch import load_file

pytestmark = [
    pytest.mark.llamafactory,
    # LLaMA-Factory sets it on a trainer of TRL 0.24
    pytest.mark.filterwarnings("ignore:The `padding_value` property is deprecated"),
]

STAGES = ("rm", "dpo", "kto")
ROWS_ARE = {"rm": "pairs of answers", "dpo": "pairs of answers", "kto": "answers with a tag"}
WORDS = ("sort", "add", "two", "words", "numbers", "list", "first", "last", "seven", "blue", "green", "river")
ROWS = {"a": 24, "b": 16, "eval": 6}


def said(rng: random.Random, least: int, most: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(least, most)))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two sources and an evaluation set, each as pairs and as tagged answers."""
    folder, info = tmp_path_factory.mktemp("stages") / "data", {}
    folder.mkdir()
    for number, (name, count) in enumerate(ROWS.items()):
        rng = random.Random(number)
        prompts = [said(rng, 2, 8) for _ in range(count)]
        pairs = [{"instruction": p, "chosen": said(rng, 1, 9), "rejected": said(rng, 1, 9)} for p in prompts]
        tagged = [{"instruction": p, "output": said(rng, 1, 9), "tag": n % 3 != 0} for n, p in enumerate(prompts)]
        for n, row in enumerate([*pairs, *tagged]):
            row["level"] = n % 5
        for kind, rows in (("pairs", pairs), ("tagged", tagged)):
            (folder / f"{kind}_{name}.json").write_text(json.dumps(rows), encoding="utf-8")
        info[f"pairs_{name}"] = {
            "file_name": f"pairs_{name}.json",
            "ranking": True,
            "columns": {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"},
        }
        info[f"tagged_{name}"] = {
            "file_name": f"tagged_{name}.json",
            "columns": {"prompt": "instruction", "response": "output", "kto_tag": "tag"},
        }
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return folder


@pytest.fixture
def stage_run(workspace, data, tmp_path, monkeypatch):
    """``stage_run(stage, keys, out=...)`` trains with these keys over those of a short run; returns the exit code."""
    monkeypatch.chdir(tmp_path)

    def go(stage: str, keys: dict[str, Any], out: str = "run", command: str = "train") -> int:
        kind = "tagged" if stage == "kto" else "pairs"
        config = {
            "stage": stage,
            "model_name_or_path": str(workspace / "model"),
            "do_train": True,
            "finetuning_type": "lora",
            "lora_rank": 4,
            "dataset_dir": str(data),
            "dataset": f"{kind}_a",
            "template": "default",
            "cutoff_len": 64,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "output_dir": str(tmp_path / out),
            "overwrite_cache": True,
            "logging_steps": 1,
            "save_steps": 100,
            "save_only_model": False,
            "report_to": "none",
            "disable_tqdm": True,
            "seed": 3,
        }
        config |= {k: f"{kind}_{v}" if k == "eval_dataset" else v for k, v in keys.items()}
        if keys.get("dataset") == "both":
            config["dataset"] = f"{kind}_a,{kind}_b"
        file = tmp_path / f"{out}.json"
        numbers = data / "numbers.npy"
        np.save(numbers, np.linspace(0.5, 1.5, ROWS["a"]))
        text = json.dumps(config).replace("NUMBERS", str(numbers)).replace("MODEL", str(workspace / "model"))
        file.write_text(text, encoding="utf-8")
        return run([command, str(file)])

    return go


SELECT = {"train_type": "dynamic_select", "warmup_step": 1, "update_step": 1, "update_times": 2}
MIX = {
    "train_type": "dynamic_mix",
    "dataset": "both",
    "init_mixture_proportions": [0.5, 0.5],
    "warmup_step": 1,
    "update_step": 1,
    "update_times": 2,
}
ORDER = {"train_type": "dynamic_reorder", "train_step": 3}
UPDATES = {"train_step": None, "warmup_step": 1, "update_step": 1, "update_times": 2}
WEIGHT = {"train_type": "dynamic_weight", "train_step": 3, "warmup_step": 1}
TARGET = {"eval_dataset": "eval"}

WORKS: dict[str, dict[str, Any]] = {
    "static": {"train_type": "static", "max_steps": 2},
    "select random": {**SELECT, "component_name": "random"},
    "select loss": {**SELECT, "component_name": "loss"},
    "select loss seen": {**SELECT, "component_name": "loss", "component": {"scores": "seen"}},
    "select rho_loss": {**SELECT, "component_name": "rho_loss", "component": {"file": "NUMBERS"}},
    "select infobatch": {**SELECT, "component_name": "infobatch"},
    "select perplexity": {**SELECT, "component_name": "perplexity"},
    "select scores": {**SELECT, "component_name": "scores", "component": {"file": "NUMBERS"}},
    "select custom": {**SELECT, "component_name": "custom"},
    "select delta_loss": {**SELECT, "component_name": "delta_loss"},
    "select near": {**SELECT, **TARGET, "component_name": "near"},
    "select tsds": {**SELECT, **TARGET, "component_name": "tsds"},
    "select dsir": {**SELECT, **TARGET, "component_name": "dsir", "component": {"features": "tokens"}},
    "select deita": {**SELECT, "component_name": "deita", "component": {"score": "loss"}},
    "select semdedup": {**SELECT, "component_name": "semdedup"},
    "mix random": {**MIX, "component_name": "random"},
    "mix static": {**MIX, "component_name": "static"},
    "mix temperature": {**MIX, "component_name": "temperature"},
    "mix schedule": {
        **MIX,
        "component_name": "schedule",
        "component": {"points": [{"at": 0, "proportions": [0.5, 0.5]}, {"at": 1, "proportions": [0.2, 0.8]}]},
    },
    "mix loss": {**MIX, "component_name": "loss"},
    "mix odm": {**MIX, "component_name": "odm"},
    "mix ado": {**MIX, "component_name": "ado"},
    "order length": {**ORDER, "component_name": "length"},
    "order sorting by length": {**ORDER, "component_name": "sorting", "order": {"by": "length"}},
    "order sorting by loss": {**ORDER, **UPDATES, "component_name": "sorting", "order": {"by": "loss"}},
    **{
        f"order {name}": {**ORDER, "component_name": name, "order": {"by": "length"}}
        for name in ("folding", "zigzag", "segment", "stair", "saw", "pacing")
    },
    "order sorting by a column": {**ORDER, "component_name": "sorting", "order": {"by": "column:level"}},
    "order shuffle": {**ORDER, "component_name": "shuffle"},
    "weight loss": {**WEIGHT, "component_name": "loss"},
    "weight column": {**WEIGHT, "component_name": "column", "component": {"file": "NUMBERS"}},
    "weight dataset": {**WEIGHT, "dataset": "both", "component_name": "dataset", "component": {"default": 2.0}},
    "weight trim": {**WEIGHT, "component_name": "trim"},
    "weight focal": {**WEIGHT, "component_name": "focal"},
    "weight custom": {**WEIGHT, "component_name": "custom"},
}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "select less": ({**SELECT, **TARGET, "component_name": "less"}, "gradients"),
    "select icons": ({**SELECT, **TARGET, "component_name": "icons"}, "gradients"),
    "select greats": ({**SELECT, **TARGET, "component_name": "greats"}, "gradients"),
    "select cluster_less": ({**SELECT, **TARGET, "component_name": "cluster_less"}, "gradients"),
    "select coincide": ({**SELECT, "component_name": "coincide"}, "hidden states"),
    "select zeroth": ({**SELECT, **TARGET, "component_name": "zeroth"}, "losses of tokens"),
    "select nice": ({**SELECT, **TARGET, "component_name": "nice"}, "generated answers"),
    "select rho_loss by a model": (
        {**SELECT, "component_name": "rho_loss", "component": {"reference_model": "somewhere"}},
        "losses under another model",
    ),
    "select ifd": ({**SELECT, "component_name": "ifd"}, "losses of tokens"),
    "select perplexity by a model": (
        {**SELECT, "component_name": "perplexity", "component": {"reference_model": "somewhere"}},
        "losses under another model",
    ),
    "select near by the model": (
        {**SELECT, **TARGET, "component_name": "near", "component": {"embedding": "model"}},
        "hidden states",
    ),
    "select deita by the model": (
        {**SELECT, "component_name": "deita", "component": {"embedding": "model"}},
        "hidden states",
    ),
    "select semdedup by the model": (
        {**SELECT, "component_name": "semdedup", "component": {"embedding": "model"}},
        "hidden states",
    ),
    "mix doge": ({**MIX, "component_name": "doge"}, "gradients"),
    "mix pike": ({**MIX, "component_name": "pike"}, "gradients"),
    "mix odm by gradients": (
        {**MIX, "component_name": "odm", "component": {"reward": "gradient_norm"}},
        "gradients",
    ),
    "mix odm by entropy": (
        {**MIX, "component_name": "odm", "component": {"reward": "entropy"}},
        "losses of tokens",
    ),
    "mix doremi": (
        {**MIX, "component_name": "doremi", "component": {"reference_model": "MODEL"}},
        "losses under another model",
    ),
    "mix dynamic_moe": ({**MIX, "component_name": "dynamic_moe", "val_size": 4}, "gates"),
    "weight balancer": ({**WEIGHT, "dataset": "both", "component_name": "balancer"}, "hidden states"),
    "weight joint_update_aware": ({**WEIGHT, **TARGET, "component_name": "joint_update_aware"}, "hidden states"),
    "weight adapt": ({**WEIGHT, **TARGET, "component_name": "adapt"}, "hidden states"),
    "weight rho_tokens": (
        {**WEIGHT, "component_name": "rho_tokens", "component": {"reference_model": "somewhere"}},
        "losses under another model",
    ),
    "weight token_column": ({**WEIGHT, "component_name": "token_column"}, "losses of tokens"),
    "weight spans": (
        {**WEIGHT, "component_name": "spans", "component": {"between": [{"start": "a", "end": "b", "weight": 0.5}]}},
        "losses of tokens",
    ),
    "weight loss over a step": (
        {**WEIGHT, "component_name": "loss", "component": {"scope": "step"}},
        "losses of a step",
    ),
    "weight trim over a step": (
        {**WEIGHT, "component_name": "trim", "component": {"scope": "step"}},
        "losses of a step",
    ),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", REFUSED)
def test_a_cell_that_cannot_be_meant_is_refused_by_name_before_anything_is_loaded(
    stage_run, tmp_path, capsys, stage, name
):
    keys, asked = REFUSED[name]
    for command in ("validate", "train"):
        assert stage_run(stage, keys, command=command) == 2
        out = capsys.readouterr()
        text = out.err + out.out
        component = keys["component_name"]
        assert f"'{component}' asks for {asked}, and the rows of stage {stage} are {ROWS_ARE[stage]}: " in text
        assert "-> take a component that scores rows by their loss, or by none" in text
    assert not (tmp_path / "run").exists()


def test_every_component_is_in_the_table():
    named = {(keys.get("train_type"), keys.get("component_name")) for keys in WORKS.values()}
    named |= {(keys["train_type"], keys["component_name"]) for keys, _ in REFUSED.values()}
    shipped = {(info.kind.train_type, info.name) for info in components() if info.package.startswith("dataflex-")}
    assert shipped - named == {("dynamic_select", "reward_spread")}  # of prompts that are answered several times


SETTINGS = {
    "bco": ("dpo", {**SELECT, "component_name": "loss", "pref_bco_weight": 0.5}, "pref_bco_weight: compares a pair"),
    "bco, weighed": ("dpo", {**WEIGHT, "component_name": "loss", "pref_bco_weight": 0.5}, "pref_bco_weight: compares"),
    "bco, measured": ("dpo", {**MIX, "component_name": "odm", "pref_bco_weight": 0.5}, "pref_bco_weight: the mixer"),
    "ftx, weighed": ("kto", {**WEIGHT, "component_name": "loss", "pref_ftx": 0.5}, "pref_ftx: adds a term"),
    "ftx, measured": ("kto", {**MIX, "component_name": "odm", "pref_ftx": 0.5}, "pref_ftx: the mixer 'odm'"),
    "by tokens": ("rm", {**WEIGHT, "component_name": "loss", "weight_objective": "token"}, "weight_objective: found"),
    "ppo": ("ppo", {**SELECT, "component_name": "random", "reward_model": "r"}, "makes its rows as it trains"),
    "resumed": (
        "rm",
        {**SELECT, "component_name": "random", "finetuning_type": "full", "resume_from_checkpoint": "c"},
        "LLaMA-Factory does not resume stage: rm with finetuning_type: full",
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_under_which_rows_have_no_loss_of_their_own_is_refused(stage_run, capsys, name):
    stage, keys, words = SETTINGS[name]
    assert stage_run(stage, keys) == 2
    assert words in capsys.readouterr().err


LOSSES = {
    "orpo": {"pref_loss": "orpo"},
    "simpo": {"pref_loss": "simpo"},
    "with sft": {"pref_ftx": 0.3},
    "full": {"finetuning_type": "full"},
    "bco, not looked at": {"component_name": "random", "pref_bco_weight": 0.5},
}


@pytest.mark.parametrize("name", LOSSES)
def test_dpo_with_other_losses_and_references(stage_run, tmp_path, name):
    assert stage_run("dpo", {**SELECT, "component_name": "loss", **LOSSES[name]}) == 0


def test_a_loss_that_llamafactory_does_not_hand_on_is_told_of(stage_run, capsys):
    assert stage_run("dpo", {**SELECT, "component_name": "loss", "pref_loss": "hinge"}) == 0
    out = capsys.readouterr()
    assert "pref_loss: hinge trains by the sigmoid loss with this TRL" in out.err + out.out


def test_the_page_and_the_record_know_pairs(stage_run, tmp_path):
    assert stage_run("dpo", {**SELECT, "component_name": "loss"}) == 0
    lines = (tmp_path / "run" / "dataflex_rows.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    assert len(lines) == ROWS["a"]
    assert all("\n\nchosen: " in json.loads(line)["text"] for line in lines)
    assert all("\n\nrejected: " in json.loads(line)["text"] for line in lines)
    assert run(["report", str(tmp_path / "run"), "--out", str(tmp_path / "page.html")]) == 0
    assert "rejected: " in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_ends_as_the_one_that_was_never_stopped(stage_run, tmp_path, stage):
    keys = {**SELECT, "component_name": "random", "save_steps": 1}
    assert stage_run(stage, keys) == 0
    whole = load_file(tmp_path / "run" / "adapter_model.safetensors")
    again = {**keys, "resume_from_checkpoint": str(tmp_path / "run" / "checkpoint-2")}
    assert stage_run(stage, again, out="again") == 0
    resumed = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.parametrize("stage", STAGES)
def test_a_static_run_of_a_stage_predicts_and_evaluates(stage_run, tmp_path, stage):
    keys = {"train_type": "static", "do_train": False, "do_eval": True, **TARGET, "do_predict": stage == "rm"}
    assert stage_run(stage, keys | {"per_device_eval_batch_size": 2}) == 0
    assert (tmp_path / "run" / "eval_results.json").exists()
    assert (tmp_path / "run" / "generated_predictions.jsonl").exists() == (stage == "rm")


@pytest.mark.parametrize(("stage", "name"), [("dpo", "select loss"), ("kto", "mix odm"), ("rm", "weight loss")])
def test_two_ranks_end_together(stage_run, tmp_path, stage, name, monkeypatch):
    for key, value in {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(key, value)
    keys = {**WORKS[name], "per_device_train_batch_size": 2, "ddp_timeout": 120}
    assert stage_run(stage, keys) == 0
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["global_step"] == 3


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", WORKS)
def test_a_cell_that_works_trains_to_its_end(stage_run, tmp_path, stage, name):
    assert stage_run(stage, WORKS[name]) == 0
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    losses = [line["loss"] for line in state["log_history"] if "loss" in line]
    assert len(losses) == (2 if name == "static" else 3)
    assert np.isfinite(losses).all()
    if stage != "rm":
        assert any("rewards/chosen" in line for line in state["log_history"]), "the stage's own metrics are gone"
