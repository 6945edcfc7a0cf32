"""Joint_update_aware: the program's numbers, the maximum itself, whole steps by hand, and what a resumed run knows."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from dataflex.core.errors import ConfigError
from dataflex.scoring.embeddings import answers_in, pool
from dataflex.testing import TokenRows, tiny_batch, tiny_model
from dataflex_weighters import joint_update_aware
from dataflex_weighters.joint_update_aware import JointUpdateAwareWeighter, joint_weights
from dataflex_weighters.parts import embedded_target
from dataflex_weighters.parts.simplex_weights import iterated, residual, steps_to_converge
from golden_numbers import golden_cases
from weighted_run import weighted

ROWS, TARGET = TokenRows(24, lengths=range(5, 17)), TokenRows(5, lengths=range(4, 9), seed=9)
CASES = golden_cases("joint_update_aware")
EXACT = [case for case in CASES if case["kind"] == "float64" and "gram" in case["outputs"]]
WHOLE = [case for case in CASES if case["kind"] == "end_to_end_float32"]
NAMES = {"full": "full", "align_only": "align", "diverse_only": "diverse"}
POOLINGS = {"last_token": "last", "mean_pool": "mean"}


def by_name(case):
    return case["name"]


def embeddings(case):
    """Returns z and u of a case of the program, with its own normalisation."""
    z = torch.tensor(case["inputs"]["embeddings"], dtype=torch.float64)
    given = case["inputs"]["eval_embeddings"]
    normalise = case["params"]["embed_normalize"]
    z = torch.nn.functional.normalize(z, dim=1) if normalise else z
    u = z.mean(dim=0) if given is None else torch.tensor(given, dtype=torch.float64).mean(dim=0)
    return z, torch.nn.functional.normalize(u, dim=0) if normalise else u


def solved(z, u, params, **how):
    counted = torch.ones(len(z), dtype=torch.bool)
    return joint_weights(z, u, counted, params["beta"], params["tau"], objective=NAMES[params["objective_mode"]], **how)


@pytest.mark.parametrize("case", EXACT, ids=by_name)
def test_likeness_and_weights_after_some_steps_are_those_of_the_program(case):
    z, u = embeddings(case)
    np.testing.assert_allclose(z @ u, case["outputs"]["alignment_s"], rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(z @ z.T, case["outputs"]["gram"], rtol=1e-8, atol=1e-9)
    params = case["params"]
    if params["objective_mode"] == "uniform":  # weighter loss, strategy: uniform
        return
    steps = max(1, params["fixed_point_iters"])  # 0 is 1 to the program
    found, far = solved(z, u, params, iterations=steps, damping=params["damping"])
    np.testing.assert_allclose(found, case["outputs"]["weights"], rtol=1e-8, atol=1e-10)
    assert float(far) == pytest.approx(case["outputs"]["fixed_point_residual_inf"], rel=1e-6, abs=1e-10)
    after, _ = solved(z, u, params, iterations=steps + 1, damping=params["damping"])
    np.testing.assert_allclose(after, case["outputs"]["weights_next_iteration"], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("case", [case for case in EXACT if case["name"] != "uniform"], ids=by_name)
def test_the_maximum_is_that_of_the_programs_longest_run(case):
    z, u = embeddings(case)
    found, far = solved(z, u, case["params"])
    assert case["outputs"]["long_run_converged_1e-10"]
    np.testing.assert_allclose(found, case["outputs"]["weights_long_run"], atol=1e-6)
    assert float(far) < 1e-6


def test_a_step_of_one_sample_has_the_weight_one():
    found, _ = joint_weights(torch.randn(1, 4), torch.randn(4), torch.tensor([True]), 0.1, 0.05)
    assert found.tolist() == [1.0]


def test_the_programs_undamped_iteration_jumps_between_two_sets_and_ours_does_not():
    case = next(case for case in EXACT if case["name"] == "strong_interaction_undamped_oscillates")
    z, u = embeddings(case)
    jumps = [solved(z, u, case["params"], iterations=steps)[0] for steps in (400, 401)]
    assert (jumps[0] - jumps[1]).abs().max() > 0.01
    found, far = solved(z, u, case["params"])
    assert float(far) < 1e-6
    np.testing.assert_allclose(found, case["outputs"]["weights_long_run"], atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("beta", "tau"), [(0.0, 0.1), (0.1, 0.05), (5.0, 0.1), (20.0, 0.1)])
def test_no_point_of_the_simplex_is_better_than_the_weights(seed, beta, tau):
    generator = torch.Generator().manual_seed(seed)
    z = torch.nn.functional.normalize(torch.randn(9, 5, generator=generator, dtype=torch.float64), dim=1)
    u = torch.nn.functional.normalize(torch.randn(5, generator=generator, dtype=torch.float64), dim=0)

    def value(w):
        entropy = -torch.special.xlogy(w, w).sum()
        return w @ (z @ u) - beta / 2 * w @ (z @ z.T) @ w + tau * entropy

    found, far = joint_weights(z, u, torch.ones(9, dtype=torch.bool), beta, tau)
    assert float(far) < 1e-5
    best = value(found)
    for _ in range(200):
        other = torch.distributions.Dirichlet(torch.ones(9, dtype=torch.float64)).sample()
        assert value(0.9 * found + 0.1 * other) <= best + 1e-9


def test_samples_without_labels_take_no_part():
    z, u = torch.nn.functional.normalize(torch.randn(6, 4), dim=1), torch.randn(4)
    counted = torch.tensor([True, False, True, True, False, True])
    z[1] = torch.inf
    found, _ = joint_weights(z, u, counted, 1.0, 0.2)
    alone, _ = joint_weights(z[counted], u, torch.ones(4, dtype=torch.bool), 1.0, 0.2)
    torch.testing.assert_close(found[counted], alone)
    assert found[~counted].tolist() == [0.0, 0.0]
    none, _ = joint_weights(z, u, torch.zeros(6, dtype=torch.bool), 1.0, 0.2)
    assert none.tolist() == [0.0] * 6


def test_the_steps_that_are_planned_are_enough():
    for beta, tau in ((0.1, 0.05), (5.0, 0.1), (1.0, 2.0)):
        steps, damping = steps_to_converge(beta, tau, 1.0)
        S = torch.ones(7, 7, dtype=torch.float64)  # all alike: the largest eigenvalue
        s = torch.linspace(-1, 1, 7, dtype=torch.float64)
        counted = torch.ones(7, dtype=torch.bool)
        w = iterated(s, S, beta, tau, counted, steps, damping)
        assert float(residual(w, s, S, beta, tau, counted)) < 1e-6


@pytest.mark.parametrize("damping", [0.2, 0.05])
def test_a_small_damping_without_a_number_of_steps_reaches_the_maximum_too(damping):
    generator = torch.Generator().manual_seed(0)
    z_GH = torch.nn.functional.normalize(torch.randn(16, 8, generator=generator).double() + 0.5, dim=1)
    u_H = torch.nn.functional.normalize(torch.randn(8, generator=generator).double(), dim=0)
    counted_G = torch.ones(16, dtype=torch.bool)
    best_G, _ = joint_weights(z_GH, u_H, counted_G, 0.1, 0.05, 1.0)
    found_G, far = joint_weights(z_GH, u_H, counted_G, 0.1, 0.05, 1.0, damping=damping)
    torch.testing.assert_close(found_G, best_G, rtol=0, atol=1e-6)
    assert far < 1e-6


@pytest.mark.parametrize("case", WHOLE, ids=by_name)
def test_embeddings_target_and_weights_of_a_run_of_the_program(case):
    params, inputs = case["params"], case["inputs"]
    pooling, layer = POOLINGS[params["pooling"]], params["embed_layer"]

    def embedded(batch, normalise):
        hidden = torch.tensor([[row[layer] for row in batch["hidden_states"]]][0], dtype=torch.float32)
        mask = batch.get("attention_mask")
        mask = torch.ones(hidden.shape[:2]).bool() if mask is None else torch.tensor(mask) != 0
        if pooling == "mean" and batch.get("labels") is not None:
            mask = answers_in(mask, torch.tensor(batch["labels"]))
        return pool(hidden, mask, pooling, normalise), mask

    if "left_padding" in case["name"]:
        states, mask = embedded(inputs["batches"][0], True)
        padded = ~mask.all(dim=1)
        theirs = torch.tensor(case["outputs"][0]["gram"])
        assert ((states @ states.T - theirs)[padded].abs() > 1e-3).any(), "theirs takes another token than the last"
        return
    for batch, there in zip(inputs["batches"], case["outputs"], strict=True):
        states, _ = embedded(batch, True)
        u = torch.nn.functional.normalize(torch.tensor(there["eval_mean_before_normalising"]), dim=0)
        np.testing.assert_allclose(states @ u, there["alignment_s"], atol=1e-5)
        np.testing.assert_allclose(states @ states.T, there["gram"], atol=1e-5)
        found, _ = solved(states, u, params, iterations=params["fixed_point_iters"], damping=params["damping"])
        np.testing.assert_allclose(found, there["weights"], atol=1e-4)
    batches = inputs["eval"] if isinstance(inputs["eval"], list) else [inputs["eval"]]
    if params["target_num_batches"] <= 0:  # the whole evaluation set
        found = torch.cat([embedded(batch, False)[0] for batch in batches]).mean(dim=0)
        np.testing.assert_allclose(found, case["outputs"][0]["eval_mean_before_normalising"], atol=1e-5)


def phi(model, row, normalise=True):
    """Slow and obvious: the last hidden state of one row."""
    with torch.no_grad():
        state = model(tiny_batch([row])["input_ids"], output_hidden_states=True).hidden_states[-1][0, -1].cpu()
    return state / state.norm() if normalise else state


def build(folder, params=None, keys=None, target=TARGET, **args):
    return weighted(folder, "joint_update_aware", params, ROWS, keys=keys, target=target, **args)


def watched(trainer):
    """Returns a list that fills with (step, row numbers, weights) as the run goes."""
    seen, plain = [], trainer.component.get_weighted_loss

    def get_weighted_loss(losses, **kwargs):
        result = plain(losses, **kwargs)
        (gradient,) = torch.autograd.grad(result, losses, retain_graph=True)
        seen.append((trainer.state.global_step, trainer.batch_rows.rows.tolist(), (gradient * len(losses)).tolist()))
        return result

    trainer.component.get_weighted_loss = get_weighted_loss
    return seen


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_weights_of_a_step_are_those_of_all_its_samples_together(tmp_path, micro_batches):
    params = {"beta": 1.0, "tau": 0.3}
    trainer = build(tmp_path, params, max_steps=1, gradient_accumulation_steps=micro_batches)
    seen = watched(trainer)
    trainer.train()
    assert len(seen) == micro_batches
    fresh = tiny_model().eval()
    u = torch.nn.functional.normalize(torch.stack([phi(fresh, row, False) for row in TARGET]).mean(dim=0), dim=0)
    numbers = [number for _, rows, _ in seen for number in rows]
    z = torch.stack([phi(fresh, ROWS[number]) for number in numbers])
    wanted, _ = joint_weights(z, u, torch.ones(len(z), dtype=torch.bool), 1.0, 0.3)
    np.testing.assert_allclose([w for _, _, found in seen for w in found], wanted * len(z), atol=2e-4)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_second_training_by_the_same_trainer_takes_nothing_from_the_first(tmp_path, monkeypatch, steps):
    calls, plain = [], embedded_target.hidden_state_embeddings

    def counted(*args, **kwargs):
        calls.append(trainer.state.global_step)
        return plain(*args, **kwargs)

    monkeypatch.setattr(embedded_target, "hidden_state_embeddings", counted)
    trainer = build(tmp_path, {"refresh": 2}, {"explain_rows": 0}, max_steps=steps, gradient_accumulation_steps=2)
    seen = watched(trainer)
    trainer.train()
    before = list(calls)
    trainer.train()
    assert calls == before + (before if steps > 1 else [])
    assert len(seen) == 2 * 2 * steps
    for first, second in zip(seen[::2], seen[1::2], strict=True):
        assert np.mean(first[2] + second[2]) == pytest.approx(1, abs=1e-4)


def test_scope_batch_compares_the_samples_of_a_micro_batch(tmp_path):
    trainer = build(tmp_path, {"scope": "batch", "tau": 0.3}, max_steps=1, gradient_accumulation_steps=2)
    seen = watched(trainer)
    trainer.train()
    assert [pytest.approx(1, abs=1e-5)] * 2 == [np.mean(weights) for _, _, weights in seen]


@pytest.mark.parametrize(
    ("weighter", "params", "said"),
    [
        ("joint_update_aware", {"scope": "batch"}, "a micro-batch has one sample"),
        ("joint_update_aware", {"scope": "step"}, ""),
        ("loss", {}, "a micro-batch has one sample"),
        ("loss", {"scope": "step"}, ""),
        ("loss", {"strategy": "uniform"}, ""),
    ],
)
def test_a_warning_says_once_where_a_sample_is_compared_with_no_other(weighter, params, said, tmp_path, caplog):
    alone = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    with caplog.at_level(logging.WARNING, logger="dataflex"):
        weighted(tmp_path, weighter, params, ROWS, target=TARGET, max_steps=2, **alone).train()
    told = [message for message in caplog.messages if "compared with no other" in message]
    assert len(told) == bool(said)
    assert all(said in message and "per_device_train_batch_size or set scope: step" in message for message in told)


def test_weights_of_one_micro_batch_cost_no_forward_more(tmp_path, monkeypatch):
    trainer = build(tmp_path, {"refresh": 100}, {"explain_rows": 0}, max_steps=3)
    forwards = []
    trainer.model.register_forward_pre_hook(lambda *_: forwards.append(trainer.state.global_step))
    trainer.train()
    assert forwards.count(1) == forwards.count(2) == 1


def test_an_iteration_that_is_far_from_its_end_is_told(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="dataflex"):
        build(tmp_path, {"beta": 5.0, "tau": 0.02, "iterations": 2, "refresh": 1}, max_steps=2).train()
    assert "of the mean weight from the fixed point -> more iterations" in caplog.text


def test_it_is_told_in_a_run_that_ends_before_the_next_refresh_too(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="dataflex"):
        build(tmp_path, {"beta": 5.0, "tau": 0.02, "iterations": 2, "refresh": 50}, max_steps=2).train()
    assert caplog.text.count("of the mean weight from the fixed point -> more iterations") == 1


def test_the_maximum_is_reached_without_a_word(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="dataflex"):
        build(tmp_path, {"beta": 5.0, "tau": 0.1, "refresh": 1}, max_steps=2).train()
    assert "fixed point" not in caplog.text


def test_a_resumed_run_goes_on_with_the_target_it_had(tmp_path):
    sizes = {"max_steps": 5, "save_strategy": "steps", "save_steps": 1, "gradient_accumulation_steps": 2}
    whole = build(tmp_path / "w", {"refresh": 3}, **sizes)
    whole.train()
    for step in (2, 4):
        resumed = build(tmp_path / str(step), {"refresh": 3}, max_steps=5, gradient_accumulation_steps=2)
        resumed.train(resume_from_checkpoint=str(tmp_path / "w" / f"checkpoint-{step}"))
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_rows_of_the_target_are_drawn_where_anchors_says_how_many(tmp_path, monkeypatch):
    asked, plain = [], joint_update_aware.embedded_target

    def counted(targets, chosen, *args, **kwargs):
        asked.append(len(chosen))
        return plain(targets, chosen, *args, **kwargs)

    monkeypatch.setattr(joint_update_aware, "embedded_target", counted)
    build(tmp_path, {"anchors": 3, "refresh": 1}, {"explain_rows": 0}, max_steps=2).train()
    assert asked == [3, 3]


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"beta": -1}, "beta of the joint_update_aware weighter: found -1, allowed: a number of at least 0"),
        ({"tau": 0}, "tau of the joint_update_aware weighter: found 0, allowed: a number above 0"),
        ({"objective": "align_only"}, "found 'align_only', allowed: full, align, diverse"),
        ({"damping": 1.5}, "damping of the joint_update_aware weighter: found 1.5"),
        ({"pooling": "last_token"}, "found 'last_token', allowed: last, mean, answer, weighted"),
        ({"scope": "run"}, "scope of the joint_update_aware weighter: found 'run', allowed: batch, step"),
    ],
)
def test_a_wrong_parameter_is_named_with_what_is_allowed(params, said):
    with pytest.raises(ConfigError) as caught:
        JointUpdateAwareWeighter(TARGET, None, **params)
    assert said in str(caught.value)


def test_a_run_without_an_evaluation_set_is_refused():
    with pytest.raises(ConfigError, match="joint_update_aware weighter"):
        JointUpdateAwareWeighter(None, None)
