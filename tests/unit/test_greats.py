"""GREATS picks as its authors' program does, from products that equal those of whole gradients."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from dataflex.core.context import RunAhead, UpdateContext
from dataflex.core.errors import ComponentError, ConfigError
from dataflex.core.kinds import SELECTOR
from dataflex.discovery.component_classes import find
from dataflex.scoring import RowPass, Sketch, TargetSet, influences, per_sample_gradients, target_means
from dataflex.scoring.gradients import overlaps
from dataflex.scoring.gradients.factors import factored, projected_size
from dataflex.scoring.gradients.overlaps import RowProducts, row_products
from dataflex.scoring.gradients.routes import gradient_routes
from dataflex.testing import TokenRows, pad_collate, tiny_batch
from dataflex_selectors import greats
from dataflex_selectors.greats import GreatsSelector, greedy_picks
from dataflex_selectors.parts.step_candidates import StepCandidates, candidates_of, step_sizes
from every_component import run_objects
from golden_numbers import golden_cases
from rank_group import on_ranks, one_thread
from test_gradients import all_at_once, lora
from test_influence import explicit, unit
from torch import nn

GOLDEN = {case["name"]: case for case in golden_cases("greats")}
GREEDY = [name for name, case in GOLDEN.items() if case["kind"] == "greedy"]
GHOST = [name for name, case in GOLDEN.items() if case["kind"] == "ghost"]
MORE = "more asked for than there are: index 0 is repeated"


def scores_before(influence_C: np.ndarray, overlap_CC: np.ndarray, count: int, rate: float) -> list[list[float]]:
    """The scores that each pick is made from, the authors' way: times the rate."""
    found = []
    for taken in range(count):
        picks, _ = greedy_picks(influence_C, overlap_CC, taken, rate)
        scores_C = rate * influence_C - rate**2 * overlap_CC[picks].sum(axis=0)
        scores_C[picks] = -np.inf
        found.append(scores_C.tolist())
    return found


@pytest.mark.parametrize("name", [name for name in GREEDY if name != MORE])
def test_the_authors_program_picks_the_same_rows_by_the_same_scores(name):
    case = GOLDEN[name]
    expected, rate = case["outputs"], case["params"]["learning_rate"]
    influence_C = np.array(case["inputs"]["candidate_by_eval"]).mean(axis=1)
    overlap_CC = np.array(case["inputs"]["candidate_by_candidate"])
    np.testing.assert_allclose(influence_C, expected["mean_over_eval"], rtol=1e-9, atol=1e-12)
    picks, found = greedy_picks(influence_C, overlap_CC, expected["num_selected"], rate)
    assert picks.tolist() == expected["selected_in_order"]
    before = np.array([[float(score) for score in row] for row in expected["scores_before_each_pick"]])
    assert len(before) == len(picks)
    if len(picks):
        made = scores_before(influence_C, overlap_CC, len(picks), rate)
        np.testing.assert_allclose(made, before, rtol=1e-8, atol=1e-11)
        np.testing.assert_allclose(rate * found, before[np.arange(len(picks)), picks], rtol=1e-8, atol=1e-11)


def test_no_row_is_picked_twice_where_the_authors_repeat_the_first():
    case = GOLDEN[MORE]
    influence_C = np.array(case["inputs"]["candidate_by_eval"]).mean(axis=1)
    picks, _ = greedy_picks(influence_C, np.array(case["inputs"]["candidate_by_candidate"]), 5, 0.1)
    assert case["outputs"]["selected_in_order"] == [0, 1, 2, 0, 0]
    assert picks.tolist() == [0, 1, 2]


@pytest.mark.parametrize("fracinv", [1.0, 1.5, 2.0, 2.5, 3.0, 4.0])
def test_the_candidates_of_a_step_are_those_of_which_the_authors_keep_a_step(fracinv):
    """Their int(n / fracinv) of our n candidates is the step again."""
    for rows in range(1, 60):
        assert int(candidates_of(rows, fracinv) / fracinv + 1e-9) == rows
    assert candidates_of(10, 1.1) == 11


class Adapted(nn.Module):
    """y = W x + scale B A x, of which A and B are trained."""

    def __init__(self, weights: dict, scale: float) -> None:
        super().__init__()
        made = {name: torch.tensor(values, dtype=torch.float64) for name, values in weights.items()}
        self.base, self.a, self.b = (nn.Linear(*m.T.shape, bias=False, dtype=m.dtype) for m in made.values())
        for layer, values in zip((self.base, self.a, self.b), made.values(), strict=True):
            layer.weight.data = values
        self.base.requires_grad_(False)
        self.scale = scale

    def forward(self, x):
        return self.base(x) + self.scale * self.b(self.a(x))


