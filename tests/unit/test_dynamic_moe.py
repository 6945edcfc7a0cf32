"""Dynamic mixing by experts: the loads against one row at a time, the update by hand, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.context import UpdateContext
from dataflex.core.errors import ConfigError
from dataflex.core.kinds import MIXER
from dataflex.planning.mixture import MixtureManager
from dataflex.run.record import read_updates
from dataflex.testing import TokenRows, device, pad_collate, tiny_model, tiny_training_args
from dataflex.train.trainer import MixTrainer, trainer_class
from dataflex_mixers.dynamic_moe import DynamicMoeMixer, reweighted
from dataflex_mixers.parts.gate_load import distances, experts_per_token, gates
from golden_numbers import golden_cases
from peft import LoraConfig, get_peft_model
from transformers import Trainer

NAMES = ("web", "code", "math")


def mixtral():
    return tiny_model(kind="mixtral")


def qwen():
    return tiny_model(kind="qwen2_moe")


MODELS = pytest.mark.parametrize("model", [mixtral, qwen], ids=["mixtral", "qwen2_moe"])


def held_out():
    return {
        name: TokenRows(9 + i, vocab_size=40 + 40 * i, lengths=range(5, 20), seed=i) for i, name in enumerate(NAMES)
    }


def mixer(rows=None, **params):
    manager = MixtureManager(NAMES, (10, 20, 30), (0.5, 0.3, 0.2), seed=1)
    made = DynamicMoeMixer(manager, pad_collate, Accelerator(cpu=True), held_out() if rows is None else rows, **params)
    made.bind("dynamic_moe", 1)
    return made


def at(update):
    return UpdateContext(update, 9, 0, 99, 1e-4, None)


def loads_by_hand(model, rows, layer):
    """Routes one row at a time, without padding."""
    model.eval()
    loads = []
    for name in NAMES:
        counts = None
        for i in range(len(rows[name])):
            with torch.no_grad():
                ids = torch.tensor([rows[name][i]["input_ids"]], device=device())
                logits = model(ids, output_router_logits=True).router_logits
            p = logits[layer].cpu().double().softmax(-1)
            counts = torch.zeros(p.shape[1]) if counts is None else counts
            for token in p:
                for expert in token.argsort(descending=True)[:2]:
                    counts[expert] += 1
        loads.append((counts / counts.sum()).tolist())
    return np.array(loads)


@MODELS
def test_the_loads_are_those_of_one_row_at_a_time_without_padding(model):
    model, rows = model(), held_out()
    last = mixer(rows, layers="last").loads(model, 0)
    every = mixer(rows, layers="all").loads(model, 0)
    assert last.shape[:2] == (3, 1)
    assert every.shape[:2] == (3, 2)
    for layer in (0, 1):
        np.testing.assert_allclose(every[:, layer], loads_by_hand(model, rows, layer), atol=1e-6)
    np.testing.assert_array_equal(last[:, 0], every[:, 1])
    assert np.ptp(last[0] - last[2]) > 0.01, "the sources differ"


@MODELS
def test_looking_leaves_no_trace_on_the_model(model):
    model = model().train()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    mixer().loads(model, 0)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())


def test_the_update_by_hand_over_several_rounds():
    log_shares, by_hand = np.log([0.5, 0.3, 0.2]), [0.5, 0.3, 0.2]
    for deltas in ([0.1, 0.2, 0.05], [0.0, 0.4, 0.1], [0.3, 0.3, 0.3]):
        log_shares = reweighted(log_shares, np.array(deltas), 10.0, 0.05)
        powers = [w * math.exp(10 * d) for w, d in zip(by_hand, deltas, strict=True)]
        by_hand = [0.95 * p / sum(powers) + 0.05 / 3 for p in powers]
        np.testing.assert_allclose(np.exp(log_shares), by_hand, rtol=1e-12)
    never = reweighted(np.array([0.0, -np.inf]), np.array([0, 9.0]), 10, 0.1)
    np.testing.assert_allclose(np.exp(never), [0.95, 0.05])


def test_distances_by_hand():
    loads = np.array([[[1.0, 0.0]], [[0.0, 1.0]], [[0.5, 0.5]]])
    far, near = math.sqrt(2), math.sqrt(0.5)
    np.testing.assert_allclose(distances(loads, "l2"), [(far + near) / 3, (far + near) / 3, 2 * near / 3])
    np.testing.assert_allclose(
        distances(loads, "cosine"), [(1 + 1 - near) / 3, (1 + 1 - near) / 3, 2 * (1 - near) / 3], atol=1e-12
    )
    two_layers = np.concatenate([loads, np.full_like(loads, 0.5)], axis=1)
    np.testing.assert_allclose(distances(two_layers, "l2"), distances(loads, "l2") / 2)


@pytest.mark.parametrize(
    "case", golden_cases("dynamic_moe"), ids=lambda c: f"{c['distance']}, {len(c['updates'][0]['loads'])}"
)
def test_the_shares_are_those_of_the_authors_program(case):
    """With K - 1 in the place of K, eta was 20 for two sources."""
    K = len(case["updates"][0]["loads"])
    names = [f"source {k}" for k in range(K)]
    rows = dict.fromkeys(names, TokenRows(1))
    made = DynamicMoeMixer(
        MixtureManager(names, [10] * K, [1 / K] * K, seed=1), pad_collate, Accelerator(cpu=True), rows,
        eta=case["eta"], smoothing=case["c"], distance={"cos": "cosine"}.get(case["distance"], case["distance"]),
    )  # fmt: skip
    for number, update in enumerate(case["updates"]):
        made.loads = lambda model, at, found=update["loads"]: np.array(found)[:, None]
        np.testing.assert_allclose(made.mix(None, number, context=at(number)), update["shares"], rtol=0, atol=1e-9)
        np.testing.assert_allclose(list(made.details()["gate_distance"].values()), update["delta"], rtol=0, atol=1e-9)


def test_an_update_looks_at_as_many_rows_as_asked_for_drawn_anew_from_each_source():
    made = mixer(eval_rows=4)
    first, second = made._rows(0), made._rows(1)
    assert np.bincount(made.held_out.sources_of(first)).tolist() == [4, 4, 4]
    assert first.tolist() != second.tolist()
    assert made._rows(0).tolist() == first.tolist()
    assert len(mixer(eval_rows=100)._rows(0)) == 9 + 10 + 11


@MODELS
def test_gates_are_found_also_inside_of_an_adapter(model):
    wrapped = get_peft_model(model(), LoraConfig(target_modules=["q_proj"]))
    assert len(gates(wrapped)) == 2
    assert experts_per_token(wrapped) == 2


def run(folder, model, name="dynamic_moe", rows=None, save_strategy="no", save_steps=1, **params):
    keys = {"warmup_step": 1, "update_step": 1, "update_times": 2}
    spec = RunSpec(
        DataflexArguments(train_type="dynamic_mix", component_name=name, **keys),
        ComponentSpec(MIXER, name, name, params),
    )
    sources = {name: TokenRows(20, vocab_size=40 + 40 * i, seed=9 + i) for i, name in enumerate(NAMES)}
    return trainer_class(MixTrainer, Trainer)(
        model=model,
        args=tiny_training_args(
            folder, max_steps=-1, learning_rate=1e-2, save_strategy=save_strategy, save_steps=save_steps
        ),
        train_dataset=sources,
        data_collator=pad_collate,
        dataflex=spec,
        **(rows or {"mixer_eval_dataset": held_out()}),
    )


@MODELS
@pytest.mark.parametrize("frozen", [True, False])
def test_a_run_moves_the_proportions_and_trains_the_gates_only_where_asked(tmp_path, model, frozen):
    model = model()
    before = [next(iter(gate.parameters())).clone() for gate in gates(model)]
    run(tmp_path, model, freeze_gate=frozen).train()
    lines = read_updates(tmp_path)
    shares = [list(line["proportions"].values()) for line in lines]
    assert shares[0] != shares[1]
    assert max(shares[0]) - min(shares[0]) > 1e-3
    assert set(lines[0]["gate_distance"]) == set(NAMES)
    moved = [not torch.equal(b, next(iter(g.parameters()))) for b, g in zip(before, gates(model), strict=True)]
    assert moved == [not frozen] * 2


@MODELS
def test_a_resumed_run_has_the_experts_and_the_shares_of_the_whole_one(tmp_path, model):
    """transformers 5.6 reads the names in the checkpoint, which are not those of the model, and leaves its experts."""
    whole = run(tmp_path / "w", model(), save_strategy="steps", save_steps=1)
    whole.train()
    resumed = run(tmp_path / "r", model())
    resumed.train(resume_from_checkpoint=str(tmp_path / "w" / "checkpoint-2"))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    assert read_updates(tmp_path / "r")[-1]["proportions"] == read_updates(tmp_path / "w")[-1]["proportions"]


def test_held_out_rows_may_be_the_evaluation_set_by_source(tmp_path):
    made = run(tmp_path, mixtral(), rows={"eval_dataset": held_out()}).component
    assert made.held_out.sizes.tolist() == [9, 10, 11]


def test_a_dense_model_is_refused_before_training_by_name(tmp_path):
    with pytest.raises(
        ConfigError, match=r"compares the experts that the sources use, but Llama has none.*another mixer"
    ):
        run(tmp_path, tiny_model())


@pytest.mark.parametrize("rows", [{}, {"web": TokenRows(3)}, {**held_out(), "math": []}])
def test_a_source_without_held_out_rows_is_refused_by_name(rows):
    with pytest.raises(ConfigError, match=r"there are none for .*math -> set mixer_eval_dataset"):
        mixer(rows)


def test_everything_wrong_is_reported_at_once():
    with pytest.raises(ConfigError) as error:
        mixer(eta=0, smoothing=2, eval_rows=0, distance="l1", layers="first", freeze_gate="yes")
    assert "6 problems" in str(error.value)
    assert "layers of the dynamic_moe mixer: found 'first', allowed: last, all" in str(error.value)
