"""What a component aims at does not depend on what LLaMA-Factory makes of evaluation rows for its own evaluation."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from dataflex.config.check import check
from dataflex.config.load import read_config
from dataflex.core.context import RunAhead
from dataflex.core.errors import ComponentError, ConfigError
from dataflex.core.kinds import KINDS, MIXER, SELECTOR, WEIGHTER
from dataflex.discovery.component_classes import find
from dataflex.discovery.construct import constructor_parameters
from dataflex.planning.mixture import MixtureManager
from dataflex.run.record import read_trace
from dataflex.scoring.gradients.projection import Projection
from dataflex.scoring.gradients.rows_sketch import RowsSketcher

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from every_component import asking_for, made, scores  # the folder of the unit tests comes first

pytestmark = pytest.mark.llamafactory

EVALUATION = ["eval_dataset=target", "val_size=0"]
KEYS = {  # keys of LLaMA-Factory that change the form of rows, or for whom
    "as it comes": EVALUATION,
    "train_on_prompt": [*EVALUATION, "train_on_prompt=true"],
    "mask_history": [*EVALUATION, "mask_history=true"],
    "packing": [*EVALUATION, "packing=true"],
    "neat_packing": [*EVALUATION, "packing=true", "neat_packing=true"],
    "val_size": ["eval_dataset=null", "val_size=0.25"],
    "eval_on_each_dataset": ["eval_dataset=target,turns", "val_size=0", "eval_on_each_dataset=true"],
    "several evaluation sets": ["eval_dataset=target,turns", "val_size=0"],
    "short cutoff_len": [*EVALUATION, "cutoff_len=24"],
    "efficient_eos": [*EVALUATION, "template=falcon"],
}
GENERATE = "predict_with_generate=true"
REFUSED = {("nice", "train_on_prompt"): "has a prompt, tokens without a label"}
"""Component, key -> why it cannot be."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three small datasets: to train on, a target with rows of several turns, and one of turns alone."""
    rng = np.random.default_rng(0)
    words = ["sum", "sort", "spell", "turn", "list", "apple", "river", "seven", "green", "stone"]

    def text(least: int, most: int) -> str:
        return " ".join(rng.choice(words, int(rng.integers(least, most))))

    def row(turns: int) -> dict[str, Any]:
        return {
            "instruction": text(2, 8), "input": "", "output": text(1, 6),
            "history": [[text(2, 5), text(1, 4)] for _ in range(turns)],
        }  # fmt: skip

    folder = tmp_path_factory.mktemp("data")
    sizes = {"some": [0] * 16, "target": [0, 0, 2, 0, 1], "turns": [1, 2]}
    columns = {"prompt": "instruction", "query": "input", "response": "output", "history": "history"}
    for name, turns in sizes.items():
        (folder / f"{name}.json").write_text(json.dumps([row(n) for n in turns]))
    info = {name: {"file_name": f"{name}.json", "columns": columns} for name in sizes}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


@pytest.fixture(scope="module", autouse=True)
def _metrics_are_not_computed() -> Iterator[None]:
    """LLaMA-Factory asks for the packages of its metrics, jieba and two more, which no evaluation calls here."""
    from llamafactory.hparams import parser

    with patch.object(parser, "_check_extra_dependencies", lambda *args: None):
        yield