class TwoLayers(nn.Module):
    """logits = layer2(tanh(layer1(embedding[id])))."""

    def __init__(self, inputs: dict, scale: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(torch.tensor(inputs["embedding"], dtype=torch.float64))
        self.layer1, self.layer2 = (Adapted(inputs[name], scale) for name in ("layer1", "layer2"))

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        return {"logits": self.layer2(torch.tanh(self.layer1(self.embedding(input_ids))))}


def listed(batch: dict) -> list[dict]:
    """Rows without their padding."""
    rows = []
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        rows.append({"input_ids": ids[: sum(mask)], "attention_mask": mask[: sum(mask)], "labels": labels[: sum(mask)]})
    return rows


@pytest.mark.parametrize("name", GHOST)
@pytest.mark.parametrize("budget", [8, 1000])
def test_the_authors_products_of_a_lora_model_are_ours_over_the_squared_factor(name, budget):
    """The authors leave alpha / r out of the gradients of A and B: their products are the true ones over its square."""
    case = GOLDEN[name]
    scale = case["params"]["lora_alpha"] / case["params"]["lora_r"]
    model = TwoLayers(case["inputs"], scale).eval()
    train, target = (listed(case["inputs"][part]) for part in ("train", "eval"))
    rows = RowPass(train, pad_collate, token_budget=budget, progress=False)
    with per_sample_gradients(model) as gradients:
        mean = target_means(gradients, model, [TargetSet("target", target)], rows, normalised=False)
        found = row_products(gradients, model, mean, rows, [len(train)])
    expected = case["outputs"]
    np.testing.assert_allclose(found.target / scale**2, expected["mean_over_eval"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.overlaps[0] / scale**2, expected["candidate_by_candidate"], rtol=1e-5, atol=1e-6)
    rate = case["params"]["learning_rate"]
    picks, scores = greedy_picks(found.target / scale**2, found.overlaps[0] / scale**2, expected["num_selected"], rate)
    assert picks.tolist() == expected["selected_in_order"]
    before = np.array([[float(score) for score in row] for row in expected["scores_before_each_pick"]])
    np.testing.assert_allclose(rate * scores, before[np.arange(len(picks)), picks], rtol=2e-5, atol=1e-6)


def test_no_golden_case_is_left_out():
    assert len(GREEDY) + len(GHOST) == len(GOLDEN) == 19


# --- picking


def brute_force(influence_C, overlap_CC, count, rate) -> list[int]:
    """The oracle: at each pick the whole objective of the set with each row that is left, up to a row's own term."""
    chosen: list[int] = []
    for _ in range(count):
        gains = {
            row: influence_C[row] - rate * sum(overlap_CC[row, other] for other in chosen)
            for row in range(len(influence_C))
            if row not in chosen
        }
        chosen.append(max(gains, key=lambda row: (gains[row], -row)))
    return chosen


def test_picks_are_those_of_the_objective_row_by_row():
    generator = np.random.default_rng(4)
    for trial in range(40):
        vectors = generator.normal(size=(12, 5))
        influence_C, overlap_CC = vectors @ generator.normal(size=5), vectors @ vectors.T
        rate = [0.0, 0.01, 0.3, 2.0][trial % 4]
        picks, _ = greedy_picks(influence_C, overlap_CC, 6, rate)
        assert picks.tolist() == brute_force(influence_C, overlap_CC, 6, rate)


def test_a_rate_of_zero_ranks_by_influence_where_the_authors_scores_are_all_zero():
    influence_C = np.array([0.1, 0.5, -0.2, 0.5, 0.4])
    assert greedy_picks(influence_C, np.ones((5, 5)), 3, 0.0)[0].tolist() == [1, 3, 4]


def test_a_row_without_an_influence_is_never_picked():
    influence_C = np.array([np.nan, -3.0, -1.0, np.nan])
    overlap_CC = np.full((4, 4), np.nan)
    overlap_CC[1:3, 1:3] = [[1.0, 0.5], [0.5, 1.0]]
    picks, scores = greedy_picks(influence_C, overlap_CC, 4, 0.1)
    assert picks.tolist() == [2, 1]
    np.testing.assert_allclose(scores, [-1.0, -3.05])
    assert greedy_picks(np.array([np.nan]), np.ones((1, 1)), 1, 0.1)[0].tolist() == []


def test_a_copy_of_a_row_that_is_taken_gives_way_to_another():
    vectors = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.9]])
    influence_C, overlap_CC = vectors @ np.ones(2), vectors @ vectors.T
    assert greedy_picks(influence_C, overlap_CC, 2, 0.0)[0].tolist() == [0, 1]
    assert greedy_picks(influence_C, overlap_CC, 2, 0.5)[0].tolist() == [0, 2]


