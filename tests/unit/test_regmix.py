"""RegMix's mathematics: the numbers of the authors' program, slow oracles, edges, and their mistakes done right."""

from __future__ import annotations

import numpy as np
import pytest
from dataflex.core.errors import ConfigError
from dataflex_mixers.regmix.best_mixture import mean_of_best, simulated
from dataflex_mixers.regmix.found_mixture import ALL, Fit, find, warnings_of
from dataflex_mixers.regmix.mixture_drawing import (
    Drawing,
    accepted,
    bounds,
    concentrations,
    distinct,
    drawn,
    rare_sources,
    tempered,
)
from dataflex_mixers.regmix.regressors import LINEAR, RIDGE, boosted, fitted, linear, rank_correlation, ridge, trees
from golden_numbers import golden_cases

CASES = golden_cases("regmix")
DRAWS = [case for case in CASES if case["kind"] == "draw_mixtures"]
FITS = [case for case in CASES if case["kind"] == "fit_and_simulate"]
PRIOR = np.array([0.6, 0.3, 0.1])


def array(values, columns):
    return np.array(values, dtype=np.float64).reshape(-1, columns)


def named(case):
    return case["name"]


def of(case):
    """Returns the prior of a case with sum 1, and how it draws."""
    params, prior_K = case["params"], np.array(case["inputs"]["prior"])
    drawing = Drawing(
        params["temperature_TEMP"], params["min_strength"], params["max_strength"], params["maximum_usage"],
        params["minimum"],
    )  # fmt: skip
    return prior_K / prior_K.sum(), drawing


def test_the_file_holds_the_authors_numbers():
    assert (len(CASES), len(DRAWS), len(FITS)) == (18, 10, 6)


@pytest.mark.parametrize("case", DRAWS, ids=named)
def test_mixtures_are_drawn_around_the_prior_as_the_authors_do(case):
    prior_K, drawing = of(case)
    out, K = case["outputs"], len(prior_K)
    np.testing.assert_allclose(concentrations(prior_K, drawing), out["dirichlet_alphas_per_strength"], rtol=1e-8)
    candidates_NK = array(out["candidates"], K)
    rounded_NK = accepted(candidates_NK, bounds(prior_K, drawing.max_usage), drawing.minimum)
    np.testing.assert_allclose(rounded_NK, array(out["accepted_rounded"], K), atol=1e-9)
    if out["sorted_deduplicated"] is None:
        assert not len(rounded_NK)
        return
    kept_NK = rounded_NK[distinct(rounded_NK)]
    np.testing.assert_allclose(kept_NK, array(out["sorted_deduplicated"], K), atol=1e-9)
    chosen = out.get("selected_mixtures") or [[float(w) for w in row] for row in out.get("config_weights_as_text", [])]
    for row in chosen:
        assert np.abs(kept_NK - np.array(row)).sum(axis=1).min() < 5e-5 * K, "a mixture that they trained is no more"


def test_duplicates_are_dropped_as_the_authors_do():
    (case,) = [case for case in CASES if case["kind"] == "deduplicate"]
    rows = np.array(case["inputs"]["rows"])
    np.testing.assert_array_equal(rows[distinct(rows, case["params"]["threshold"])], case["outputs"]["rows"])