@pytest.fixture(scope="module")
def load(workspace: Path, folder: Path, tmp_path_factory) -> Callable[..., dict[str, Any]]:
    """``load(train_type, component, *keys)`` returns what LLaMA-Factory's workflow gives to the trainer, and more."""
    import llamafactory.train.sft.workflow as sft
    from dataflex.integrations.llamafactory.patches import installed
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    output = tmp_path_factory.mktemp("output")

    @cache
    def load_(train_type: str, component: str, *keys: str) -> dict[str, Any]:
        file = {"dynamic_select": "select_less", "dynamic_weight": "weight_loss"}[train_type]
        own = [f"dataset_dir={folder}", "dataset=some", f"output_dir={output}", "cutoff_len=64", "do_eval=false"]
        small = [
            "per_device_train_batch_size=1",
            "warmup_step=1",
            "update_step=1",
            "update_times=1",
            "lr_scheduler_type=constant",
        ]
        if train_type == "dynamic_weight":
            small = [*small[:1], "train_step=2", "warmup_step=0"]
        config = read_config(workspace / f"{file}.yaml", [*own, *small, f"component_name={component}", *keys])
        spec = check(config, workspace)
        model_args, data_args, training_args, _, _ = get_train_args(dict(spec.llamafactory))
        loaded = load_tokenizer(model_args)
        template = sft.get_template_and_fix_tokenizer(loaded["tokenizer"], data_args)
        with installed(spec):
            module = sft.get_dataset(template, model_args, data_args, training_args, stage="sft", **loaded)
        known = {field.name for field in dataclasses.fields(sft.SFTDataCollatorWith4DAttentionMask)}  # not in 0.9.4
        collator = sft.SFTDataCollatorWith4DAttentionMask(
            template=template,
            pad_to_multiple_of=8,
            label_pad_token_id=-100,
            block_diag_attn=model_args.block_diag_attn,
            attn_implementation="sdpa",
            compute_dtype=torch.float32,
            **loaded,
            **({"neat_packing": data_args.neat_packing} if "neat_packing" in known else {}),
        )
        return {**module, "data_collator": collator, "tokenizer": loaded["tokenizer"]}

    return load_


def target_of(module: dict[str, Any]) -> Any:
    """What the trainer hands to its component."""
    found = module.get("target_dataset")
    return module["eval_dataset"] if found is None else found


def plain(dataset: Any) -> Any:
    if isinstance(dataset, dict):
        return {name: plain(rows) for name, rows in dataset.items()}
    return [{key: row[key] for key in ("input_ids", "attention_mask", "labels")} for row in dataset]


@pytest.mark.parametrize("key", KEYS)
def test_the_rows_aimed_at_are_those_without_predict_with_generate(load, key):
    without, given = load("dynamic_select", "less", *KEYS[key]), load("dynamic_select", "less", *KEYS[key], GENERATE)
    assert plain(target_of(given)) == plain(without["eval_dataset"])
    assert plain(given["train_dataset"]) == plain(without["train_dataset"])
    assert plain(given["eval_dataset"]) != plain(without["eval_dataset"])  # its own evaluation keeps what it made
    assert "target_dataset" not in without


def test_a_component_without_a_target_loads_them_once(load):
    assert "target_dataset" not in load("dynamic_select", "loss", *EVALUATION, GENERATE)
    assert "target_dataset" in load("dynamic_weight", "adapt", *EVALUATION, GENERATE)


def test_what_evaluation_measures_changes_no_row(load):
    expected = load("dynamic_select", "less", *EVALUATION)["eval_dataset"]
    assert plain(load("dynamic_select", "less", *EVALUATION, "compute_accuracy=true")["eval_dataset"]) == plain(
        expected
    )


def test_rows_for_generation_are_not_kept_where_the_next_run_would_aim_at_them(load, tmp_path):
    path = f"tokenized_path={tmp_path / 'kept'}"
    with pytest.raises(ConfigError, match=r"tokenized_path: with predict.*'less'.*leave tokenized_path out"):
        load("dynamic_select", "less", *EVALUATION, GENERATE, path)
    load("dynamic_select", "loss", *EVALUATION, GENERATE, path)
    with pytest.raises(ConfigError, match="tokenized_path: with predict_with_generate"):
        load("dynamic_select", "less", *EVALUATION, GENERATE, path, "seed=1")
    whole = f"tokenized_path={tmp_path / 'whole'}"
    expected = load("dynamic_select", "less", *EVALUATION, whole)["eval_dataset"]
    assert plain(target_of(load("dynamic_select", "less", *EVALUATION, GENERATE, whole))) == plain(expected)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("name", asking_for(SELECTOR, "eval_dataset"))
def test_every_selector_scores_the_rows_of_every_key_or_refuses_them_by_name(load, model, name, key):
    module = load("dynamic_select", "less", *KEYS[key], GENERATE)
    params = {"max_new_tokens": 1, "prompts": 2} if name == "nice" else {}
    runtime = {"dataset": module["train_dataset"], "eval_dataset": target_of(module)}
    selector = made(
        SELECTOR, name, params, **runtime, data_collator=module["data_collator"], tokenizer=module["tokenizer"]
    )
    if (name, key) in REFUSED:
        with pytest.raises(ComponentError, match=REFUSED[name, key]):
            scores(selector, model)
        return
    found = scores(selector, model)
    assert found.shape == (len(module["train_dataset"]),)
    assert np.isfinite(found).all()


