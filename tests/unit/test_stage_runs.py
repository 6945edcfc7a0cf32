"""Dynamic runs over LLaMA-Factory's trainers of pairs and tagged answers: exact, undisturbed, weighed as stated."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.errors import CheckpointError, ComponentError
from dataflex.core.files import TRACE
from dataflex.core.kinds import MIXER, SELECTOR, WEIGHTER
from dataflex.core.registry import register_weighter
from dataflex.integrations.llamafactory.value_head import load_reward_model, resuming
from dataflex.rows.columns import labelled_rows, read_chunks, token_ids
from dataflex.rows.lengths import lengths_at_hand, row_lengths, token_total
from dataflex.scoring import hidden_state_embeddings, per_sample_losses
from dataflex.scoring.stage_rows import around
from dataflex.scoring.trial import try_gradients, try_losses
from dataflex.train.trainer import MixTrainer, SelectTrainer, WeightTrainer, trainer_class
from dataflex.train.weighter.base_weighter import Weighter
from datasets import Dataset
from safetensors.torch import load_file, save_file

from tests.unit.stage_trainers import llamafactory_trainer, pair_rows, tagged_rows

pytestmark = [
    pytest.mark.llamafactory,
    pytest.mark.filterwarnings("ignore:The `padding_value` property is deprecated"),
]
STAGES = ("rm", "dpo", "kto")
MIXINS = {SELECTOR: SelectTrainer, MIXER: MixTrainer, WEIGHTER: WeightTrainer}


@register_weighter("test_stage_factor")
class Factor(Weighter):
    """Weighs every row by one number."""

    draws = False

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def get_weighted_loss(self, losses: torch.Tensor, *, ctx: Any, model: Any = None, inputs: Any) -> torch.Tensor:
        assert len(inputs["labels"]) == len(losses)
        return (self.factor * losses).mean()


def base_of(stage: str) -> type:
    from llamafactory.train.dpo.trainer import CustomDPOTrainer
    from llamafactory.train.kto.trainer import CustomKTOTrainer
    from llamafactory.train.rm.trainer import PairwiseTrainer

    PairwiseTrainer = resuming(PairwiseTrainer)  # as the adapter takes it
    return {"rm": PairwiseTrainer, "dpo": CustomDPOTrainer, "kto": CustomKTOTrainer}[stage]


def spec(kind: Any, name: str, params: dict[str, Any] | None = None) -> RunSpec:
    keys: dict[str, Any] = {"warmup_step": 1, "update_step": 2, "update_times": 2, "mixture_sample_rule": "uniform"}
    if kind is WEIGHTER:
        keys = {"warmup_step": 0, "train_step": 3}
    given = DataflexArguments(train_type=kind.train_type, component_name=name, **keys)
    return RunSpec(given, ComponentSpec(kind, name, name, params or {}))


def trainer(stage: str, folder: Path, kind: Any, name: str, params: Any = None, rows: Any = None, **args: Any) -> Any:
    return llamafactory_trainer(
        stage,
        folder,
        trainer_class(MIXINS[kind], base_of(stage)),
        dataflex=spec(kind, name, params),
        rows=rows,
        args=args,
    )


def end(done: Any) -> dict[str, Any]:
    losses = [entry for entry in done.state.log_history if "loss" in entry]
    keys = ("loss", "grad_norm", "rewards/chosen", "rewards/rejected", "kl")
    return {
        "log": [{key: line[key] for key in keys if key in line} for line in losses],
        **{name: value.clone() for name, value in done.model.state_dict().items()},
    }


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a["log"] == b["log"] and all(torch.equal(a[name], b[name]) for name in a if name != "log")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", ["random", "loss"])
def test_a_resumed_run_is_bit_for_bit_the_one_that_was_never_stopped(stage, name, tmp_path):
    whole = trainer(stage, tmp_path / "whole", SELECTOR, name, save_strategy="steps", save_steps=1)
    whole.train()
    expected = end(whole)
    assert len(expected["log"]) == 5
    resumed = trainer(stage, tmp_path / "again", SELECTOR, name)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    found = end(resumed)
    assert found["log"] == expected["log"]
    assert same(found, expected)


@pytest.mark.parametrize("shard_size", [None, "20KB"], ids=["one file", "several files"])
def test_a_reward_model_ends_with_the_best_of_its_checkpoints(shard_size, tmp_path):
    """transformers would take no weight of it, and go on with the last ones."""
    made = trainer("rm", tmp_path, SELECTOR, "random", save_strategy="steps", save_steps=1, learning_rate=1e-2)
    made.train()
    last = {name: value.clone() for name, value in made.model.state_dict().items()}
    best = tmp_path / "checkpoint-2"
    saved = load_file(best / "model.safetensors")
    if shard_size is not None:
        (best / "model.safetensors").unlink()
        made.model.pretrained_model.save_pretrained(best, state_dict=dict(saved), max_shard_size=shard_size)
    made.state.best_model_checkpoint = str(best)
    made._load_best_model()
    now = made.model.pretrained_model.state_dict()
    assert all(torch.equal(value, now[name]) for name, value in saved.items())
    head = load_file(best / "value_head.safetensors")
    assert all(torch.equal(value, made.model.state_dict()[name]) for name, value in head.items())
    assert any(not torch.equal(value, made.model.state_dict()[name]) for name, value in last.items())


def test_a_reward_model_takes_no_weights_of_another_model(tmp_path):
    made = trainer("rm", tmp_path, SELECTOR, "random", save_strategy="steps", save_steps=1)
    made.train()
    checkpoint = tmp_path / "checkpoint-1"
    saved = load_file(checkpoint / "model.safetensors")
    save_file({f"other.{name}": value for name, value in saved.items()}, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"holds weights of another model: .* does not fit -> resume with"):
        load_reward_model(made.model, checkpoint)
    (checkpoint / "value_head.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has none of the files value_head\.safetensors, value_head\.bin -> "):
        load_reward_model(made.model, checkpoint)


@pytest.mark.parametrize("stage", STAGES)
def test_scoring_leaves_no_trace_on_the_trainer(stage, tmp_path):
    made = trainer(stage, tmp_path, SELECTOR, "loss")
    made.model.train()
    metrics = copy.deepcopy(dict(vars(made).get("_stored_metrics", {})))
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    state, training = torch.get_rng_state(), [module.training for module in made.model.modules()]
    flags = [p.requires_grad for p in made.model.parameters()]
    found = per_sample_losses(made.model, made.train_dataset, collator=made.scoring_collator, progress=False)
    assert np.isfinite(found).all()
    assert len(set(found.tolist())) == len(found)
    assert dict(vars(made).get("_stored_metrics", {})) == metrics
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in made.model.modules()] == training
    assert [p.requires_grad for p in made.model.parameters()] == flags
    assert all(torch.equal(before[name], value) for name, value in made.model.state_dict().items())
    assert all(p.grad is None for p in made.model.parameters())


@pytest.mark.parametrize("stage", STAGES)
def test_a_row_has_the_same_loss_in_any_company(stage, tmp_path):
    made = trainer(stage, tmp_path, SELECTOR, "random")
    how = {"collator": made.scoring_collator, "progress": False}
    together = per_sample_losses(made.model, made.train_dataset, token_budget=10**6, **how)
    alone = per_sample_losses(made.model, made.train_dataset, token_budget=1, **how)
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-6)
    try_losses(made.model, made.train_dataset, made.scoring_collator, None)


@pytest.mark.parametrize("stage", STAGES)
def test_what_needs_texts_refuses_rows_that_are_none(stage, tmp_path):
    made = trainer(stage, tmp_path, SELECTOR, "random")
    given = (made.model, made.train_dataset)
    with pytest.raises(ComponentError, match=f"the rows of stage {stage} are .*, and hidden states are those of texts"):
        hidden_state_embeddings(*given, collator=made.scoring_collator)
    with pytest.raises(ComponentError, match=f"the rows of stage {stage} are .*, and gradients are those of texts"):
        try_gradients(*given, made.scoring_collator, None)


@pytest.mark.parametrize("stage", STAGES)
def test_a_function_around_the_collator_does_not_make_texts_of_the_rows(stage, tmp_path):
    made = trainer(stage, tmp_path, SELECTOR, "random")
    given, collator = (made.model, made.train_dataset), made.scoring_collator
    with pytest.raises(ComponentError, match=f"the rows of stage {stage} are"):
        per_sample_losses(*given, collator=lambda rows: collator(rows), progress=False)
    how = {"collator": around(collator, lambda rows: collator(rows)), "progress": False}
    expected = per_sample_losses(*given, collator=collator, progress=False)
    np.testing.assert_array_equal(per_sample_losses(*given, **how), expected)


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_measures_sources_trains_as_the_run_that_does_not(stage, tmp_path):
    rows = tagged_rows if stage == "kto" else pair_rows
    sources = {"a": Dataset.from_list(rows(12)), "b": Dataset.from_list(rows(9, seed=4))}
    plain = trainer(stage, tmp_path / "plain", MIXER, "static", rows=sources)
    plain.train()
    watched = trainer(stage, tmp_path / "watched", MIXER, "odm", rows=sources)
    watched.train()
    first, other = end(plain), end(watched)
    for key, number in first["log"][0].items():  # later on its rows are others
        assert other["log"][0][key] == pytest.approx(number, rel=1e-6, abs=1e-9)
    lines = [json.loads(line) for line in (tmp_path / "watched" / TRACE).read_text().splitlines()]
    losses = [line for line in lines if line.get("kind") == "loss"]
    assert losses
    assert {name for line in losses for name in line["sources"]} == {"a", "b"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_source_that_has_the_whole_of_the_objective_makes_the_loss_alone(stage, tmp_path):
    first, other = (tagged_rows if stage == "kto" else pair_rows)(2)
    found = {}
    for name, rows, objective in (("alone", [first, first], None), ("weighed", [first, other], (1.0, 0.0))):
        sources = {key: Dataset.from_list([row] * 8) for key, row in zip("ab", rows, strict=True)}
        run = spec(MIXER, "static", None)
        run = replace(run, arguments=replace(run.arguments, objective_proportions=objective))
        args = {"per_device_train_batch_size": 4, "max_grad_norm": 1e9, "logging_steps": 1}
        mixed = trainer_class(MIXINS[MIXER], base_of(stage))
        made = llamafactory_trainer(stage, tmp_path / name, mixed, dataflex=run, rows=sources, args=args)
        for module in made.model.modules():  # that of the value head would draw another mask for each row
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        made.train()
        found[name] = next((line["loss"], line["grad_norm"]) for line in made.state.log_history if "loss" in line)
    assert found["weighed"] == pytest.approx(found["alone"], rel=1e-4)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_weights_of_one_train_as_no_weighter_and_weights_of_two_double_the_gradient(stage, accumulation, tmp_path):
    found = {}
    for name, factor in (("plain", None), ("one", 1.0), ("two", 2.0)):
        sizes = {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation}
        args = {**sizes, "max_grad_norm": 1e9, "logging_steps": 1}
        if factor is None:
            made = llamafactory_trainer(stage, tmp_path / name, args=args | {"max_steps": 3})
        else:
            made = trainer(stage, tmp_path / name, WEIGHTER, "test_stage_factor", {"factor": factor}, **args)
        made.train()
        line = next(entry for entry in made.state.log_history if "loss" in entry)
        found[name] = (line["loss"], line["grad_norm"])
    assert found["one"] == pytest.approx(found["plain"], rel=1e-4)
    assert found["two"] == pytest.approx([2 * number for number in found["plain"]], rel=1e-4)


def test_lengths_texts_and_labels_of_pairs_are_read_without_making_rows():
    rows = pair_rows(6)
    stored = Dataset.from_list(rows)
    expected = [len(row["chosen_input_ids"]) + len(row["rejected_input_ids"]) for row in rows]
    for dataset in (stored, rows):
        assert row_lengths(dataset).tolist() == expected
        assert labelled_rows(dataset).tolist() == list(range(6))
        for row, parts in zip(rows, token_ids(dataset, np.arange(6)), strict=True):
            assert isinstance(parts, dict)
            assert [*parts["prompt"], *parts["chosen"]] == row["chosen_input_ids"]
            assert [*parts["prompt"], *parts["rejected"]] == row["rejected_input_ids"]
        (read,) = read_chunks(dataset, np.arange(6))
        assert [ids.tolist() for ids in read] == [row["chosen_input_ids"] for row in rows]
    assert lengths_at_hand(stored)
    assert token_total(stored) == sum(expected)
    assert row_lengths(stored, np.array([4, 1])).tolist() == [expected[4], expected[1]]


def test_a_pair_without_an_answer_is_nothing_to_learn_from():
    rows = pair_rows(3)
    rows[1]["rejected_input_ids"] = []
    assert labelled_rows(rows).tolist() == [0, 2]
    assert labelled_rows(Dataset.from_list(rows)).tolist() == [0, 2]