@pytest.mark.parametrize("case", FITS, ids=named)
def test_trees_and_simulation_give_the_authors_numbers(case):
    pytest.importorskip("lightgbm", reason="dataflex-mixers[lightgbm] is not installed")
    inputs, params, out = case["inputs"], case["params"], case["outputs"]
    X, X_test = np.array(inputs["X_train"]), np.array(inputs["X_test"])
    prior_K, k = np.array(inputs["prior"]), params["top_k"]
    first = out["simulation"][0]
    if "samples" in first:
        samples_MK = np.array(first["samples"])
    else:
        generator = np.random.RandomState(params["simulation_numpy_seed"])  # the authors' generator
        samples_MK = generator.dirichlet(prior_K * 1, params["num_simulated"])
    for t, simulation in enumerate(out["simulation"]):
        y, y_test = np.array(inputs["y_train"])[:, t], np.array(inputs["y_test"])[:, t]
        predict, rounds = boosted(X, y, X_test, y_test)
        assert rounds == out["best_iteration"][t]
        told = predict(X_test)
        np.testing.assert_allclose(told, out["pred_test"][t], rtol=1e-6)
        np.testing.assert_allclose(predict(X[:10]), out["pred_train_first10"][t], rtol=1e-6)
        wanted = out["spearman_test_x100"][t]
        np.testing.assert_allclose(100 * rank_correlation(told, y_test), float(wanted), atol=0.006)
        predicted_M = predict(samples_MK)
        assert predicted_M.min() == pytest.approx(simulation["best_predicted"], rel=1e-6)
        assert np.sort(predicted_M)[k - 1] == pytest.approx(simulation["predicted_at_rank_k"], rel=1e-6)
        found_K = mean_of_best(samples_MK, predicted_M, k)
        if not simulation["tie_at_rank_k"]:
            np.testing.assert_allclose(found_K, simulation["final_mixture"], atol=1e-6)
        if "top_k_indices_sorted" in simulation and not simulation["tie_at_rank_k"]:
            assert sorted(np.argsort(predicted_M, kind="stable")[:k].tolist()) == simulation["top_k_indices_sorted"]


def test_the_temperature_is_the_exponent_where_the_authors_only_switch_by_it():
    np.testing.assert_allclose(tempered(PRIOR, 0.9), PRIOR**0.9 / (PRIOR**0.9).sum(), rtol=1e-12)
    assert not np.allclose(tempered(PRIOR, 0.9), tempered(PRIOR, 0.5))
    np.testing.assert_allclose(tempered(PRIOR, 1.0), PRIOR, rtol=1e-12)


def test_without_a_bound_a_mixture_may_be_one_source_where_the_authors_program_crashes():
    assert bounds(PRIOR, None).tolist() == [1, 1, 1]
    assert len(drawn(PRIOR, 50, Drawing(max_usage=None), seed=1)) == 50


def test_too_few_mixtures_are_an_error_with_the_way_out_where_the_authors_program_fails():
    with pytest.raises(ConfigError, match=r"5 mixtures are asked for, .* 3 of them distinct -> ask for fewer"):
        drawn(np.array([0.5, 0.5]), 5, Drawing(minimum=0.49, max_usage=None), seed=1)
    with pytest.raises(ConfigError, match=r"0 are within max_usage, 0 of them distinct -> ask for fewer, raise max_u"):
        drawn(PRIOR, 5, Drawing(max_usage=1.0), seed=1)


def test_the_mixture_does_not_depend_on_how_equal_predictions_are_sorted():
    rng = np.random.default_rng(3)
    samples_MK = rng.dirichlet(np.ones(3), 40)
    predicted_M = rng.integers(4, size=40).astype(float)
    found_K = mean_of_best(samples_MK, predicted_M, 17)
    for _ in range(5):
        order = rng.permutation(40)
        np.testing.assert_allclose(mean_of_best(samples_MK[order], predicted_M[order], 17), found_K, rtol=1e-12)


def test_the_best_are_those_of_a_slow_sort_and_ties_share_the_places_that_are_left():
    samples_MK = np.eye(4)
    np.testing.assert_allclose(mean_of_best(samples_MK, np.array([1.0, 2.0, 2.0, 3.0]), 2), [0.5, 0.25, 0.25, 0])
    np.testing.assert_allclose(mean_of_best(samples_MK, np.array([4.0, 2.0, 1.0, 3.0]), 3), [0, 1 / 3, 1 / 3, 1 / 3])
    np.testing.assert_allclose(mean_of_best(samples_MK, np.zeros(4), 1), np.full(4, 0.25))
    np.testing.assert_allclose(mean_of_best(samples_MK, np.arange(4.0), 4), np.full(4, 0.25))