@pytest.fixture(scope="module")
def model(workspace: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(workspace / "model")


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in (SELECTOR, MIXER, WEIGHTER) for name in asking_for(kind, "eval_dataset")],
)
def test_a_stream_of_evaluation_rows_is_refused_by_every_component(load, kind, name, tmp_path):
    module = load("dynamic_select", "less", *EVALUATION)
    stream = module["eval_dataset"].to_iterable_dataset()
    params, runtime = None, {"dataset": module["train_dataset"]}
    if kind is MIXER:
        params, runtime = {"target": "eval"}, mixes(tmp_path)
    with pytest.raises(ConfigError, match=rf"eval_dataset of the {name} {kind.name}: .* is a stream.*streaming: false"):
        made(kind, name, params, **runtime, eval_dataset=stream)


def mixes(folder: Path) -> dict[str, Any]:
    """What a run of two sources gives to a mixer."""
    manager = MixtureManager(["one", "other"], [8, 8], [0.5, 0.5], seed=1)
    return {"mixture_manager": manager, "accelerator": Accelerator(cpu=True), "output_dir": str(folder)}


@pytest.mark.parametrize("key", KEYS)
def test_the_mixer_that_aims_at_gradients_takes_those_of_the_rows_of_every_key(load, model, key, tmp_path):
    assert asking_for(MIXER, "eval_dataset") == ["doge"]
    module = load("dynamic_select", "less", *KEYS[key], GENERATE)
    target = target_of(module)
    mixer = made(
        MIXER, "doge", {"target": "eval"}, **mixes(tmp_path), eval_dataset=target, data_collator=module["data_collator"]
    )
    mixer.check_run(model, RunAhead(updates=1, total_steps=4, most_rows=2))
    projection = Projection(model, mixer.gradient_sketch, 1, model.device)
    mixer.sketcher = RowsSketcher(lambda: projection, mixer.accelerator)
    mixer.mix(model, 1)
    assert mixer.target_JD.shape[0] == (len(target) if isinstance(target, dict) else 1)
    assert np.isfinite(mixer.target_JD).all()
    assert np.linalg.norm(mixer.target_JD, axis=1).min() > 0


def test_no_kind_of_component_with_a_target_is_missing_here():
    tested = (SELECTOR, MIXER, WEIGHTER)
    assert [kind.name for kind in KINDS if kind not in tested and asking_for(kind, "eval_dataset")] == []
    assert asking_for(MIXER, "mixer_eval_dataset") == ["dynamic_moe", "odm"]  # gates and losses of held-out rows
    assert "eval_dataset" in constructor_parameters(find(SELECTOR, "less"))[0]


def test_a_run_chooses_the_same_rows_with_the_key_and_without(train, folder, tmp_path):
    steps = ["warmup_step=2", "update_step=2", "update_times=1", f"dataset_dir={folder}", "dataset=some", *EVALUATION]
    for out, keys in {"without": [], "with": [GENERATE]}.items():
        assert train("select_less", *steps, *keys, out=out) == 0
    (first,), (second,) = (read_trace(tmp_path / out) for out in ("without", "with"))
    assert first["scores"] == second["scores"]
    chosen = [np.load(tmp_path / out / "dataflex_selections" / "step_00000002.npz") for out in ("without", "with")]
    for key in chosen[0].files:
        np.testing.assert_array_equal(chosen[0][key], chosen[1][key])


def test_a_run_weighs_rows_the_same_with_the_key_and_without(train, folder, tmp_path):
    steps = ["train_step=3", "warmup_step=0", f"dataset_dir={folder}", "dataset=some", *EVALUATION]
    losses = []
    for out, keys in {"without": [], "with": [GENERATE]}.items():
        assert train("weight_loss", "component_name=adapt", *steps, *keys, out=out) == 0
        history = json.loads((tmp_path / out / "trainer_state.json").read_text())["log_history"]
        losses.append([(line["loss"], line["dataflex/weight/mean"]) for line in history if "loss" in line])
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3
