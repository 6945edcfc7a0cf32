"""Wherever rows are ranked or drawn by scores: -inf is never, +inf is refused, and temperature 0 takes the highest."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from dataflex.core.context import UpdateContext
from dataflex.core.errors import ComponentError, ConfigError
from dataflex.core.kinds import SELECTOR
from dataflex.core.registry import official
from dataflex.planning.answers import checked_scores
from dataflex.planning.mixture import MixtureManager
from dataflex.testing import TokenRows, tiny_tokenizer
from dataflex_mixers.parts.schedule_points import parse_curve
from dataflex_mixers.parts.simplex import softmax
from dataflex_mixers.temperature import tempered
from dataflex_selectors.cluster_less import ClusterLessSelector
from dataflex_selectors.deita import DeitaSelector
from dataflex_selectors.delta_loss import DeltaLossSelector
from dataflex_selectors.icons import IconsSelector
from dataflex_selectors.less import LessSelector
from dataflex_selectors.loss import LossSelector, focus_log_weights
from dataflex_selectors.nice.nice_selector import NiceSelector
from dataflex_selectors.parts.arms import quotas
from dataflex_selectors.parts.drawing import draw, logarithms, probabilities
from dataflex_selectors.parts.finite_scores import standardised
from dataflex_selectors.parts.gradient_scores import GradientScores
from dataflex_selectors.parts.pick import pick
from dataflex_selectors.parts.row_clusters import Clustering
from dataflex_selectors.parts.row_losses import RowLosses
from dataflex_selectors.parts.running_scores import RunningScores
from dataflex_selectors.parts.smoothing import smoothed
from dataflex_selectors.perplexity import PerplexitySelector
from dataflex_selectors.rho_loss import RhoLossSelector
from dataflex_selectors.scores import ScoresSelector
from dataflex_selectors.zeroth import ZerothSelector
from dataflex_weighters.loss import annealed, sample_weights
from every_component import run_objects

ROWS = 30
DATASET, TARGET = TokenRows(ROWS, vocab_size=512), TokenRows(2, vocab_size=512, seed=1)


def _file(folder, scores):
    np.save(folder / "s.npy", scores)
    return str(folder / "s.npy")


def _scores(scores, patch, folder, **params):
    return ScoresSelector(**run_objects(DATASET), file=_file(folder, scores), **params)


def _less(scores, patch, folder, **params):
    patch.setattr(RunningScores, "add", lambda self, pool, *_: scores[pool][:, None])
    patch.setattr(GradientScores, "scores", lambda self, model, rows: scores[rows][:, None])
    return LessSelector(**run_objects(DATASET, TARGET), **params)


def _icons(scores, patch, folder, **params):
    patch.setattr(RunningScores, "add", lambda self, pool, *_: scores[pool][:, None])
    patch.setattr(GradientScores, "scores", lambda self, model, rows: scores[rows][:, None])
    return IconsSelector(**run_objects(DATASET, TARGET), **params)


def _nice(scores, patch, folder, **params):
    patch.setattr(NiceSelector, "_averages", lambda self, model, context, pool, generator: scores[pool][:, None])
    return NiceSelector(**run_objects(DATASET, TARGET), tokenizer=tiny_tokenizer(), **params)


def _cluster_less(scores, patch, folder, **params):
    patch.setattr(ClusterLessSelector, "_averages", lambda self, model, context: scores[:, None])
    made = ClusterLessSelector(**run_objects(DATASET, TARGET), **params)
    clusters = np.arange(ROWS)[:, None] % 3
    made._clustering = Clustering(clusters.astype(np.int64), np.arange(ROWS), 0, None)
    return made


def _zeroth(scores, patch, folder, **params):
    patch.setattr(ZerothSelector, "_influences", lambda self, model, step, pool, generator: scores[pool])
    return ZerothSelector(**run_objects(DATASET, TARGET), **params)


def _loss(scores, patch, folder, **params):
    patch.setattr(RowLosses, "fresh", lambda self, model, step, shared: scores)
    return LossSelector(**run_objects(DATASET), **params)


def _delta_loss(scores, patch, folder, **params):
    patch.setattr(RowLosses, "fresh", lambda self, model, step, shared: np.zeros(ROWS))
    made = DeltaLossSelector(**run_objects(DATASET), **params)
    made._before = scores
    return made


def _rho_loss(scores, patch, folder, **params):
    patch.setattr(RhoLossSelector, "_losses", lambda self, model, step, rows: scores[rows])
    return RhoLossSelector(**run_objects(DATASET), file=_file(folder, np.zeros(ROWS)), **params)


def _perplexity(scores, patch, folder, **params):
    patch.setattr(RowLosses, "fresh", lambda self, model, step, shared: scores)
    return PerplexitySelector(**run_objects(DATASET), share=None, **params)


def _deita(scores, patch, folder, **params):
    patch.setattr(DeitaSelector, "_scores_of", lambda self, model, context: scores)
    return DeitaSelector(**run_objects(DATASET), exclude_seen=False, **params)


RANKING = {
    "perplexity": (_perplexity, [{"band": band} for band in ("low", "medium", "high")]),
    "deita": (_deita, [{"threshold": 1.0}]),
    "scores": (_scores, [{"mode": "topk"}, {"mode": "sample"}, {"mode": "sample", "temperature": 1e-3}]),
    "less": (_less, [{"mode": mode} for mode in ("topk", "sample", "quota")]),
    "icons": (_icons, [{}, {"combine": "mean"}]),
    "nice": (_nice, [{"mode": mode} for mode in ("topk", "sample", "quota")]),
    "cluster_less": (_cluster_less, [{"mode": mode} for mode in ("topk", "sample", "quota")]),
    "zeroth": (_zeroth, [{}]),
    "loss": (_loss, [{"focus": focus} for focus in ("low", "medium", "high")]),
    "delta_loss": (_delta_loss, [{}]),
    "rho_loss": (_rho_loss, [{"pool_factor": 1}, {"pool_factor": None}]),
}
"""Selector -> how to make one that has these scores, and its ways of choosing by them."""

WITHOUT = {
    "coincide": "shares of clusters; hidden states that are not finite are refused",
    "reward_spread": "draws by beliefs of rewards, of which those that are not finite are not kept",
    "semdedup": "draws from the rows that stay; vectors that are not finite are refused",
    "dsir": "logarithms of shares above 0, which are finite",
    "random": "has no scores",
    "infobatch": "compares losses that training has seen with their mean; those that are not finite are not kept",
    "ifd": "quotients of finite losses; one without end lies above every band",
    "custom": "has no scores",
    "greats": "products of gradients, which are refused where they are not finite",
    "near": "distances between embeddings, which are refused where they are not finite",
    "tsds": "masses that it computes itself from such distances",
}
"""Selectors that rank by nothing that could be infinite."""

ways = pytest.mark.parametrize(
    ("name", "params"), [(name, params) for name, (_, found) in RANKING.items() for params in found], ids=str
)


def chosen(name, params, scores, count, folder, update=0):
    with pytest.MonkeyPatch.context() as patch:
        selector = RANKING[name][0](scores.astype(np.float64), patch, folder, **params)
        selector.bind(name, 7)
        context = UpdateContext(update, 9, 10, 90, 1e-3, None)
        return selector.select(None, 10, count, context=context)


def ordinary(seed=0):
    return np.random.default_rng(seed).standard_normal(ROWS)


def test_every_selector_is_here():
    assert set(official(SELECTOR)) == set(RANKING) | set(WITHOUT)


@ways
@pytest.mark.parametrize("value", [-np.inf, np.nan])
def test_a_row_that_is_never_to_be_taken_is_never_taken(name, params, value, tmp_path):
    scores = ordinary()
    never = np.arange(3, 13)
    scores[never] = value
    rest = sorted(set(range(ROWS)) - set(never))
    assert sorted(chosen(name, params, scores, 20, tmp_path).indices) == rest
    for update in range(5):
        assert not set(chosen(name, params, scores, 8, tmp_path, update).indices) & set(never)
    with pytest.raises(ComponentError, match="21 rows are wanted, but only 20 of 30"):
        chosen(name, params, scores, 21, tmp_path)


@ways
def test_one_row_of_never_changes_nothing_for_the_others(name, params, tmp_path):
    """One -inf among the scores made draws take rows 0, 1, 2, ..., as the mean and the deviation of all were NaN."""
    scores, without = ordinary(), ordinary()
    scores[29], without[29] = -np.inf, np.nan
    for update in range(3):
        found = chosen(name, params, scores, 8, tmp_path, update).indices
        assert found.tolist() == chosen(name, params, without, 8, tmp_path, update).indices.tolist()
        assert sorted(found) != list(range(8))


@ways
def test_plus_infinity_is_refused_with_the_rows(name, params, tmp_path):
    scores = ordinary()
    scores[[4, 9]] = np.inf
    with pytest.raises((ComponentError, ConfigError), match=r"2 rows \((4, 9|9, 4)\).*\+inf"):
        chosen(name, params, scores, ROWS, tmp_path)


@ways
@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_the_size_of_scores_does_not_matter(name, params, size, tmp_path):
    for update in range(3):
        plain = chosen(name, params, ordinary(), 8, tmp_path, update).indices
        assert chosen(name, params, ordinary() * size, 8, tmp_path, update).indices.tolist() == plain.tolist()


def test_a_set_of_never_keeps_a_row_from_that_set_alone():
    scores = np.array([[9.0, 1.0], [8.0, -np.inf], [-np.inf, 2.0], [-np.inf, -np.inf], [1.0, 0.0]])
    taken = pick(scores, 4, "quota", 1.0, np.random.default_rng(0))
    assert taken.tolist() == [0, 2, 1, 4]
    with pytest.raises(ComponentError, match="only 4 of 5 have a score"):
        pick(scores, 5, "quota", 1.0, np.random.default_rng(0))


def test_infinite_scores_of_chosen_rows_are_an_error_of_the_component_and_of_all_rows_only_above():
    for value in (np.inf, -np.inf):
        with pytest.raises(ComponentError, match="returned infinite scores at 1 of 3 places, the first is 1"):
            checked_scores([0.0, value, np.nan], count=3, who="x")
    assert checked_scores([0.0, -np.inf, np.nan], count=3, who="x", never=True)[1] == -np.inf
    with pytest.raises(ComponentError, match="expected finite ones, -inf for never or NaN for none"):
        checked_scores([0.0, np.inf, 0.0], count=3, who="x", never=True)


# --- temperature


def overlap(scores, temperature, count=100, draws=20):
    best = set(np.argsort(-scores)[:count])
    found = [
        pick(scores[:, None], count, "sample", temperature, np.random.default_rng(seed)).tolist()
        for seed in range(draws)
    ]
    assert all(len(set(rows)) == count for rows in found)
    return float(np.mean([len(best & set(rows)) / count for rows in found]))


def test_sample_becomes_topk_as_the_temperature_falls_also_with_an_outlier():
    scores = np.random.default_rng(3).standard_normal(1000)
    assert 0.1 < overlap(scores, 1.0) < 0.6
    assert overlap(scores, 0.002) > 0.98
    assert overlap(scores, 1e-6) == 1.0
    assert overlap(scores, 1e-320) == 1.0
    scores[500] = 50.0
    assert overlap(scores, 0.03) > 0.85
    assert overlap(scores, 1e-4) > 0.99


def test_a_large_temperature_is_a_uniform_draw():
    scores = np.random.default_rng(3).standard_normal(1000)
    for temperature in (1e6, 1e300):
        assert overlap(scores, temperature) == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize("temperature", [0.3, 2.0])
@pytest.mark.parametrize("replacement", [False, True])
def test_the_first_row_has_the_probability_of_the_softmax(temperature, replacement):
    logits, trials, source = np.array([0.0, 1.0, -0.5, 0.3]), 4000, np.random.default_rng(0)
    expected = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    np.testing.assert_allclose(probabilities(logits, temperature), expected)
    firsts = [draw(logits, 1, replacement, source, temperature)[0] for _ in range(trials)]
    counts = np.bincount(firsts, minlength=4)
    assert ((counts - trials * expected) ** 2 / (trials * expected)).sum() < 16.3  # chi-square, p = 0.001


def test_equal_scores_are_drawn_evenly_at_any_temperature():
    for temperature in (1e-300, 1e-3, 1.0, 1e300):
        firsts = [draw(np.ones(4), 1, False, np.random.default_rng(s), temperature)[0] for s in range(400)]
        assert np.bincount(firsts, minlength=4).min() > 60


def test_differences_that_no_power_could_hold_keep_their_order():
    logits = np.array([0.0, -1e5, -2e5, -3e5, -np.inf])
    assert draw(logits, 4, False, np.random.default_rng(0)).tolist() == [0, 1, 2, 3]
    assert set(draw(logits, 50, True, np.random.default_rng(0))) == {0}
    assert draw(logarithms(np.array([0.0, 1e-320, 1.0])), 2, False, np.random.default_rng(0)).tolist() == [2, 1]


def test_clusters_far_below_the_best_still_give_by_their_scores():
    sizes = np.full(5, 10)
    for temperature in (1e-3, 1e-320):
        assert quotas(sizes, np.array([5.0, 1.0, 4.0, 2.0, 3.0]), 25, temperature).tolist() == [10, 0, 10, 0, 5]
    assert quotas(sizes, np.array([5.0, 1.0, 4.0, 2.0, 3.0]) * 1e-200, 25, 1e-3).tolist() == [10, 0, 10, 0, 5]
    assert quotas(sizes, np.zeros(5), 25, 1e-3).tolist() == [5] * 5


def test_a_sharp_focus_takes_the_focus_first_and_then_any_row():
    losses = np.arange(9.0)
    logits = focus_log_weights(losses, "low", 5.0, (1 / 3, 2 / 3))
    for temperature in (1e-6, 1e-320):
        firsts = [draw(logits, 9, False, np.random.default_rng(seed), temperature) for seed in range(40)]
        assert all(sorted(rows[:3]) == [0, 1, 2] for rows in firsts)
        assert all(sorted(rows) == list(range(9)) for rows in firsts)
        assert len({int(rows[3]) for rows in firsts}) > 3, "those outside of the focus are as likely as each other"


def test_scores_are_standardised_whatever_their_size():
    scores = np.array([1.0, 2.0, 4.0])
    expected = (scores - scores.mean()) / scores.std()
    for size in (1e-310, 1e-30, 1.0, 1e150, 1e307):
        np.testing.assert_allclose(standardised(scores * size), expected, rtol=1e-6)
    assert standardised(np.full(3, 0.1)).tolist() == [0, 0, 0]
    assert np.isfinite(standardised(np.array([-1.7e308, 1.7e308]))).all()
    close = standardised(np.array([1.0, 1.0 + 2**-52]))
    np.testing.assert_allclose(close, [-1, 1])


@pytest.mark.parametrize("temperature", [1e-320, 1e-45, 1e-6])
def test_other_softmaxes_take_the_greatest_at_a_tiny_temperature(temperature):
    assert softmax(np.array([1.0, 3.0, 2.0]), temperature).tolist() == [0, 1, 0]
    assert tempered(np.array([10.0, 30.0, 20.0]), temperature).tolist() == [0, 1, 0]
    weights = sample_weights(torch.tensor([1.0, 3.0, 2.2]), "extremes", temperature=temperature)
    assert weights.tolist() == [1.5, 1.5, 0]
    vectors = np.eye(3)[[0, 1, 0]]
    found = smoothed(vectors, np.zeros((3, 1), dtype=np.int64), np.array([0, 1]), np.array([[1.0], [2.0]]), temperature)
    assert found[:, 0].tolist() == [1, 2, 1]


def test_a_temperature_anneals_between_any_two_numbers():
    assert annealed(1e-300, 1e300, 0.5) == pytest.approx(1.0)
    assert annealed(2.0, 0.5, 0.5) == pytest.approx(1.0)
    assert (annealed(2.0, 0.5, 1.0), annealed(2.0, 0.5, -1.0)) == (0.5, pytest.approx(2.0))


# --- running averages


def test_an_update_fades_every_row_scored_or_not():
    running = RunningScores(1, decay=0.5)
    running.add(np.array([0]), [0], np.array([[1.0]]), rate=1.0)
    for _ in range(3):
        running.add(np.array([1]), [0], np.array([[0.0]]), rate=1.0)
    found = running.add(np.array([0]), [0], np.array([[0.0]]), rate=1.0)
    np.testing.assert_allclose(found, [[0.5**4 / (1 + 0.5**4)]])  # 0.059; 0.333 where only scored rows fade


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 1.0])
def test_averages_of_less_with_candidates_are_those_of_the_formula(decay, monkeypatch):
    selector = LessSelector(**run_objects(DATASET, TARGET), decay=decay, candidates=7)
    selector.bind("less", 3)
    terms: list[tuple[int, float, dict[int, float]]] = []
    monkeypatch.setattr(GradientScores, "scores", lambda self, model, rows: ordinary(len(terms))[rows][:, None])
    for update in range(12):
        rate = 1e-3 * (update + 1)
        seen = {}
        answer = selector.select(None, 10, 7, context=UpdateContext(update, 12, 10, 90, rate, None))
        for row in answer.indices.tolist():
            seen[row] = float(ordinary(update)[row])
        terms.append((update, rate, seen))
        for row, average in zip(answer.indices.tolist(), answer.scores, strict=True):
            own = [(decay ** (update - u) * r, found[row]) for u, r, found in terms if row in found]
            expected = math.fsum(w * s for w, s in own) / math.fsum(w for w, _ in own)
            assert average == pytest.approx(expected, rel=1e-9)


def test_one_score_that_is_no_number_does_not_spoil_the_average_of_a_row():
    running = RunningScores(1, decay=0.5)
    row = np.array([0])
    for value in (0.5, np.nan, np.inf, -np.inf):
        found = running.add(row, [0], np.array([[value]]), rate=1.0)
    np.testing.assert_allclose(found, [[0.5]])


def test_a_term_that_has_faded_to_nothing_is_forgotten_and_does_not_turn_into_noise():
    running = RunningScores(1, decay=0.1)
    running.add(np.array([0]), [0], np.array([[0.3]]), rate=1e-3)
    for _ in range(318):
        found = running.add(np.array([1]), [0], np.array([[0.2]]), rate=1e-3)
        np.testing.assert_allclose(found, [[0.2]])
    found = running.add(np.array([0]), [0], np.array([[0.7]]), rate=1e-3)
    np.testing.assert_allclose(found, [[0.7]])


def test_shares_of_any_size_are_shares():
    """The sum of two numbers of 1e308 is infinite, and both shares were 0."""
    manager = MixtureManager(("a", "b"), (10, 20), (1e308, 1e308), seed=1)
    assert manager.proportions.tolist() == [0.5, 0.5]
    curve = parse_curve([{"at": 0, "proportions": [1e308, 1e308]}], "linear", ("a", "b"))
    assert curve.value(0).tolist() == [0.5, 0.5]