# --- candidates


def test_steps_share_the_rows_of_a_stretch():
    assert step_sizes(24, 3, 8) == [8, 8, 8]
    assert step_sizes(10, 3, 8) == [4, 3, 3]  # of one source of a mixture
    assert step_sizes(2, 3, 8) == [1, 1]
    assert step_sizes(50, 3, 8) == [8, 7, 7, 7, 7, 7, 7]  # of a filter, which keeps more than its steps train on
    assert step_sizes(0, 3, 8) == []


def test_each_step_has_rows_of_its_own_and_a_pass_has_each_row_once():
    dealt = StepCandidates(TokenRows(40, lengths=8), 7, "key")
    nothing = np.empty(0, dtype=np.int64)
    passed = [dealt.draw(8, nothing) for _ in range(5)]
    assert sorted(np.concatenate(passed)) == list(range(40))
    second = np.concatenate([dealt.draw(8, nothing) for _ in range(5)])
    assert sorted(second) == list(range(40))
    assert second.tolist() != np.concatenate(passed).tolist()


@pytest.mark.parametrize("size", [1, 5, 7, 23])
@pytest.mark.parametrize("position", [0, 3, 22])
def test_what_was_chosen_is_passed_over_and_all_others_are_found(size, position):
    rows = [TokenRows(23, lengths=8)[i] for i in range(23)]
    for row in rows[::5]:
        row["labels"] = [-100] * 8
    dealt = StepCandidates(rows, 7, "key")
    dealt.position = position
    chosen = np.array([1, 2, 3, 6])
    left = sorted(set(range(23)) - set(range(0, 23, 5)) - set(chosen.tolist()))
    for _ in range(6):
        found = dealt.draw(size, chosen)
        assert len(set(found.tolist())) == len(found) == min(size, len(left))
        assert set(found.tolist()) <= set(left)
    assert sorted(dealt.draw(100, chosen)) == left
    assert dealt.draw(1, np.arange(23)).tolist() == []


def test_a_position_says_what_comes_next():
    first, second = (StepCandidates(TokenRows(23, lengths=8), 7, "key") for _ in range(2))
    nothing = np.empty(0, dtype=np.int64)
    for _ in range(4):
        first.draw(7, nothing)
    second.position = first.position
    assert [second.draw(5, nothing).tolist() for _ in range(3)] == [first.draw(5, nothing).tolist() for _ in range(3)]


# --- products


@pytest.fixture(scope="module")
def rows() -> TokenRows:
    return TokenRows(24, vocab_size=64, lengths=range(4, 16), seed=2)


@pytest.fixture(scope="module")
def target() -> TokenRows:
    return TokenRows(6, vocab_size=64, lengths=range(4, 16), seed=3)


@pytest.fixture(scope="module")
def model():
    return lora()


def whole(model, dataset) -> torch.Tensor:
    return explicit(all_at_once(model, dataset)).cpu()


def products(model, rows, target, lots, budget=64, sketch_dim=None, **options):
    how = RowPass(rows, pad_collate, token_budget=budget, progress=False)
    with per_sample_gradients(model) as gradients:
        mean = target_means(gradients, model, [TargetSet("target", target)], how, normalised=False)
        sketch = None
        if sketch_dim is not None:
            sketch = Sketch([route.size for route in gradients.routes], sketch_dim, 3, mean[0].device)
        return row_products(gradients, model, mean, how, lots, sketch=sketch, **options)