def test_more_mixtures_are_the_same_ones_and_further_ones():
    few, many = drawn(PRIOR, 20, Drawing(), seed=7), drawn(PRIOR, 1500, Drawing(), seed=7)
    np.testing.assert_array_equal(few, many[:20])
    assert len(np.unique(np.round(many, 9), axis=0)) == 1500
    np.testing.assert_allclose(many.sum(axis=1), 1, rtol=1e-12)
    assert not np.array_equal(few, drawn(PRIOR, 20, Drawing(), seed=8))


def test_more_mixtures_are_further_ones_where_steps_are_smaller_than_what_the_authors_tell_apart():
    drawing = Drawing(minimum=1e-6, min_strength=0.01, max_strength=0.2, max_usage=None)
    few, many = (drawn(np.array([0.5, 0.5]), count, drawing, seed=1) for count in (200, 2000))
    np.testing.assert_array_equal(few, many[:200])


def test_drawing_leaves_the_global_generators_alone():
    before = np.random.get_state()[1].copy()  # that it is left alone is what is tested
    drawn(PRIOR, 20, Drawing(), seed=7)
    simulated(PRIOR, 20, 7)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def losses(mixtures_NK, noise=0.0):
    """A loss with diminishing returns, least where the weights are as 5 : 3 : 2."""
    own = 3 - 0.1 * np.log(mixtures_NK + 1e-3) @ np.array([0.5, 0.3, 0.2])
    return own + np.random.default_rng(5).normal(0, noise, len(mixtures_NK))


def test_the_linear_fit_is_a_plane_and_ridge_is_a_line_in_the_logarithms():
    mixtures_NK = drawn(PRIOR, 40, Drawing(), seed=2)
    plane = 1.0 + mixtures_NK @ np.array([0.3, -0.2, 0.5])
    np.testing.assert_allclose(linear(mixtures_NK[:20], plane[:20])(mixtures_NK[20:]), plane[20:], rtol=1e-9)
    logs = 2.0 - np.log(mixtures_NK + 0.01) @ np.array([0.3, 0.2, 0.1])
    np.testing.assert_allclose(ridge(mixtures_NK[:20], logs[:20], 2e-4)(mixtures_NK[20:]), logs[20:], atol=1e-3)


def test_offset_and_penalty_are_those_of_the_least_leave_one_out_error_by_leaving_each_out():
    mixtures_NK = drawn(PRIOR, 15, Drawing(), seed=4)
    y = losses(mixtures_NK, noise=0.3)

    def coefficients(X, y, penalty):  # the slow way, with an intercept that is not penalised
        A = np.column_stack([np.ones(len(X)), X])
        return np.linalg.solve(A.T @ A + penalty * np.diag([0.0, *np.ones(X.shape[1])]), A.T @ y)

    errors = {}
    for offset in (2e-4, 1e-3, 1e-2, 3e-2, 0.1, 0.3):
        logs = np.log(mixtures_NK + offset)
        X = (logs - logs.mean(axis=0)) / logs.std(axis=0)
        for penalty in np.logspace(-6, 3, 37) * len(y):
            left = []
            for i in range(len(y)):
                keep = np.arange(len(y)) != i
                b = coefficients(X[keep], y[keep], penalty)
                left.append(y[i] - b[0] - X[i] @ b[1:])
            b = coefficients(X, y, penalty)
            errors[np.mean(np.square(left))] = b[0] + X @ b[1:]
    np.testing.assert_allclose(ridge(mixtures_NK, y, 2e-4)(mixtures_NK), errors[min(errors)], rtol=1e-8)


def test_held_out_proxies_are_never_fitted_nor_stopped_by():
    pytest.importorskip("lightgbm", reason="dataflex-mixers[lightgbm] is not installed")
    mixtures_NK = drawn(PRIOR, 90, Drawing(), seed=2)
    y = losses(mixtures_NK, 0.02)
    held_out_N = np.arange(90) % 5 == 4
    changed = np.where(held_out_N, 99.0 + np.arange(90), y)
    for regressor in ("lightgbm", LINEAR, RIDGE):
        fit = Fit(regressor, 2000, 20, 2e-4, 1)
        found = find(mixtures_NK, y[:, None], held_out_N, {"a": 1.0}, PRIOR, fit)
        other = find(mixtures_NK, changed[:, None], held_out_N, {"a": 1.0}, PRIOR, fit)
        np.testing.assert_array_equal(found.shares, other.shares)
        assert found.quality["a"].error < other.quality["a"].error


