"""Forward passes alone find the rows whose gradients agree with the target's, and leave every weight as it was."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import DistributedType
from dataflex.core.context import UpdateContext
from dataflex.core.errors import ComponentError, ConfigError
from dataflex.core.kinds import SELECTOR
from dataflex.discovery.component_classes import find
from dataflex.scoring import RowPass
from dataflex.testing import TokenRows, pad_collate, tiny_batch, tiny_model
from dataflex_selectors.parts import forward_mode
from dataflex_selectors.parts.derivatives import METHODS, default_step, directional_derivatives
from dataflex_selectors.parts.weight_directions import Directions, moved
from dataflex_selectors.zeroth import ZerothSelector, influence_scores
from every_component import run_objects
from peft import LoraConfig, get_peft_model

# torch compiles its formulas of forward mode with a tool of its own that it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")


@pytest.fixture(scope="module")
def rows():
    return TokenRows(24, lengths=range(6, 24))


@pytest.fixture(scope="module")
def target():
    return TokenRows(5, lengths=range(6, 24), seed=5)


@pytest.fixture
def model():
    return tiny_model()


def without_labels(row):
    return {**row, "labels": [-100] * len(row["labels"])}


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def gradients(model, dataset):
    """The oracle: (N, d) gradients, each row alone, by a backward pass."""
    model.eval()
    found = []
    for row in dataset:
        grads = torch.autograd.grad(model(**tiny_batch([row]), use_cache=False).loss, trained(model))
        found.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(found).cpu().double().numpy()


def vector(model, seed, direction):
    return torch.cat([part.flatten() for part in Directions.of(model, seed).vector(direction)]).cpu().double().numpy()


def derivatives(model, dataset, method, directions=2, seed=3, **options):
    one_pass = RowPass(dataset, pad_collate, progress=False, **options.pop("rows", {}))
    found = directional_derivatives(model, one_pass, method=method, directions=directions, seed=seed, **options)
    return np.stack(list(found))


def build(dataset, target, name="zeroth", seed=7, accelerator=None, **params):
    selector = ZerothSelector(**run_objects(dataset, target, accelerator), **params)
    selector.bind(name, seed)
    return selector


def select(selector, model, count, update=0):
    context = UpdateContext(update, updates=9, step=10, total_steps=90, learning_rate=1e-3, optimizer=None)
    return selector.select(model, 10, count, context=context)


def bits(model):
    return {name: t.detach().clone() for name, t in model.state_dict().items()}


def same_bits(model, before):
    return all(torch.equal(t.view(torch.uint8), before[name].view(torch.uint8)) for name, t in bits(model).items())


def lora(model):
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    return adapted.eval()


def test_the_entry_point_leads_to_the_class():
    assert find(SELECTOR, "zeroth") is ZerothSelector


# --- directions


def test_directions_are_standard_normal_and_independent(model):
    one, other = (vector(model, 3, direction) for direction in (0, 1))
    assert abs(one.mean()) < 4 / np.sqrt(len(one))
    assert abs(one.std() - 1) < 4 / np.sqrt(len(one))
    assert abs(np.corrcoef(one, other)[0, 1]) < 4 / np.sqrt(len(one))


def test_two_parameters_of_one_shape_do_not_move_alike(model):
    parts = list(Directions.of(model, 3).vector(0))
    same = [part for part in parts if part.shape == parts[1].shape]
    assert len(same) > 1
    assert not torch.equal(same[0], same[1])


def test_a_direction_depends_on_the_seed_and_the_number_and_on_nothing_else(model):
    first = vector(model, 3, 0)
    torch.manual_seed(99)
    assert (vector(tiny_model(seed=1), 3, 0) == first).all()
    assert (vector(model, 4, 0) != first).any()
    assert (vector(model, 3, 1) != first).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moved_weights_are_moved_by_xi_and_come_back_bit_for_bit(model, dtype):
    model.to(dtype)
    before, drawn = bits(model), Directions.of(model, 3)
    xi = list(drawn.vector(0))
    with moved(drawn, 0, 0.5):
        for parameter, old, step in zip(drawn.parameters.values(), before.values(), xi, strict=True):
            assert torch.equal(parameter, (old.float() + 0.5 * step).to(dtype))
    assert same_bits(model, before)
    with pytest.raises(KeyboardInterrupt), moved(drawn, 0, 0.5):
        raise KeyboardInterrupt
    assert same_bits(model, before)


def test_only_trainable_weights_move(model):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("mlp" in name)
    before = bits(model)
    with moved(Directions.of(model, 3), 0, 0.5):
        changed = {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
    assert changed == {name for name, p in model.named_parameters() if p.requires_grad} != set()


def test_a_frozen_model_is_refused(model, rows):
    with pytest.raises(ComponentError, match="no parameter of the model requires a gradient"):
        derivatives(model.requires_grad_(False), rows, "jvp")


# --- derivatives


@pytest.mark.parametrize("adapt", [lambda model: model, lora], ids=["full", "lora"])
@pytest.mark.parametrize(("method", "tolerance"), [("jvp", 1e-4), ("finite_difference", 0.02)])
def test_derivatives_are_gradients_times_the_direction(model, rows, method, tolerance, adapt):
    model = adapt(model)
    exact = gradients(model, rows)
    found = derivatives(model, rows, method)
    for direction, values in enumerate(found):
        expected = exact @ vector(model, 3, direction)
        assert np.abs(values - expected).max() < tolerance * np.abs(expected).max()


def test_the_two_methods_agree_under_mixed_precision_with_a_wider_step(model, rows):
    accelerator = SimpleNamespace(
        mixed_precision="bf16",
        autocast=lambda: torch.autocast("cpu", torch.bfloat16),
        num_processes=1,
        process_index=0,
        device=torch.device("cpu"),
        distributed_type=DistributedType.NO,
    )
    found = {
        method: derivatives(model, rows, method, rows={"accelerator": accelerator})
        for method in ("jvp", "finite_difference")
    }
    exact = np.stack([gradients(model, rows) @ vector(model, 3, direction) for direction in range(2)])
    narrow = derivatives(model, rows, "finite_difference", rows={"accelerator": accelerator}, step=1e-4)
    for values in found.values():
        assert np.corrcoef(values.ravel(), exact.ravel())[0, 1] > 0.99
    assert np.corrcoef(narrow.ravel(), exact.ravel())[0, 1] < 0.9  # what the default for 16 bits is for


@pytest.mark.parametrize("method", METHODS)
def test_derivatives_do_not_depend_on_the_batching_and_follow_the_indices(model, rows, method):
    whole = derivatives(model, rows, method)
    np.testing.assert_allclose(derivatives(model, rows, method, rows={"token_budget": 1}), whole, rtol=0.02, atol=0.05)
    some = derivatives(model, rows, method, rows={"indices": [5, 0, 5]})
    np.testing.assert_allclose(some, whole[:, [5, 0, 5]], rtol=0.02, atol=0.05)


@pytest.mark.parametrize("method", METHODS)
def test_a_row_without_labels_has_no_derivative(model, rows, method):
    found = derivatives(model, [*rows, without_labels(rows[0])], method)
    assert np.isnan(found[:, -1]).all()
    assert np.isfinite(found[:, :-1]).all()


@pytest.mark.parametrize("method", METHODS)
def test_weights_gradients_modes_and_random_states_are_untouched(model, rows, method):
    model.train()
    before, states = bits(model), (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()))
    derivatives(model, rows, method)
    assert same_bits(model, before)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.modules())
    assert (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())) == states


@pytest.mark.parametrize("method", METHODS)
def test_weights_are_untouched_when_the_pass_fails(model, rows, method):
    before, calls = bits(model), 0

    def collate(batch):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError("the disk is gone")
        return pad_collate(batch)

    one_pass = RowPass(rows, collate, progress=False, token_budget=30)
    with pytest.raises(OSError, match="the disk is gone"):
        list(directional_derivatives(model, one_pass, method=method, directions=1, seed=0))
    assert same_bits(model, before)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_has_diverged_is_an_error_and_not_a_score(model, rows, method):
    with torch.no_grad():
        model.lm_head.weight[0, 0] = torch.nan
    before = bits(model)
    with pytest.raises(ComponentError, match="is NaN or infinite for 24 of 24 rows"):
        derivatives(model, rows, method)
    assert same_bits(model, before)


def test_weights_that_are_all_zero_have_a_step_too(rows):
    model = lora(tiny_model())
    with torch.no_grad():
        for parameter in trained(model):
            parameter.zero_()
    assert np.isfinite(derivatives(model, rows, "finite_difference")).all()


class NoForwardFormula(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, grad):
        return grad


def test_jvp_refuses_a_kernel_without_a_formula(model, rows):
    plain = model.model.norm.forward
    model.model.norm.forward = lambda x: NoForwardFormula.apply(plain(x))
    with pytest.raises(ComponentError, match=r"cannot be differentiated forward: .* -> set method: finite_difference"):
        derivatives(model, rows, "jvp")


def test_jvp_finds_out_a_kernel_that_drops_the_derivative(model, rows):
    """Forward mode sees a constant there, backward mode the right gradient: as some fused kernels are."""

    class Dropping(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x * 1

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, grad):
            return grad

        @staticmethod
        def jvp(ctx, tangent):
            return torch.zeros_like(tangent)

    for layer in model.model.layers:
        plain = layer.mlp.forward
        layer.mlp.forward = lambda x, plain=plain: Dropping.apply(plain(x))
    with pytest.raises(ComponentError, match="a kernel of the model drops the derivative -> set method: finite_diff"):
        derivatives(model, rows, "jvp", directions=4)


def test_jvp_is_not_taken_on_trust_where_the_gradient_it_is_compared_with_is_not_finite(model, rows):
    next(model.parameters()).register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(ComponentError, match=r"the gradient of row \d+ is NaN or infinite, .* -> set method: "):
        derivatives(model, rows, "jvp")


# --- scores


def test_the_inner_product_score_is_the_mean_over_directions():
    a = np.array([[1.0, 2.0, np.nan, 10.0, 30.0], [-1.0, 3.0, np.nan, 4.0, np.nan]])  # 3 pool rows, 2 target rows
    found = influence_scores(iter(a), np.array([0, 3, 5]), normalize=False)
    np.testing.assert_allclose(found, [(1 * 20 - 1 * 4) / 2, (2 * 20 + 3 * 4) / 2, np.nan])


def test_the_normalised_score_is_the_cosine():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((6, 9))
    found = influence_scores(iter(a), np.array([0, 5, 9]), normalize=True)
    b = a[:, 5:].mean(axis=1)
    expected = a[:, :5].T @ b / np.linalg.norm(a[:, :5], axis=0) / np.linalg.norm(b)
    np.testing.assert_allclose(found, expected)


def test_of_several_sets_the_best_counts():
    a = np.random.default_rng(0).standard_normal((6, 9))
    found = influence_scores(iter(a), np.array([0, 5, 7, 9]), normalize=True)
    one = influence_scores(iter(a[:, :7]), np.array([0, 5, 7]), normalize=True)
    other = influence_scores(iter(a[:, [0, 1, 2, 3, 4, 7, 8]]), np.array([0, 5, 7]), normalize=True)
    np.testing.assert_allclose(found, np.maximum(one, other))
    assert (one != other).all()


def test_a_row_that_does_not_move_scores_zero_and_one_without_labels_nothing():
    a = np.array([[0.0, np.nan, 2.0], [0.0, np.nan, 1.0]])
    np.testing.assert_array_equal(influence_scores(iter(a), np.array([0, 2, 3]), normalize=True), [0.0, np.nan])


def exact_influence(model, rows, target, normalize):
    g, v = gradients(model, rows), gradients(model, target).mean(axis=0)
    return g @ v / (np.linalg.norm(g, axis=1) * np.linalg.norm(v) if normalize else 1.0)


@pytest.mark.parametrize("normalize", [False, True])
def test_scores_come_nearer_to_the_exact_influence_with_more_directions(normalize):
    model = tiny_model(vocab_size=32, hidden=16, layers=1)
    near, far, target = (
        TokenRows(12, vocab_size=v, lengths=range(6, 24), seed=s) for v, s in ((8, 1), (32, 2), (8, 3))
    )
    rows = [*near, *far]
    expected = exact_influence(model, rows, target, normalize)
    correlations = []
    for directions in (1, 8, 64):
        found = []
        for seed in range(3):
            selector = build(rows, target, seed=seed, directions=directions, method="jvp", normalize=normalize)
            answer = select(selector, model, 24)
            found.append(np.corrcoef(answer.scores, expected[answer.indices])[0, 1])
        correlations.append(float(np.mean(found)))
    assert correlations == sorted(correlations)
    assert correlations[-1] > 0.85
    assert correlations[0] < 0.6  # one direction, as in the selector that this one comes from


def test_the_inner_product_is_estimated_without_bias():
    model = tiny_model(vocab_size=32, hidden=8, layers=1)
    rows, target = (TokenRows(n, vocab_size=32, lengths=12, seed=n) for n in (6, 2))
    expected = exact_influence(model, rows, target, normalize=False)
    answer = select(build(rows, target, directions=300, method="jvp", normalize=False), model, 6)
    lengths = np.linalg.norm(gradients(model, rows), axis=1) * np.linalg.norm(gradients(model, target).mean(axis=0))
    error = (answer.scores - expected[answer.indices]) / lengths[answer.indices] * np.sqrt(300)
    assert np.abs(error).max() < 4  # in standard deviations |g| |v| / sqrt(P), up to a factor of sqrt 2
    assert 0.2 < error.std() < 3


# --- the selector


@pytest.mark.parametrize("method", METHODS)
def test_a_row_like_the_target_comes_first(model, rows, target, method):
    pool = [*rows, target[0]]
    answer = select(build(pool, [target[0]], method=method), model, 5)
    assert answer.indices[0] == 24
    assert answer.scores[0] == pytest.approx(1.0, abs=1e-3)
    assert (np.diff(answer.scores) <= 0).all()


def test_both_methods_choose_the_same_rows(model, rows, target):
    one, other = (select(build(rows, target, method=method, directions=4), model, 24) for method in METHODS)
    np.testing.assert_allclose(one.scores[np.argsort(one.indices)], other.scores[np.argsort(other.indices)], atol=0.02)
    assert one.indices[:3].tolist() == other.indices[:3].tolist()


def test_selecting_leaves_the_weights_bit_for_bit_and_draws_nothing_globally(model, rows, target):
    before, states = bits(model), (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()))
    select(build(rows, target, directions=3), model, 5)
    assert same_bits(model, before)
    assert (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())) == states


def test_several_evaluation_sets_are_told_apart(model, rows):
    other = TokenRows(3, lengths=9, seed=8)
    answer = select(build(rows, {"one": [rows[4]], "two": [rows[17]], "other": other}, directions=32), model, 2)
    assert sorted(answer.indices) == [4, 17]


def test_selections_repeat_for_a_seed_and_change_with_the_update_and_the_seed(model, rows, target):
    first = select(build(rows, target, directions=2), model, 12, 1)
    again = select(build(rows, target, directions=2), model, 12, 1)
    assert (again.indices == first.indices).all()
    assert (again.scores == first.scores).all()
    assert (select(build(rows, target, directions=2), model, 12, 2).scores != first.scores).any()
    assert (select(build(rows, target, seed=8, directions=2), model, 12, 1).scores != first.scores).any()


def test_candidates_are_a_fresh_draw_at_each_update(model, rows, target):
    selector = build(rows, target, directions=1, candidates=6)
    pools = [set(select(selector, model, 6, update).indices.tolist()) for update in range(4)]
    assert all(len(pool) == 6 for pool in pools)
    assert len({frozenset(pool) for pool in pools}) > 1
    assert len(select(build(rows, target, directions=1, candidates=99), model, 24).indices) == 24


def test_every_row_has_a_score_of_its_own(model, rows, target):
    context = UpdateContext(0, updates=9, step=10, total_steps=90, learning_rate=1e-3, optimizer=None)
    found = build(rows, target, directions=2, candidates=3).scores(model, 10, context=context)
    answer = select(build(rows, target, directions=2), model, 24)
    np.testing.assert_array_equal(found[answer.indices], answer.scores)


def test_rows_without_labels_are_never_chosen(model, rows, target):
    pool = [without_labels(row) if i % 2 else row for i, row in enumerate(rows)]
    answer = select(build(pool, target, directions=1), model, 12)
    assert sorted(answer.indices) == list(range(0, 24, 2))
    with pytest.raises(
        ComponentError, match=r"13 rows are wanted, but only 12 of 24 have a score -> .*more candidates"
    ):
        select(build(pool, target, directions=1), model, 13)
    with pytest.raises(ComponentError, match=r"only 6 of 6 have a score -> .*more candidates"):
        select(build(rows, target, directions=1, candidates=6), model, 7)


def test_target_rows_without_labels_do_not_count_and_a_set_of_none_else_is_refused(model, rows, target):
    plain = select(build(rows, list(target), directions=2), model, 24)
    mixed = select(build(rows, [*target, without_labels(target[0])], directions=2), model, 24)
    np.testing.assert_allclose(mixed.scores, plain.scores, atol=1e-3)
    with pytest.raises(ConfigError, match="no row of the evaluation set 'eval' has a token with a label"):
        build(rows, [without_labels(target[0])], directions=2)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"directions": 0}, "directions of the zeroth selector: found 0, allowed: a whole number of at least 1"),
        ({"method": "jpv"}, r"method of the zeroth selector: found 'jpv', .* -> did you mean 'jvp'\?"),
        ({"step": 0}, "step of the zeroth selector: found 0, allowed: a number above 0, or null"),
        ({"normalize": 1}, "normalize of the zeroth selector: found 1, allowed: true, false"),
        ({"candidates": 0.5}, "candidates of the zeroth selector: found 0.5"),
        ({"token_budget": -1}, "token_budget of the zeroth selector: found -1"),
    ],
)
def test_parameters_out_of_range_are_refused(rows, target, params, message):
    with pytest.raises(ConfigError, match=message):
        build(rows, target, **params)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            None,
            "eval_dataset of the zeroth selector: the run has no evaluation set, .* -> set eval_dataset, or val_size",
        ),
        ({}, "the run has no evaluation set"),
        ({"a": [1], "b": []}, "the evaluation set 'b' has no rows"),
    ],
)
def test_a_run_without_a_target_is_refused_with_everything_else(rows, target, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build(rows, target, directions=0)
    assert "2 problems" in str(caught.value)


def engine(kind, stage=None):
    plugin = SimpleNamespace(zero_stage=stage)
    return SimpleNamespace(distributed_type=kind, state=SimpleNamespace(deepspeed_plugin=plugin))


@pytest.mark.parametrize(
    ("accelerator", "name"),
    [
        (engine(DistributedType.FSDP), "FSDP"),
        (engine(DistributedType.DEEPSPEED, 3), "DeepSpeed ZeRO-3"),
        (engine(DistributedType.MEGATRON_LM), "Megatron-LM"),
    ],
)
def test_engines_that_shard_weights_are_refused(rows, target, accelerator, name):
    with pytest.raises(ConfigError, match=f"engine of the zeroth selector: {name} shards the weights .* -> use DDP"):
        build(rows, target, accelerator=accelerator)


@pytest.mark.parametrize(
    "accelerator",
    [engine(DistributedType.NO), engine(DistributedType.MULTI_GPU), engine(DistributedType.DEEPSPEED, 2)],
)
def test_engines_with_whole_weights_are_not(rows, target, accelerator):
    assert build(rows, target, accelerator=accelerator).directions == 16


def test_the_defaults_of_the_step_are_the_documented_ones(model, rows):
    one_pass = RowPass(rows, pad_collate)
    assert default_step(model, one_pass) == 1e-3
    assert default_step(model.bfloat16(), one_pass) == 2e-2
    assert forward_mode._COMPARED >= 1


@pytest.mark.parametrize("adapt", [lambda model: model, lambda model: model.bfloat16()], ids=["fp32", "bf16"])
def test_a_step_whose_differences_are_rounding_is_said_and_the_defaults_are_not(rows, target, adapt, caplog):
    model = adapt(tiny_model())
    select(build(rows, target, directions=2), model, 12)
    assert "noise" not in caplog.text
    select(build(rows, target, directions=2, step=1e-9), model, 12)
    (said,) = [record.message for record in caplog.records if "noise" in record.message]
    default = "0.02" if model.dtype == torch.bfloat16 else "0.001"
    assert "zeroth: step 10: a step of 1e-09 of the weights moves losses of 4.8" in said
    assert f"use a larger step (the default here is {default})" in said


def test_a_step_in_32_bits_is_too_small_in_16(rows, target, caplog):
    select(build(rows, target, directions=2, step=1e-4), tiny_model(), 12)
    assert "noise" not in caplog.text
    select(build(rows, target, directions=2, step=1e-4), tiny_model().bfloat16(), 12)
    assert "noise" in caplog.text


def test_jvp_works_beside_the_hooks_of_gradient_checkpointing(model, rows):
    found = derivatives(model, rows, "jvp")
    model.enable_input_require_grads()
    assert derivatives(model, rows, "jvp").tolist() == found.tolist()