@pytest.mark.parametrize("budget", [20, 64, 10_000])
@pytest.mark.parametrize("part", [None, 100])
def test_products_are_those_of_whole_gradients_whatever_the_batches_and_parts(
    model, rows, target, budget, part, monkeypatch
):
    if part is not None:
        monkeypatch.setattr(overlaps, "_PART_NUMBERS", part)
    vectors = whole(model, rows)
    found = products(model, rows, target, [10, 1, 13], budget)
    np.testing.assert_allclose(found.target, vectors @ whole(model, target).mean(0), rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(found.norms, vectors.norm(dim=1), rtol=1e-5)
    for products_CC, own in zip(found.overlaps, torch.split(vectors, [10, 1, 13]), strict=True):
        np.testing.assert_allclose(products_CC, own @ own.T, rtol=2e-5, atol=1e-5 * float((own @ own.T).max()))


def test_sketched_overlaps_are_off_by_what_is_said_and_the_target_by_nothing(model, rows, target):
    dim = 512
    exact, found = products(model, rows, target, [24]), products(model, rows, target, [24], sketch_dim=dim)
    np.testing.assert_allclose(found.target, exact.target, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.norms, exact.norms, rtol=1e-6)
    lengths = np.outer(exact.norms, exact.norms)
    cosines = exact.overlaps[0] / lengths
    errors = (found.overlaps[0] - exact.overlaps[0]) / lengths / np.sqrt((1 + cosines**2) / dim)
    assert 0.3 < errors.std() < 1.5
    assert abs(errors.mean()) < 0.5


def test_the_numbers_that_a_projection_leaves_are_known_before():
    model = lora()
    routes = gradient_routes(model)
    for dim in (2, 4, 8, 100):
        made, _ = factored(routes, dim, 0, torch.device("cpu"))
        assert [projected_size(route.shape, dim) for route in routes] == [route.size for route in made]
    assert [projected_size(route.shape, None) for route in routes] == [route.size for route in routes]


# --- the selector


def selector(dataset, target, tmp_path, accelerator=None, **params) -> GreatsSelector:
    made = GreatsSelector(**run_objects(dataset, target, accelerator, folder=tmp_path), **{"token_budget": 64} | params)
    made.bind("greats", 7)
    return made


def context(update: int = 0, steps: int = 2, rows: int = 4, rate: float = 1e-3, optimizer=None) -> UpdateContext:
    return UpdateContext(update, 5, 10 * (update + 1), 60, rate, optimizer, steps=steps, step_rows=rows)


def select(made, model, count, **kwargs):
    return made.select(model, 10, count, context=context(**kwargs))


def expected_rows(vectors, mean, made, sizes, rate) -> list[int]:
    """The oracle: whole gradients, and the objective row by row."""
    dealt = StepCandidates(made.dataset, made.seed, "GreatsSelector", made.name, "candidates")
    chosen: list[int] = []
    for size in sizes:
        candidates = dealt.draw(candidates_of(size, made.ratio), np.array(chosen, dtype=np.int64))
        own = vectors[candidates].numpy()
        picked = brute_force(own @ mean.numpy(), own @ own.T, size, rate)
        chosen += candidates[picked].tolist()
    return chosen


def test_the_entry_point_leads_to_the_class():
    assert find(SELECTOR, "greats") is GreatsSelector


@pytest.mark.parametrize("rate", [None, 0.0, 0.5, 20.0])
@pytest.mark.parametrize("normalize", [False, True])
def test_each_step_takes_the_rows_of_the_objective_from_its_own_candidates(
    model, rows, target, tmp_path, rate, normalize
):
    made = selector(rows, target, tmp_path, rate=rate, normalize=normalize)
    found = select(made, model, 8)
    vectors, aims = whole(model, rows), whole(model, target)
    if normalize:
        vectors, aims = unit(vectors), unit(aims)
    expected = expected_rows(vectors, aims.mean(0), made, [4, 4], 1e-3 if rate is None else rate)
    assert list(found.indices) == expected
    scored, influence = found.candidates
    assert len(scored) == 16
    np.testing.assert_allclose(influence, vectors[scored] @ aims.mean(0), rtol=1e-4, atol=1e-6)
    assert found.scores[0] == pytest.approx(float(vectors[expected[0]] @ aims.mean(0)), rel=1e-4)


def test_the_overlap_counts_by_the_learning_rate_of_the_step(model, rows, target, tmp_path):
    by_rate = select(selector(rows, target, tmp_path, rate=0.7), model, 8)
    found = select(selector(rows, target, tmp_path), model, 8, rate=0.7)
    np.testing.assert_array_equal(found.indices, by_rate.indices)
    np.testing.assert_array_equal(found.scores, by_rate.scores)


def test_rows_of_several_sets_count_alike(model, rows, target, tmp_path):
    parts = {"a": [target[0]], "b": [target[i] for i in range(1, 6)]}
    apart, together = (select(selector(rows, aim, tmp_path), model, 8) for aim in (parts, target))
    assert list(apart.indices) == list(together.indices)
    np.testing.assert_allclose(apart.scores, together.scores, rtol=1e-5)


def test_target_rows_are_drawn_afresh_for_each_step(model, rows, target, tmp_path):
    found = select(selector(rows, target, tmp_path, eval_rows=2), model, 8)
    scored, influence = found.candidates
    vectors, aims = whole(model, rows), whole(model, target)
    pairs = {pair: aims[list(pair)].mean(0) for pair in itertools.combinations(range(6), 2)}

    def pair_of(chosen) -> set:
        places = np.searchsorted(scored, chosen)
        off = {
            pair: float(np.abs((vectors[chosen] @ mean).numpy() - influence[places]).max())
            for pair, mean in pairs.items()
        }
        return {min(off, key=off.__getitem__)} if min(off.values()) < 1e-5 else set()

    first, second = pair_of(found.indices[:4]), pair_of(found.indices[4:])
    assert first
    assert second
    assert first != second
    every = select(selector(rows, target, tmp_path, eval_rows=100), model, 8)
    np.testing.assert_allclose(every.scores, select(selector(rows, target, tmp_path), model, 8).scores, rtol=1e-5)


@pytest.mark.parametrize("eval_rows", [None, 3])
def test_adam_and_projections_together_are_scored_as_a_step_each(rows, target, tmp_path, eval_rows):
    """A projection takes Adam's scale in: target rows must be plain at each step, also where they are drawn anew."""
    model = lora()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    model(**tiny_batch([rows[0], rows[1]])).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    params = {"gradient_type": "adam", "factor_dim": 4, "eval_rows": eval_rows}
    at_once = select(selector(rows, target, tmp_path, **params), model, 8, optimizer=optimizer)
    one = selector(rows, target, tmp_path, **params)
    assert np.isfinite(at_once.scores).all()
    if eval_rows is None:  # the second step of a stretch is what a stretch of one step at the same place gives
        first = select(one, model, 4, steps=1, optimizer=optimizer)
        assert list(at_once.indices[:4]) == list(first.indices)
        np.testing.assert_allclose(at_once.scores[:4], first.scores, rtol=1e-5)
        second = select(one, model, 4, steps=1, optimizer=optimizer)
        if not set(second.indices) & set(first.indices):
            np.testing.assert_allclose(at_once.scores[4:], second.scores, rtol=1e-5)


def test_scores_are_the_influence_of_every_row(model, rows, target, tmp_path):
    vectors, aims = whole(model, rows), whole(model, target)
    found = selector(rows, target, tmp_path).scores(model, 10, context=context())
    np.testing.assert_allclose(found, vectors @ aims.mean(0), rtol=1e-4, atol=1e-6)
    found = selector(rows, target, tmp_path, normalize=True).scores(model, 10, context=context())
    np.testing.assert_allclose(found, unit(vectors) @ unit(aims).mean(0), rtol=1e-4, atol=1e-6)


def test_all_rows_may_be_asked_for_none_twice(model, rows, target, tmp_path):
    found = select(selector(rows, target, tmp_path), model, 24, steps=6)
    assert sorted(found.indices) == list(range(24))


def test_rows_without_a_label_are_no_candidates(model, target, tmp_path):
    rows = [TokenRows(8, vocab_size=64, seed=5)[i] for i in range(8)]
    for row in (rows[2], rows[5]):
        row["labels"] = [-100] * len(row["labels"])
    made = selector(rows, target, tmp_path)
    assert sorted(select(made, model, 6, steps=3, rows=2).indices) == [0, 1, 3, 4, 6, 7]
    with pytest.raises(ComponentError, match="wanted, but only 2 of 8 have a label and are not taken yet"):
        select(made, model, 7, steps=1, rows=4)
    with pytest.raises(ComponentError, match="7 rows are wanted, but only 6 of 8 have a label"):
        made.check_run(model, RunAhead(1, 2, 7, 4))


def test_a_resumed_selector_goes_on_with_the_rows_that_come_next(model, rows, target, tmp_path):
    made = selector(rows, target, tmp_path)
    select(made, model, 4, steps=1)
    again = selector(rows, target, tmp_path)
    again.load_state_dict(made.state_dict())
    assert again.state_dict() == made.state_dict() == {"position": 8}
    found, expected = (select(each, model, 4, steps=1, update=1) for each in (again, made))
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.scores, expected.scores)