@pytest.mark.parametrize("regressor", ["lightgbm", RIDGE])
def test_a_known_optimum_is_approached_and_the_correlation_is_high(regressor):
    if regressor == "lightgbm":
        pytest.importorskip("lightgbm", reason="dataflex-mixers[lightgbm] is not installed")
    prior_K = np.full(3, 1 / 3)
    mixtures_NK = drawn(prior_K, 200, Drawing(), seed=2)
    losses_NT = np.stack([losses(mixtures_NK, 0.005), losses(mixtures_NK[:, ::-1])], axis=1)
    held_out_N = np.arange(200) % 5 == 4
    found = find(
        mixtures_NK, losses_NT, held_out_N, {"a": 1.0, "b": 0.0}, prior_K, Fit(regressor, 20_000, 128, 2e-4, 1)
    )
    assert found.quality["a"].rank_correlation > 0.9
    assert found.quality[ALL] == found.quality["a"], "b has weight 0"
    assert losses(found.shares[None])[0] < np.median(losses(mixtures_NK))
    np.testing.assert_allclose(found.shares, [0.5, 0.3, 0.2], atol=0.15)


def test_a_fit_that_tells_nothing_apart_says_so_and_gives_the_prior():
    mixtures_NK = drawn(PRIOR, 30, Drawing(), seed=2)
    held_out_N = np.arange(30) % 5 == 4
    found = find(mixtures_NK, np.full((30, 1), 2.5), held_out_N, {"a": 1.0}, PRIOR, Fit(RIDGE, 4000, 20, 2e-4, 1))
    assert found.flat
    assert np.isnan(found.quality[ALL].rank_correlation)
    np.testing.assert_allclose(found.shares, PRIOR, atol=0.03)
    said = warnings_of(found, mixtures_NK, [2.5] * 30, ("a", "b", "c"))
    assert "predicts one loss for all mixtures" in said[0]
    assert "is not defined" in said[1]


def test_a_source_of_a_twentieth_of_a_per_cent_is_in_few_proxies_and_that_is_said():
    prior_K = np.array([0.6, 0.3995, 0.0005])
    names = ("web", "code", "rare")
    mixtures_NK = drawn(prior_K, 512, Drawing(), seed=1)
    (said,) = rare_sources(mixtures_NK, bounds(prior_K, 15.0), names)
    assert said.startswith("rare is in 38 of 512 proxies, and can have 0.0075 at most: what it is worth can hardly")
    loose = Drawing(min_strength=1.0, temperature=0.2)
    assert not list(rare_sources(drawn(prior_K, 512, loose, seed=1), bounds(prior_K, 15.0), names))


@pytest.mark.parametrize("alpha", [1e-2, 1e-4, 1e-9, 1e-300])
def test_the_smallest_strengths_give_mixtures_of_one_source_and_no_nan(alpha):
    mixtures_NK = drawn(PRIOR, 3, Drawing(min_strength=alpha, max_strength=alpha, max_usage=None), seed=1)
    assert np.isfinite(mixtures_NK).all()
    np.testing.assert_allclose(mixtures_NK.max(axis=1), 1, atol=0.5)


def test_the_rank_correlation_takes_ties_by_their_mean_rank():
    assert rank_correlation(np.array([1.0, 2.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0, 4.0])) == pytest.approx(0.9486833)
    assert np.isnan(rank_correlation(np.array([1.0]), np.array([2.0])))


def test_trees_are_the_same_in_every_run():
    pytest.importorskip("lightgbm", reason="dataflex-mixers[lightgbm] is not installed")
    mixtures_NK = drawn(PRIOR, 60, Drawing(), seed=2)
    y = losses(mixtures_NK, 0.02)
    np.testing.assert_array_equal(
        trees(mixtures_NK, y)(mixtures_NK), fitted("lightgbm", mixtures_NK, y, 1)(mixtures_NK)
    )
