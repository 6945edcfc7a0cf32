"""DoGE against the numbers of the authors' program (Olivia-fsm/DoGE), and its runs."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from dataflex.core.context import UpdateContext
from dataflex.core.cost import Ahead, Amount
from dataflex.core.errors import ConfigError
from dataflex.interfaces.source_gradients import SourceGradients
from dataflex.planning.mixture import MixtureManager
from dataflex.run.state import load_state, save_state
from dataflex.testing import TokenRows, pad_collate
from dataflex_mixers.doge import DogeMixer, alignment, clipped, reweighted
from golden_numbers import golden_cases
from gradient_runs import EXACT, made, row_gradients, trained

DISTRIBUTED = [c for c in golden_cases("doge") if c["function"] == "update_domain_weights_distributed"]
(SELECTED,) = [c for c in golden_cases("doge") if c["function"] == "update_domain_weights_selected"]
(PER_TOKEN,) = [c for c in golden_cases("doge") if c["function"] == "update_domain_weights"]


class MainProcess:
    is_main_process, num_processes = True, 1


def mixer(tmp_path, K=3, shares=None, **params):
    names = [f"source {k}" for k in range(K)]
    shares = [1 / K] * K if shares is None else shares
    found = DogeMixer(
        MixtureManager(names, [10] * K, shares, seed=1), pad_collate, MainProcess(), str(tmp_path), **params
    )
    found.bind("doge", 1)
    return found


def told(grads, rate):
    """What a step shows: a row with one token for each source that is there."""
    there_K = np.array([grad is not None for grad in grads], dtype=np.float64)
    D = max(len(grad) for grad in grads if grad is not None)
    sums_KD = np.array([np.zeros(D) if grad is None else grad for grad in grads], dtype=np.float64)
    return SourceGradients(rate, sums_KD, np.square(sums_KD).sum(axis=1), there_K, there_K.astype(np.int64))


def params_of(case):
    given = case["params"]
    return {
        "mu": given["mu"], "smoothing": given["reweight_eps"], "least": given["dw_min"], "most": given["dw_max"],
        "max_grad_norm": given["max_grad_norm"],
    }  # fmt: skip


@pytest.mark.parametrize("case", DISTRIBUTED, ids=lambda c: c["name"])
def test_the_weights_are_those_of_the_authors_program(case, tmp_path):
    """Through the mixer, step by step: scores, weights, their mean, and the gradient that these make."""
    inputs, expected = case["inputs"], case["outputs"]["steps"]
    train, targets = inputs["train_ids"], inputs["target_ids"]
    found = mixer(tmp_path, len(train), use="loss_weights", **params_of(case))
    with np.errstate(divide="ignore"):
        found.log_weights_K = np.log(np.array(inputs["initial_weights_all_domains"])[train])
    found.target = "sources" if targets == train else "eval"
    rough = case["params"]["dtype"] == "float32"
    latest = dict.fromkeys(targets)
    for grads, rate, step in zip(inputs["domain_gradients"], inputs["learning_rates"], expected, strict=True):
        latest |= {i: grads[i] for i in targets if grads[i] is not None}
        D = max(len(grad) for grad in grads if grad is not None)
        target_JD = np.array([np.zeros(D) if grad is None else grad for grad in latest.values()])
        found.target_JD = clipped(target_JD, found.max_grad_norm)
        found.observe_gradients(1, told([grads[j] for j in train], rate))
        close = {"rtol": 2e-5, "atol": 1e-7} if rough else {"rtol": 1e-8, "atol": 1e-9}
        np.testing.assert_allclose(found.scores_K, step["scores"], **close)
        np.testing.assert_allclose(found.weights, step["weights"], **close)
        np.testing.assert_allclose(found.average, step["average_weights"], **close)
        there_K = np.array([grads[j] is not None for j in train])
        np.testing.assert_allclose(
            (found.weights * there_K) @ found.grads_KD, step["model_gradient"], rtol=1e-5, atol=1e-6
        )


def test_sources_that_are_not_chosen_keep_their_score_in_the_selected_version():
    """The formula of that version from the same functions; ours always updates every source that was seen."""
    inputs, params = SELECTED["inputs"], SELECTED["params"]
    train, K = inputs["train_ids"], len(inputs["train_ids"])
    log_w_K, scores_K = np.log(np.array(inputs["initial_weights_all_domains"])[train]), np.full(K, 1e-6)
    steps = zip(
        inputs["domain_gradients"], inputs["learning_rates"], inputs["selected_domains"], SELECTED["outputs"]["steps"],
        strict=True,
    )  # fmt: skip
    for grads, rate, chosen, step in steps:
        of = [j for j in train if j in chosen]
        target_JD = np.array([grads[i] for i in inputs["target_ids"]])
        now = alignment(np.array([grads[j] for j in of]), target_JD, rate, params["dw_min"], params["dw_max"])
        for j, score in zip(of, now, strict=True):
            scores_K[train.index(j)] = score
        log_w_K = reweighted(log_w_K, scores_K, params["mu"], params["reweight_eps"])
        np.testing.assert_allclose(np.exp(log_w_K), step["weights"], rtol=1e-8)


def test_gradients_do_not_pile_up_over_the_sources_of_a_step_as_in_the_authors_per_token_version(tmp_path):
    """There, the gradient of a domain is the sum over those before it. Where one domain is seen nothing can pile up."""
    inputs, params = PER_TOKEN["inputs"], PER_TOKEN["params"]
    names = list(inputs)
    assert "per_token_gradients" in names
    grads_BTD = np.array(inputs["per_token_gradients"][0], dtype=np.float64)
    mask_BT = np.array(inputs["token_masks"][0], dtype=np.float64)
    of_B = np.array(inputs["domain_of_row"][0])
    own = {
        d: np.einsum("btd,bt->d", grads_BTD[of_B == d], mask_BT[of_B == d]) / mask_BT[of_B == d].sum()
        for d in set(of_B)
    }
    piled, total = {}, np.zeros(grads_BTD.shape[-1])
    for d in sorted(own):
        total = total + clipped(own[d][None], 0)[0]
        piled[d] = total
    train, targets = inputs["train_ids"], inputs["target_ids"]

    def weights(of):
        train_KD = np.array([of.get(j, np.zeros_like(total)) for j in train])
        target_JD = np.array([of.get(i, np.zeros_like(total)) for i in targets])
        scores = alignment(train_KD, target_JD, inputs["learning_rates"][0], params["dw_min"], params["dw_max"])
        return np.exp(
            reweighted(np.full(len(train), -math.log(len(train))), scores, params["mu"], params["reweight_eps"])
        )

    theirs = PER_TOKEN["outputs"]["steps"][0]["weights"]
    np.testing.assert_allclose(weights(piled), theirs, rtol=1e-6)
    assert np.abs(weights(own) - theirs).max() > 1e-6, "the case would not show the fault"


def test_every_nth_step_counts_n_times(tmp_path):
    often, seldom = mixer(tmp_path), mixer(tmp_path, gradient_every=4)
    grads = told([[1.0, 0.5], [0.2, -0.4], [0.1, 0.9]], 1e-3)
    for _ in range(4):
        often.observe_gradients(1, grads)
    seldom.observe_gradients(4, grads)
    np.testing.assert_allclose(often.weights, seldom.weights, rtol=1e-12)
    assert [seldom.wants_gradients(step) for step in range(6)] == [True, False, False, False, True, False]


def test_a_source_that_was_never_seen_gains_nothing(tmp_path):
    found = mixer(tmp_path)
    found.observe_gradients(1, told([[1.0, 0.0], [1.0, 0.0], None], 1e-2))
    assert found.scores_K[2] == 0
    assert found.weights[2] < 1 / 3


def test_without_held_out_rows_so_far_nothing_moves(tmp_path):
    found = mixer(tmp_path, target="eval", eval_dataset=TokenRows(3))
    found.observe_gradients(1, told([[1.0], [2.0], [3.0]], 1e-2))
    np.testing.assert_array_equal(found.weights, np.exp(np.log([1 / 3] * 3)))


def test_loss_weights_are_over_the_shares_that_rows_are_drawn_by(tmp_path):
    found = mixer(tmp_path, shares=[0.5, 0.3, 0.2], use="loss_weights")
    assert found.weighs
    np.testing.assert_allclose(found.loss_weights() * [0.5, 0.3, 0.2], [1 / 3] * 3)
    np.testing.assert_array_equal(found.mix(None, 1), [0.5, 0.3, 0.2])
    assert not mixer(tmp_path).weighs


def test_the_mean_of_the_weights_is_written_for_another_run(tmp_path):
    found = mixer(tmp_path, use="loss_weights")
    found.observe_gradients(1, told([[1.0], [0.5], [0.1]], 1e-2))
    found.finish(1)
    written = json.loads((tmp_path / "doge_weights.json").read_text())
    assert list(written["proportions"].values()) == found.average.tolist()
    assert written["steps"] == 1
    assert written["unit"] == "rows"


def test_the_state_goes_through_a_checkpoint(tmp_path):
    found, other = mixer(tmp_path), mixer(tmp_path)
    found.observe_gradients(1, told([[1.0, 2.0], [0.5, 0.1], None], 1e-2))
    save_state(tmp_path, {"identity": {}, "component": found.state_dict()})
    other.load_state_dict(load_state(tmp_path)["component"])
    for each in (found, other):
        each.observe_gradients(2, told([None, [0.1, 0.3], [1.0, 1.0]], 1e-2))
    np.testing.assert_array_equal(found.weights, other.weights)
    np.testing.assert_array_equal(found.average, other.average)


@pytest.mark.parametrize(
    ("params", "found"),
    [
        ({"target": "evaluation"}, "target of the doge mixer: found 'evaluation', allowed: sources, eval"),
        ({"use": "weights"}, "use of the doge mixer: found 'weights'"),
        ({"mu": 0}, "mu of the doge mixer: found 0"),
        ({"least": 5.0}, "least, most of the doge mixer: found 5.0 and 5.0, allowed: least below most"),
        ({"most": "high"}, "most of the doge mixer: found 'high', allowed: a number"),
        ({"max_grad_norm": -1}, "max_grad_norm of the doge mixer: found -1"),
        ({"gradient_every": 0}, "gradient_every of the doge mixer: found 0"),
        ({"layers": "lora"}, "layers of the doge mixer: found 'lora', allowed: linear, all"),
        ({"proj_dim": 0}, "proj_dim of the doge mixer: found 0"),
        ({"target": "eval"}, "eval_dataset"),
    ],
)
def test_errors_name_the_parameter_and_what_is_allowed(params, found, tmp_path):
    with pytest.raises(ConfigError, match=found.replace("(", r"\(")):
        mixer(tmp_path, **params)


def test_a_source_that_is_never_drawn_cannot_be_weighed(tmp_path):
    with pytest.raises(ConfigError, match="the initial share of source 1 is 0 -> give it a share, leave"):
        mixer(tmp_path, shares=[0.5, 0.0, 0.5], use="loss_weights")
    assert mixer(tmp_path, shares=[0.5, 0.0, 0.5]).weights[1] == 0


def test_held_out_rows_cost_a_pass_and_the_sources_themselves_none():
    ahead = Ahead(target=Amount(8, 80, 70), step=Amount(4, 40, 30), sources=3)
    defaults = {"proj_dim": 4096, "factor_dim": 16}
    assert DogeMixer.cost({"target": "sources", **defaults}, ahead).update.gradients.rows == 0
    assert DogeMixer.cost({"target": "eval", **defaults}, ahead).update.gradients.rows == 8


def test_a_run_moves_by_the_gradients_of_its_rows(tmp_path):
    """The whole way: what the mixer decides in a run is what the formula gives on brute-force gradients."""
    run = trained(tmp_path, {**EXACT, "mu": 0.01}, name="doge", steps=4)
    from dataflex.testing import tiny_model

    grads_KP, log_w_K = None, np.log(run.trainer.mixture_manager.sizes / run.trainer.mixture_manager.sizes.sum())
    rates = [0.01 * (1 - step / 4) for step in range(4)]
    for step, rate in zip(run.steps, rates, strict=True):
        grads_NP, of_N, labels_N = row_gradients(tiny_model(), step)
        grads_KP = torch.zeros(2, grads_NP.shape[1], dtype=torch.float64) if grads_KP is None else grads_KP
        for k in range(2):
            if (of_N == k).any():
                mean_P = grads_NP[of_N == k].sum(dim=0) / labels_N[of_N == k].sum()
                grads_KP[k] = mean_P * min(1.0, 5.0 / (float(mean_P.norm()) + 1e-6))
        products_K = rate * (grads_KP @ grads_KP.sum(dim=0)) / (grads_KP.norm(dim=1).mean() + 1e-6)
        log_w_K = log_w_K + products_K.clamp(0, 5 * rate).numpy() / 0.01
        log_w_K = log_w_K - np.log(np.exp(log_w_K).sum())
    np.testing.assert_allclose(run.trainer.component.weights, np.exp(log_w_K), rtol=1e-5)
    assert abs(run.trainer.component.weights[0] - 20 / 44) > 1e-3


def test_held_out_rows_are_the_target_of_a_run(tmp_path):
    """A target made of one source's own rows pulls towards that source."""
    shares = []
    for source in ("a", "b"):
        given = {"eval_dataset": {source: TokenRows(20, lengths=range(8, 20), prompt=2, seed="ab".index(source) + 1)}}
        run = made(tmp_path / source, {"target": "eval", "mu": 0.002}, name="doge", steps=8, given=given)
        run.train()
        shares.append(run.component.weights[0])
    assert shares[0] > shares[1] + 0.01


def test_an_update_is_asked_with_its_context(tmp_path):
    found = mixer(tmp_path)
    shares = found.mix(None, 0, context=UpdateContext(0, 2, 0, 9, 1e-4, None))
    np.testing.assert_allclose(shares, [1 / 3] * 3)
    assert set(found.details()) >= {"weights", "average_weights", "scores", "gradient_norms", "weights_entropy"}