def test_more_numbers_than_are_kept_of_a_step_are_refused_with_what_sketches_them(
    model, rows, target, tmp_path, monkeypatch
):
    monkeypatch.setattr(greats, "MOST_KEPT", 5000)
    ahead = RunAhead(1, 2, 8, 4)
    with pytest.raises(
        ComponentError, match=r"candidates of a step are 8 rows, of [\d,]+ numbers each.*proj_dim: 8192"
    ):
        selector(rows, target, tmp_path).check_run(model, ahead)
    selector(rows, target, tmp_path, proj_dim=600).check_run(model, ahead)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"ratio": 0.5}, "ratio of the greats selector: found 0.5, allowed: a number of at least 1"),
        (
            {"rate": -1},
            "rate of the greats selector: found -1, allowed: a number of at least 0, or null for the learning",
        ),
        ({"eval_rows": 0}, "eval_rows of the greats selector: found 0, .*null for all"),
        ({"normalize": "yes"}, "normalize of the greats selector"),
        ({"gradient_type": "adamw"}, "gradient_type of the greats selector"),
        ({"proj_dim": 0}, "proj_dim of the greats selector"),
    ],
)
def test_bad_parameters_are_named(params, words, rows, target, tmp_path):
    with pytest.raises(ConfigError, match=words):
        selector(rows, target, tmp_path, **params)


