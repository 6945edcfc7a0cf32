"""Runs with the keys that OpenDCAI/DataFlex's examples use, in YAMLs of our own: each validates, or is refused with the
change to make; one of each train type trains.

The examples themselves go through the same code by ``python tests/moving/opendcai.py CHECKOUT --train``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from dataflex.config.check import check
from dataflex.config.load import read_config

from tests.moving.opendcai import components_in, stood_in, train, validated, write_stand_ins

COMPONENTS: dict[str, Any] = {
    "selectors": {
        "nice": {
            "cache_dir": "../s", "gradient_type": "adam", "proj_dim": 64, "seed": 1, "save_interval": 4,
            "reward_model_backend": "local_vllm",
            "reward_backend_params": {
                "local_vllm": {"hf_model_name_or_path": "m", "vllm_top_k": 1, "vllm_max_model_len": None},
                "api": {"api_url": "https://h/v1/chat/completions", "api_key": "K", "model_name": "m"},
            },
            "mc_samples": 2, "max_new_tokens": 4, "generation_temperature": 0.7, "max_prompt_length": 32,
        },
        "less": {"cache_dir": "../s", "gradient_type": "adam", "proj_dim": 64, "seed": 1, "save_interval": 4},
        "cluster_less": {
            "gradient_type": "adam", "proj_dim": 64, "seed": 1, "save_interval": 4, "cluster_size": 64,
            "samples_per_cluster": 2, "clustering_batch_size": 4, "clustering_max_iter": 5,
            "clustering_method": "kmeans", "representative_strategy": "random", "embedding_model_name_or_path": None,
            "embedding_model_dtype": "auto", "embedding_layer": -1,
        },
        "loss": {"cache_dir": "../s", "focus": "medium", "score_batch_size": 4},
        "delta_loss": {"cache_dir": "../s", "window_size": 0.3, "score_batch_size": 4},
        "tsds": {"probs_path": "./p.npy", "cache_dir": "../s"},
        "near": {"indices_path": "./i.npy", "cache_dir": "../s"},
        "random": {"cache_dir": "../s", "seed": 3, "replacement": False},
        "custom": {"cache_dir": "../s"},
        "icons": {"proj_dim": 64, "seed": 1, "save_interval": 4, "task_boundaries": None},
        "coincide": {
            "embedding_model_name_or_path": None, "embedding_model_dtype": "auto", "embedding_layers": None,
            "num_clusters": 10, "clustering_batch_size": 4, "clustering_num_workers": 1, "clustering_device": "auto",
            "clustering_max_iter": 5, "assignment_chunk_size": 64, "temperature": 1.0, "density_chunk_size": 64,
            "single_member_density": 1.0,
        },
    },
    "mixers": {
        "random": {"seed": 3},
        "doremi": {"reference_model_path": "/some/checkpoint", "reweight_eta": 0.2, "reweight_eps": 0.02},
        "static": {"proportions": [0.4, 0.6]},
        "odm": {
            "alpha": 0.8, "warmup_steps": 2000, "reward_scale": 15.0, "min_exploration_rate": 0.04,
            "initial_proportions": [0.5, 0.5],
        },
        "dynamic_moe": {"eta": 9.0, "c": 0.06, "collect_steps": 2, "eval_samples": 10, "eval_batch_size": 4},
    },
    "weighters": {
        "loss": {"strategy": "quadratic", "delta": 0.9},
        "adapt": {"tau": 0.9, "refresh_interval": 4, "anchor_batch_size": 4, "clip": None},
        "joint_update_aware": {
            "beta": 0.1, "tau": 0.05, "fixed_point_iters": 5, "damping": 1.0, "target_update_step": 50,
            "target_batch_size": 1, "target_num_batches": 1, "embed_normalize": True, "pooling": "last_token",
            "embed_layer": -1, "objective_mode": "full",
        },
        "custom": {"strategy": "uniform"},
    },
}  # fmt: skip
RUN = {
    "model_name_or_path": "some/model", "trust_remote_code": True, "stage": "sft", "do_train": True,
    "finetuning_type": "lora", "lora_target": "all", "lora_rank": 8, "lora_alpha": 4, "dataset": "a",
    "template": "llama3", "cutoff_len": 128, "overwrite_cache": True, "preprocessing_num_workers": 4,
    "dataloader_num_workers": 0, "seed": 42,
    "output_dir": "../out", "logging_steps": 5, "save_steps": 50, "plot_loss": True, "save_only_model": False,
    "overwrite_output_dir": True, "report_to": "none", "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2, "learning_rate": 1.0e-4, "num_train_epochs": 1.0, "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1, "bf16": True,
    "ddp_timeout": 1000, "components_cfg_file": "c.yaml",
}  # fmt: skip
EVALUATED = {
    "eval_dataset": "b", "per_device_eval_batch_size": 1, "metric_for_best_model": "eval_loss",
    "eval_strategy": "steps", "greater_is_better": False, "load_best_model_at_end": False, "eval_steps": 10,
}  # fmt: skip
SELECT = {"train_type": "dynamic_select", "warmup_step": 4, "update_step": 3, "update_times": 2}
MIX = {"train_type": "dynamic_mix", "dataset": "a,b", "warmup_step": 4, "update_step": 3, "update_times": 2}
SHARES = {"mixture_sample_rule": "mixture", "init_mixture_proportions": [0.5, 0.5]}
PT = {
    "stage": "pt", "finetuning_type": "full", "train_from_scratch": True, "deepspeed": "x/ds_z3_config.json",
    "flash_attn": "fa2", "template": "qwen", "save_only_model": True, "eval_dataset": "b", **SHARES,
}  # fmt: skip
STATIC = {**MIX, **PT, "component_name": "static", "static_mix": True}
MOE = {
    **MIX,
    "component_name": "dynamic_moe",
    "finetuning_type": "full",
    "mixer_eval_dataset": "c,d",
    "freeze_gate": True,
}
MOE |= {"static_mix": False, "update_times": -1, "train_step": 20, "max_steps": 20}
WEIGH = {"train_type": "dynamic_weight", "warmup_step": 1, "train_step": 3}
AS_IS, CHANGED = "runs as is", "runs after the printed change: "
LEFT_OUT = f"{CHANGED}components_cfg_file left out"

RUNS: dict[str, tuple[dict[str, Any], str]] = {
    **{
        f"select-{name}": ({**SELECT, **EVALUATED, "component_name": name}, verdict)
        for name, verdict in {
            "less": AS_IS, "cluster_less": AS_IS, "loss": AS_IS, "delta_loss": AS_IS, "random": AS_IS, "custom": AS_IS,
            "near": LEFT_OUT, "tsds": LEFT_OUT, "nice": LEFT_OUT,
            "icons": AS_IS, "coincide": AS_IS,
        }.items()
    },
    "select without evaluation": ({**SELECT, "component_name": "delta_loss"}, AS_IS),
    "mix-random without shares": ({**MIX, "component_name": "random", "eval_dataset": "c"}, AS_IS),
    "mix-random": ({**MIX, **SHARES, "component_name": "random"}, AS_IS),
    "mix-static": (STATIC, AS_IS),
    "mix-static of other shares": ({**STATIC, "init_mixture_proportions": [0.3, 0.7]}, AS_IS),
    "mix-static without component": (
        {**MIX, **SHARES, "update_step": None, "update_times": None, "static_mix": True, "train_step": 3}, AS_IS,
    ),
    "mix-doremi": ({**MIX, **PT, "component_name": "doremi"}, AS_IS),
    "mix-doremi with LoRA": ({**MIX, **PT, "finetuning_type": "lora", "component_name": "doremi"}, AS_IS),
    "mix-odm": ({**MIX, **PT, "component_name": "odm", "update_times": -1}, f"{CHANGED}warmup_step: 2000"),
    "mix-dynamic_moe": (MOE | {"mixture_sample_rule": "mixture"}, f"{CHANGED}mixture_sample_rule: uniform"),
    "mix-dynamic_moe of equal shares": (MOE | {"mixture_sample_rule": "uniform"}, AS_IS),
    "weight-loss": ({**WEIGH, "component_name": "loss"}, AS_IS),
    "weight-adapt": ({**WEIGH, "component_name": "adapt", "eval_dataset": "a"}, AS_IS),
    "weight-custom": ({**WEIGH, "component_name": "custom"}, AS_IS),
    "weight-joint": ({**WEIGH, "component_name": "joint_update_aware", "eval_dataset": "a"}, AS_IS),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stand-ins, and a components file with the keys of theirs."""
    folder = tmp_path_factory.mktemp("moved")
    write_stand_ins(folder)
    content = {
        section: {name: {"name": name, "params": params} for name, params in body.items()}
        for section, body in COMPONENTS.items()
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(content))
    return folder


def run_of(name: str, folder: Path) -> dict[str, Any]:
    keys = {key: value for key, value in (RUN | RUNS[name][0]).items() if value is not None}
    return stood_in(keys, folder, components_in(folder / "c.yaml", folder, False))


@pytest.mark.parametrize("name", RUNS)
def test_a_run_with_their_keys_validates_or_is_refused_with_the_change(name, place):
    said, _ = validated(run_of(name, place), place)
    assert said.startswith(RUNS[name][1])
    assert said == RUNS[name][1] or said.startswith("refused")


def test_there_are_as_many_as_their_examples():
    assert len(RUNS) >= 25


@pytest.mark.slow
@pytest.mark.llamafactory
@pytest.mark.parametrize("name", ["select-less", "mix-odm", "mix-dynamic_moe", "weight-adapt"])
def test_one_run_of_each_train_type_trains_its_steps(name, place, caplog):
    _, usable = validated(run_of(name, place), place)
    assert usable is not None
    small = components_in(place / "c.yaml", place, True)
    number = list(RUNS).index(name)
    assert train(usable, place, number, small) == "3 steps"
    record = place / f"out{number}" / "dataflex_config.yaml"
    assert check(read_config(record), record.parent), "the record of such a run cannot be trained again"
