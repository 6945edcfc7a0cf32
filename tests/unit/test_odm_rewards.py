"""The rewards of ODM that are no training losses, in runs and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from dataflex.config.arguments import DataflexArguments
from dataflex.config.checks.stage_table import asked_for
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.cost import Ahead, Amount
from dataflex.core.errors import ConfigError
from dataflex.core.kinds import MIXER
from dataflex.interfaces.source_gradients import SourceGradients
from dataflex.planning.mixture import MixtureManager
from dataflex.planning.run_schedule import require_observable
from dataflex.scoring import per_sample_losses
from dataflex.testing import TokenRows, pad_collate, tiny_model
from dataflex_mixers.odm import OdmMixer, policy, rewarded
from dataflex_mixers.parts.token_entropy import token_entropies
from gradient_runs import EXACT, WEIGHTERS, made, row_gradients, sources, trained

K, EVERY = 2, {"smoothing": 0.5}


def mixer(**params):
    found = OdmMixer(MixtureManager(("a", "b"), (10, 20), (0.5, 0.5), seed=1), **params)
    found.bind("odm", 1)
    found.mix(None, 0)
    return found


def expected_shares(gains, step, before=(20 / 44, 24 / 44)):
    rewards_K = rewarded(np.zeros(K), np.array(gains), np.array(before), 0.5, "paper")
    return policy(rewards_K, step, "paper")


def test_train_loss_is_another_name_of_loss():
    one, other = mixer(), mixer(reward="train_loss")
    for each in (one, other):
        each.observe(1, np.array([1.0, 5.0]), np.array([4, 4]))
    np.testing.assert_array_equal(one.mix(None, 50), other.mix(None, 50))


def test_the_entropy_is_that_of_the_softmax_over_ln_v():
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    there = torch.tensor([[True, True, False, True, False], [False, True, True, True, False]])
    p = logits.softmax(-1)
    by_hand = -(p * p.log()).sum(-1) / math.log(7) * there
    np.testing.assert_allclose(token_entropies(logits, there), by_hand, atol=1e-6)


@pytest.mark.parametrize(("logits", "found"), [([0.0] * 4, 1.0), ([0.0, -math.inf, -math.inf, -math.inf], 0.0)])
def test_the_entropy_of_even_logits_is_1_and_of_a_certain_token_0(logits, found):
    assert float(token_entropies(torch.tensor([[logits]]), torch.ones(1, 1, dtype=torch.bool))) == pytest.approx(found)


def test_entropies_of_many_positions_are_those_of_each(monkeypatch):
    monkeypatch.setattr("dataflex_mixers.parts.token_entropy.PART_NUMBERS", 20)
    logits, there = torch.randn(3, 5, 7), torch.ones(3, 5, dtype=torch.bool)
    single = [token_entropies(logits[i : i + 1, t : t + 1], there[:1, :1]) for i in range(3) for t in range(5)]
    np.testing.assert_allclose(token_entropies(logits, there).flatten(), torch.cat(single).flatten(), atol=1e-6)


@pytest.mark.parametrize("weighter", [None, "focal"])
def test_entropies_in_a_run_are_those_of_the_models_distribution(weighter, tmp_path):
    weighed = None if weighter is None else WEIGHTERS[weighter]
    run = trained(tmp_path, {"reward": "entropy", **EVERY}, name="odm", steps=6, weighter=weighed)
    sums, labels = np.zeros(K), np.zeros(K)
    for step in run.steps[2:4]:
        model = tiny_model().requires_grad_(False)
        model.load_state_dict(step.state)
        for batch, rows in step.batches:
            logp = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(-1)
            entropies = -(logp.exp() * logp).sum(-1)[:, :-1] / math.log(logp.shape[-1])
            there = batch["labels"][:, 1:] != -100
            for row, of_row, seen in zip(rows.tolist(), entropies, there, strict=True):
                sums[int(row >= 20)] += float(of_row[seen].sum())
                labels[int(row >= 20)] += int(seen.sum())
    mixer = run.trainer.components.observing_mixer
    np.testing.assert_allclose(list(mixer.window.last(("a", "b")).values()), sums / labels, rtol=1e-5)
    np.testing.assert_allclose(run.trainer.mixture_manager.proportions, expected_shares(sums / labels, 4), rtol=1e-5)
    assert "entropies" in mixer.details()
    assert "losses" not in mixer.details()


def test_gradient_norms_in_a_run_are_those_of_brute_force_gradients(tmp_path):
    run = trained(tmp_path, {"reward": "gradient_norm", **EXACT, **EVERY}, name="odm", steps=6)
    sums, labels = [0.0, 0.0], [0, 0]
    for step in run.steps[2:4]:
        grads_NP, of_N, labels_N = row_gradients(tiny_model(), step)
        for k in range(K):
            sums[k] = sums[k] + grads_NP[of_N == k].sum(dim=0)
            labels[k] += int(labels_N[of_N == k].sum())
    gains = [1 / (float(total.norm()) / count + 1e-4) for total, count in zip(sums, labels, strict=True)]
    np.testing.assert_allclose(list(run.trainer.component.details()["gains"].values()), gains, rtol=1e-4)
    np.testing.assert_allclose(run.trainer.mixture_manager.proportions, expected_shares(gains, 4), rtol=1e-4)


def test_a_source_that_was_not_seen_keeps_its_reward():
    found = mixer(reward="gradient_norm")
    sums = np.array([[3.0, 4.0], [0.0, 0.0]])
    found.observe_gradients(
        1, SourceGradients(1e-3, sums, np.array([25.0, 0.0]), np.array([2.0, 0.0]), np.array([1, 0]))
    )
    found.mix(None, 1)
    assert found.details()["gains"] == {"a": pytest.approx(1 / (2.5 + 1e-4))}
    assert found.rewards_K[1] == 0


def test_held_out_losses_in_a_run_are_those_of_the_rows(tmp_path):
    held = {"a": TokenRows(9, lengths=9, seed=5), "b": TokenRows(3, lengths=12, seed=6)}
    params = {"reward": "eval_loss", "eval_rows": 4, **EVERY}
    given = {"mixer_eval_dataset": held}
    run = trained(tmp_path, params, name="odm", steps=6, given=given)
    model = tiny_model()
    model.load_state_dict(run.steps[4].state)
    losses = [
        per_sample_losses(model, held[name], collator=pad_collate, indices=rows).mean()
        for name, rows in (("a", [0, 3, 5, 8]), ("b", [0, 1, 2]))
    ]
    np.testing.assert_allclose(list(run.trainer.component.details()["gains"].values()), losses, rtol=1e-5)
    np.testing.assert_allclose(run.trainer.mixture_manager.proportions, expected_shares(losses, 4), rtol=1e-5)


def test_held_out_losses_need_held_out_rows(tmp_path):
    with pytest.raises(ConfigError, match="odm mixer, reward: eval_loss, looks at held-out rows of each source"):
        made(tmp_path, {"reward": "eval_loss"}, name="odm")
    arguments = DataflexArguments(train_type="dynamic_mix", component_name="odm")
    spec = RunSpec(
        arguments, ComponentSpec(MIXER, "odm", "odm", {"reward": "eval_loss"}), llamafactory={"stage": "sft"}
    )
    with pytest.raises(ConfigError, match="mixer_eval_dataset is missing; the mixer 'odm'"):
        require_observable(spec)
    require_observable(RunSpec(arguments, spec.component, llamafactory={"stage": "sft", "val_size": 0.1}))


@pytest.mark.parametrize("by", ["cluster:2", "file:labels.json"])
def test_val_size_holds_no_rows_out_of_sources_that_it_does_not_know(by, tmp_path):
    arguments = DataflexArguments(train_type="dynamic_mix", component_name="odm", mixture_by=by)
    for reward, refused in (("eval_loss", True), ("loss", False)):
        part = ComponentSpec(MIXER, "odm", "odm", {"reward": reward})
        spec = RunSpec(arguments, part, llamafactory={"stage": "sft", "val_size": 0.1})
        if refused:
            with pytest.raises(ConfigError, match=f"{by} says nothing of -> write mixture_by: column:NAME"):
                require_observable(spec)
        else:
            require_observable(spec)
    by_column = DataflexArguments(train_type="dynamic_mix", component_name="odm", mixture_by="column:topic")
    part = ComponentSpec(MIXER, "odm", "odm", {"reward": "eval_loss"})
    require_observable(RunSpec(by_column, part, llamafactory={"stage": "sft", "val_size": 0.1}))


@pytest.mark.parametrize(
    ("reward", "asks"),
    [
        ("gradient_norm", "gradients"),
        ("entropy", "losses of tokens"),
        ("eval_loss", "losses of held-out rows"),
        ("loss", None),
    ],
)
def test_stages_whose_rows_are_no_texts_refuse_what_they_have_not(reward, asks):
    assert asked_for(OdmMixer.asks, {"reward": reward}) == asks


def test_held_out_losses_alone_put_batches_of_the_collator_through_the_model():
    held = {"a": TokenRows(3), "b": TokenRows(3)}
    assert mixer(reward="eval_loss", data_collator=pad_collate, mixer_eval_dataset=held).reads_batches
    assert not mixer().reads_batches


def test_only_held_out_losses_cost_a_pass():
    ahead = Ahead(update=1, held_out=Amount(100, 900, 800), sources=K)
    defaults = {"eval_rows": 8, "proj_dim": 64, "factor_dim": 4}
    found = {
        reward: OdmMixer.cost({"reward": reward, **defaults}, ahead).update.forward.rows
        for reward in ("loss", "entropy", "gradient_norm", "eval_loss")
    }
    assert found == {"loss": 0, "entropy": 0, "gradient_norm": 0, "eval_loss": 16}
    first = Ahead(held_out=ahead.held_out, sources=K)
    assert OdmMixer.cost({"reward": "eval_loss", **defaults}, first).update.forward.rows == 0


def test_a_checkpoint_without_gradients_loads():
    found = mixer()
    state = found.state_dict()
    del state["gradients"]
    mixer().load_state_dict(state)


def test_sources_of_the_runs_are_two():
    assert list(sources()) == ["a", "b"]