def test_no_evaluation_set_is_refused(rows, tmp_path):
    with pytest.raises(ConfigError, match=r"no evaluation set.*val_size"):
        selector(rows, None, tmp_path)


def work(accelerator, folder):
    """Rows and scores of two updates on a rank."""
    rows, target = (TokenRows(n, vocab_size=64, lengths=range(4, 16), seed=n) for n in (20, 5))
    torch.manual_seed(0)
    found, model = {}, lora()
    for name, params in {"all": {"rate": 3.0}, "drawn": {"eval_rows": 2}, "sketched": {"proj_dim": 64}}.items():
        made = selector(rows, target, folder, accelerator, **params)
        for update in range(2):
            answer = select(made, model, 6, rows=3, update=update)
            found |= {f"{name} {update} rows": answer.indices, f"{name} {update} scores": answer.scores}
    return found


def test_two_ranks_pick_as_one_does(tmp_path):
    with one_thread():
        alone = work(Accelerator(cpu=True), tmp_path)
    both = on_ranks(work, 2, tmp_path)
    for key, expected in alone.items():
        for found in both:
            np.testing.assert_allclose(found[key], expected, rtol=1e-4, atol=1e-7, err_msg=key)
        np.testing.assert_array_equal(both[0][key], both[1][key], err_msg=key)


def test_rows_that_nothing_is_learnt_from_any_more_have_products_of_zero_and_are_no_rows_without_a_label():
    """With NaN in place of 0, a step of which nothing is left to learn would stop the run for want of rows."""
    model = lora()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # at 0 and frozen: nothing reaches lora_A
            parameter.data.zero_()
            parameter.requires_grad_(False)
    rows = [TokenRows(4, vocab_size=64, seed=5)[i] for i in range(4)]
    rows[1]["labels"] = [-100] * len(rows[1]["labels"])
    how = RowPass(rows, pad_collate, token_budget=64, progress=False)
    with per_sample_gradients(model) as gradients:
        mean = [torch.ones(1, route.size, device=model.device) for route in gradients.routes]
        found = row_products(gradients, model, mean, how, [4])
        influence_NJ = influences(gradients, model, mean, how, normalised=False)
        cosine_NJ = influences(gradients, model, mean, how)
    np.testing.assert_array_equal(found.target, [0, np.nan, 0, 0])
    np.testing.assert_array_equal(found.norms, [0, np.nan, 0, 0])
    np.testing.assert_array_equal(influence_NJ[:, 0], [0, np.nan, 0, 0])
    assert np.isnan(cosine_NJ).all()


def test_a_row_whose_step_has_no_length_is_a_candidate_like_others(rows, target, tmp_path):
    """Divided by its length, it would have no influence, and a step could run out of rows."""
    made = selector(rows, target, tmp_path, normalize=True)
    products = RowProducts(np.array([0.0, 2.0, np.nan]), np.array([0.0, 4.0, np.nan]), [np.diag([0.0, 16.0, 0.0])])
    influence_C, picks, found = made._picked(products, 3, 0.1)
    np.testing.assert_array_equal(influence_C, [0.0, 0.5, np.nan])
    assert (picks.tolist(), found.tolist()) == ([1, 0], [0.5, 0.0])
