"""coincide: the numbers of both programs, what goes wrong in them, and a run with it."""

from __future__ import annotations

import logging
import tracemalloc
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from dataflex.core.context import RunAhead, UpdateContext
from dataflex.core.errors import ComponentError, ConfigError
from dataflex.model.hidden_states import hidden_states_of_layers
from dataflex.scoring.layer_embeddings import layer_embeddings, pool_layers
from dataflex.testing import TokenRows, pad_collate, tiny_model
from dataflex_selectors.coincide import VARIANTS, CoincideSelector, concepts_of, spread_layers
from dataflex_selectors.parts.concept_shares import (
    TOO_ALIKE,
    counts_by_remainder,
    counts_in_turn,
    shares_of_rest,
    softmax,
    transferability,
)
from dataflex_selectors.parts.mean_discrepancy import KernelGroup, gaussian_kernel, greedy_order
from every_component import run_objects
from golden_numbers import golden_cases

CASES = golden_cases("coincide")


def of_kind(kind: str) -> list[Any]:
    return [pytest.param(case, id=case["name"]) for case in CASES if case["kind"] == kind]


def groups(cluster_ids: np.ndarray) -> list[np.ndarray]:
    return [np.flatnonzero(cluster_ids == cluster) for cluster in range(cluster_ids.max() + 1)]


@pytest.mark.parametrize("case", of_kind("official_transferability"))
def test_transferability_is_that_of_the_authors_program(case: Mapping[str, Any]):
    centroids = np.asarray(case["inputs"]["centroids"], dtype=case["dtype"])
    found = transferability(centroids[:, :, 1].reshape(len(centroids), -1), TOO_ALIKE)
    expected = np.asarray(case["outputs"]["transferability"], dtype=np.float64)
    if case["name"] != "all_masked_gives_nan":
        assert found == pytest.approx(expected, rel=1e-6 if case["dtype"] == "float32" else 1e-9)


def test_clusters_too_alike_have_the_mean_of_all_others_and_no_nan_as_the_authors_program():
    (case,) = [case for case in CASES if case["name"] == "all_masked_gives_nan"]
    centroids = np.asarray(case["inputs"]["centroids"])
    text = centroids[:, :, 1].reshape(len(centroids), -1)
    assert case["outputs"]["transferability"] == ["nan"] * 3
    found = transferability(text, TOO_ALIKE)
    assert np.isfinite(found).all()
    assert found == pytest.approx(transferability(text, None))
    assert found.min() > TOO_ALIKE


def test_transferability_does_not_depend_on_the_blocks_of_clusters(monkeypatch):
    centroids = np.random.default_rng(0).normal(size=(23, 3))
    whole = [transferability(centroids, alike) for alike in (TOO_ALIKE, None)]
    monkeypatch.setattr("dataflex_selectors.parts.concept_shares._CELLS", 60)
    assert np.allclose([transferability(centroids, alike) for alike in (TOO_ALIKE, None)], whole, rtol=1e-12)


def test_a_single_cluster_has_no_transferability():
    assert transferability(np.ones((1, 4)), TOO_ALIKE).tolist() == [0.0]
    assert transferability(np.ones((1, 4)), None).tolist() == [0.0]


@pytest.mark.parametrize("case", of_kind("official_prune"))
def test_shares_and_rows_are_those_of_the_authors_program(case: Mapping[str, Any]):
    vectors, labels = np.asarray(case["inputs"]["embeddings"]), np.asarray(case["inputs"]["cluster_ids"])
    params, out = case["params"], case["outputs"]
    kernels = [KernelGroup(vectors[own], params["gamma"]) for own in groups(labels)]
    density = np.array([kernel.density(with_itself=True) for kernel in kernels])
    assert density == pytest.approx(out["density"], rel=1e-9)
    values = np.asarray(case["inputs"]["transferability"]) / density
    assert softmax(values / params["temp"]) == pytest.approx(out["shares_initial"], rel=1e-9)
    counts, order = counts_in_turn(values / params["temp"], np.bincount(labels), out["target_total"])
    assert order.tolist() == out["cluster_order"]
    assert values[order] == pytest.approx(out["score_in_cluster_order"], rel=1e-9)
    if sum(out["count_per_cluster"]) == out["target_total"]:
        assert counts.tolist() == out["count_per_cluster"]
    chosen, squares = [], []
    for cluster in order:
        own, count = groups(labels)[cluster], out["count_per_cluster"][cluster]
        turns = greedy_order(kernels[cluster], count, squares.append if count < len(own) else None)
        whole = count == len(own) and round_wanted(out, cluster) > len(own)
        chosen += own.tolist() if whole else own[turns].tolist()
    if out["smallest_gap"] > 1e-9:
        assert sorted(chosen) == out["selected_sorted"]


def round_wanted(out: Mapping[str, Any], cluster: int) -> int:
    """Returns how many rows the authors' program asks a cluster for."""
    place = out["cluster_order"].index(cluster)
    before = sum(out["count_per_cluster"][earlier] for earlier in out["cluster_order"][:place])
    return round((out["target_total"] - before) * out["share_when_used_in_cluster_order"][place])


def test_all_rows_come_that_are_asked_for_where_the_authors_program_falls_short():
    (case,) = [case for case in CASES if case["name"] == "fraction_one_falls_short"]
    out, labels = case["outputs"], np.asarray(case["inputs"]["cluster_ids"])
    assert sum(out["count_per_cluster"]) == 9 < out["target_total"] == 10
    values = np.asarray(out["score_in_cluster_order"])[np.argsort(out["cluster_order"])]
    counts, _ = counts_in_turn(values, np.bincount(labels), out["target_total"])
    assert counts.tolist() == np.bincount(labels).tolist()


@pytest.mark.parametrize("count", [counts_by_remainder, lambda *given: counts_in_turn(*given)[0]])
def test_a_share_of_e_to_the_thousand_does_not_overflow_as_in_the_authors_program(count):
    assert count(np.array([1000.0, 10.0, 900.0]), np.array([5, 5, 5]), 12).tolist() == [5, 2, 5]
    assert count(np.array([0.0, 0.0]), np.array([0, 3]), 2).tolist() == [0, 2]


@pytest.mark.parametrize("count", [counts_by_remainder, lambda *given: counts_in_turn(*given)[0]])
def test_the_counts_always_sum_to_what_is_asked_for(count):
    generator = np.random.default_rng(3)
    for _ in range(200):
        room = generator.integers(0, 9, generator.integers(1, 7))
        total = int(generator.integers(0, room.sum() + 1))
        found = count(generator.normal(size=len(room)) * 4, room, total)
        assert found.sum() == total
        assert (found >= 0).all()
        assert (found <= room).all()


@pytest.mark.parametrize("spread", [0.0, 1.0, 300.0, 1e4, 1e12])
def test_the_share_of_each_cluster_among_those_after_it_is_that_of_a_softmax_of_its_own(spread):
    scores = np.sort(np.random.default_rng(0).random(200) * spread)[::-1]
    expected = [softmax(scores[place:])[0] for place in range(len(scores))]
    np.testing.assert_allclose(shares_of_rest(scores), expected, rtol=1e-12)
    if not spread:  # halves are rounded to even, so equal clusters must have 1 / n, and nothing above it
        np.testing.assert_array_equal(shares_of_rest(scores), expected)


@pytest.mark.parametrize("case", of_kind("official_greedy"))
def test_the_greedy_choice_is_that_of_the_authors_program(case: Mapping[str, Any]):
    vectors, out = np.asarray(case["inputs"]["features"]), case["outputs"]
    sigma, m = case["params"]["sigma"], case["params"]["m"]
    assert gaussian_kernel(vectors, vectors, sigma) == pytest.approx(np.asarray(out["kernel"]), abs=1e-9)
    squares: list[float] = []
    group = KernelGroup(vectors, sigma)
    assert group.density(with_itself=True) == pytest.approx(out["kernel_mean"], rel=1e-9)
    assert greedy_order(group, m, squares.append).tolist() == out["selected_in_order"]
    assert squares == pytest.approx(out["mmd_squared_at_each_choice"], rel=1e-8)


@pytest.mark.parametrize("case", of_kind("dataflex_select"))
def test_clusters_and_rows_are_those_of_opendcai(case: Mapping[str, Any]):
    vectors = np.asarray(case["inputs"]["features"], dtype=np.float32)
    labels, params, out = np.asarray(case["inputs"]["cluster_ids"]), case["params"], case["outputs"]
    language = np.ones(vectors.shape[1], dtype=bool)
    bandwidth, single = VARIANTS["opendcai"], params["single_member_density"]
    found = concepts_of(vectors, labels, language, "opendcai", bandwidth, single)
    assert found.transferability == pytest.approx(np.asarray(out["transferability"]), rel=1e-5, abs=1e-6)
    assert found.density == pytest.approx(np.asarray(out["density"]), rel=1e-5)
    count = min(params["num_samples"], len(vectors))
    counts = counts_by_remainder(found.values(params["temperature"]), np.bincount(labels), count)
    assert counts.tolist() == out["budget"]
    chosen = found.first(np.ones(len(labels), dtype=bool), counts)
    assert sorted(chosen.tolist()) == out["selected_sorted"]
    whole = counts[labels[chosen]] == np.bincount(labels)[labels[chosen]]  # there in the order of the rows
    assert chosen[~whole].tolist() == [row for row in out["selected_in_order"] if row in chosen[~whole]]


@pytest.mark.parametrize("case", of_kind("dataflex_pool_features"))
def test_pooling_by_modality_is_that_of_opendcai(case: Mapping[str, Any]):
    inputs = case["inputs"]
    hidden = [torch.tensor(layer) for layer in inputs["hidden_states_per_layer"]]
    tokens, mask = torch.tensor(inputs["input_ids"]), torch.tensor(inputs["attention_mask"]).bool()
    vision = tokens == case["params"]["image_token_id"]
    found = pool_layers(hidden, vision & mask, mask & ~vision, squash_tokens=True)
    assert found.numpy() == pytest.approx(np.asarray(case["outputs"]["features"]), abs=1e-6)


def slow_order(vectors: np.ndarray, bandwidth: float) -> list[int]:
    """The greedy choice from the definition, over all pairs at each candidate."""
    squares = ((vectors[:, None] - vectors[None]) ** 2).sum(axis=-1)
    kernel = np.exp(-squares / (2 * bandwidth**2))
    chosen: list[int] = []
    while len(chosen) < len(vectors):
        best, at = np.inf, -1
        for row in range(len(vectors)):
            own = [*chosen, row]
            if row not in chosen:
                value = kernel.mean() + kernel[np.ix_(own, own)].mean() - 2 * kernel[:, own].mean()
                if value < best - 1e-12:
                    best, at = value, row
        chosen.append(at)
    return chosen


@pytest.mark.parametrize(("count", "bandwidth"), [(1, 1.0), (2, 0.3), (17, 1.0), (40, 2.0)])
def test_the_greedy_order_is_that_of_the_definition(count, bandwidth):
    vectors = np.random.default_rng(count).normal(size=(count, 3))
    vectors[count // 2 :: 5] = vectors[0]  # ties
    assert greedy_order(KernelGroup(vectors, bandwidth)).tolist() == slow_order(vectors, bandwidth)


def test_a_group_too_large_to_keep_its_kernel_has_the_same_order(monkeypatch):
    vectors = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    expected = greedy_order(KernelGroup(vectors, 1.0))
    monkeypatch.setattr("dataflex_selectors.parts.mean_discrepancy._CELLS", 300)
    assert greedy_order(KernelGroup(vectors, 1.0)).tolist() == expected.tolist()


def test_memory_is_not_that_of_the_kernel_where_a_cluster_is_large():
    vectors = np.random.default_rng(0).normal(size=(9000, 4)).astype(np.float32)
    tracemalloc.start()
    greedy_order(KernelGroup(vectors, 1.0), 3)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 9000**2 * 8 / 2  # 324 MB


def test_five_layers_are_spread_from_the_first_to_the_last():
    assert spread_layers(32) == [1, 9, 16, 24, 32]
    assert spread_layers(3) == [1, 2, 3]
    assert spread_layers(1) == [1]


# a run


@pytest.fixture(scope="module")
def model():
    return tiny_model(layers=3)


ROWS = TokenRows(70, lengths=range(8, 25))


def selector(rows: Any = ROWS, folder: object = "unused", **params: Any) -> CoincideSelector:
    made = CoincideSelector(**run_objects(rows, folder=folder), **({"num_clusters": 4} | params))
    made.bind("coincide", 7)
    return made


def context(update: int) -> UpdateContext:
    return UpdateContext(update, 5, 10 * (update + 1), 60, 1e-3, None)


def chosen(made: CoincideSelector, model: Any, update: int, count: int) -> list[int]:
    return list(made.select(model, 10, count, context=context(update)).indices)


def test_states_of_layers_are_those_that_the_model_gives(model):
    batch = pad_collate([ROWS[0], ROWS[1]])
    labels = batch.pop("labels")
    states = model(**batch, labels=labels, output_hidden_states=True).hidden_states
    with torch.no_grad(), hidden_states_of_layers(model, [0, 2, 3]) as forward:
        found = forward(batch)
    for layer, state in zip([0, 2, 3], found, strict=True):
        assert torch.allclose(state, states[layer], atol=1e-6)


@pytest.mark.parametrize("squash_tokens", [False, True])
def test_vectors_are_those_of_each_row_alone(model, tmp_path, squash_tokens):
    options = {"collator": pad_collate, "squash_tokens": squash_tokens}
    found = layer_embeddings(model, ROWS, [1, 3], folder=str(tmp_path), **options)
    assert isinstance(found, np.memmap)
    assert not list(tmp_path.iterdir())
    for row in range(len(ROWS)):
        with torch.no_grad():
            states = model(torch.tensor([ROWS[row]["input_ids"]]), output_hidden_states=True).hidden_states
        blocks = []
        for layer in (1, 3):
            state = states[layer][0].double()
            mean = state.tanh().mean(0) if squash_tokens else state.mean(0).tanh()
            blocks.append(mean / mean.norm() / 2**0.5)
        assert found[row] == pytest.approx(torch.cat(blocks).numpy(), abs=2e-6)


def test_vectors_do_not_depend_on_how_many_are_written_at_once(model, tmp_path, monkeypatch):
    whole = np.array(layer_embeddings(model, ROWS, [1, 3], collator=pad_collate))
    monkeypatch.setattr("dataflex.scoring.layer_embeddings.STRETCH_BYTES", 9 * 4 * 2 * 32)
    parts = layer_embeddings(model, ROWS, [1, 3], collator=pad_collate, folder=str(tmp_path))
    assert parts == pytest.approx(whole, abs=1e-6)


def test_a_disk_without_room_is_said(model, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(
        ComponentError, match=r"cache_dir: no file of 17,920 bytes can be made in .* \(there is no room\)"
    ):
        layer_embeddings(model, ROWS, [1, 3], collator=pad_collate, folder=str(tmp_path))


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_rows_are_the_first_of_each_cluster_by_its_share(model, tmp_path, variant):
    made = selector(folder=tmp_path, variant=variant, temperature=0.1)
    found = chosen(made, model, 0, 20)
    concepts = made._concepts
    values = concepts.transferability / (0.1 * concepts.density)
    room = np.bincount(concepts.label)
    counts = counts_in_turn(values, room, 20)[0] if variant == "authors" else counts_by_remainder(values, room, 20)
    assert np.bincount(concepts.label[found], minlength=len(room)).tolist() == counts.tolist()
    assert all(concepts.turn[row] < counts[concepts.label[row]] for row in found)
    vectors = layer_embeddings(model, ROWS, [1, 2, 3], collator=pad_collate, squash_tokens=variant == "opendcai")
    for cluster in range(len(room)):
        own = np.flatnonzero(concepts.label == cluster)
        group = KernelGroup(vectors[own], VARIANTS[variant])
        assert own[greedy_order(group)].tolist() == own[np.argsort(concepts.turn[own])].tolist()
        assert group.density(variant == "authors") == pytest.approx(concepts.density[cluster], rel=1e-5)


def test_no_row_comes_again_before_all_have(model, tmp_path):
    made = selector(folder=tmp_path)
    first = [row for update in range(3) for row in chosen(made, model, update, 20)]
    assert len(set(first)) == 60
    last = chosen(made, model, 3, 20)
    assert set(range(70)) - set(first) < set(last)
    assert len(set(last)) == 20


def test_the_log_says_at_each_update_how_many_clusters_there_are_and_how_many_are_open(model, tmp_path, caplog):
    made = selector(folder=tmp_path)
    with caplog.at_level(logging.INFO, logger="dataflex"):
        of_updates = [chosen(made, model, update, count) for update, count in enumerate((23, 23, 23, 1))]
    left = np.setdiff1d(np.arange(70), np.concatenate(of_updates[:3]))  # before the last choice
    still = len(np.unique(made._concepts.label[left]))
    said = [record.getMessage() for record in caplog.records if "clusters of" in record.getMessage()]
    assert len(said) == 4
    assert said[0].startswith("coincide: 4 clusters of 70 rows, ")
    assert said[-1] == f"coincide: 4 clusters of 70 rows, {still} of them open: with rows that have not come"
    assert still == 1, "one row is left"


def test_without_exclude_seen_each_update_takes_the_same_rows_in_another_order(model, tmp_path):
    made = selector(folder=tmp_path, exclude_seen=False)
    first, second = chosen(made, model, 0, 20), chosen(made, model, 1, 20)
    assert sorted(first) == sorted(second)
    assert first != second
    assert sorted(first) != first


def test_the_model_is_read_again_only_where_it_is_due(model, tmp_path):
    calls = []

    def counting(rows):
        calls.append(len(rows))
        return pad_collate(rows)

    objects = run_objects(ROWS, collator=counting, folder=tmp_path)
    for refresh, passes in ((None, 1), (2, 2)):
        made = CoincideSelector(**objects, num_clusters=4, refresh=refresh)
        calls.clear()
        for update in range(4):
            chosen(made, model, update, 10)
        assert sum(calls) == passes * 70
        chosen(made, model, 0, 10)  # a second training by the same trainer
        assert sum(calls) == (passes + (refresh is not None)) * 70


def test_a_resumed_selector_goes_on_and_reads_no_row(model, tmp_path):
    made = selector(folder=tmp_path)
    chosen(made, model, 0, 20)
    again = selector(folder=tmp_path)
    again.load_state_dict(made.state_dict())
    assert chosen(again, None, 1, 20) == chosen(made, None, 1, 20)
    assert chosen(again, None, 2, 40) == chosen(made, None, 2, 40)


def test_rows_without_a_label_are_never_taken(model, tmp_path):
    rows = [dict(ROWS[row]) for row in range(30)]
    for row in (3, 7):
        rows[row]["labels"] = [-100] * len(rows[row]["labels"])
    made = selector(rows, tmp_path)
    assert not {3, 7} & set(chosen(made, model, 0, 28))
    scores = made.scores(model, 10, context=context(0))
    assert np.flatnonzero(np.isnan(scores)).tolist() == [3, 7]
    with pytest.raises(ComponentError, match="29 rows are wanted, but only 28 of 30 have a label"):
        chosen(made, model, 1, 29)


@pytest.mark.parametrize("rows", [[ROWS[0]], [ROWS[0]] * 6], ids=["one row", "equal rows"])
def test_few_or_equal_rows_are_one_cluster(model, tmp_path, rows):
    made = selector(rows, tmp_path)
    assert sorted(chosen(made, model, 0, len(rows))) == list(range(len(rows)))
    assert len(made._concepts.density) == 1
    assert np.isfinite(made._concepts.values(1.0)).all()


def test_more_clusters_than_rows_make_each_row_its_own(model, tmp_path):
    made = selector(ROWS, tmp_path, num_clusters=10_000)
    assert len(set(chosen(made, model, 0, 35))) == 35
    assert made._concepts.density.tolist() == [1.0] * 70


@pytest.mark.parametrize(("clusters", "told"), [(10_000, True), (70, True), (69, False), (None, False)])
def test_as_many_clusters_as_rows_are_told_before_the_first_step(model, tmp_path, caplog, clusters, told):
    selector(ROWS, tmp_path, num_clusters=clusters).check_run(model, RunAhead(1, 10, 8))
    said = f"coincide: num_clusters: {clusters} for 70 rows, so each is a cluster by itself and no row is compared"
    assert (said in caplog.text) == told
    assert ("num_clusters" in caplog.text) == told


def test_of_one_row_nothing_is_told(model, tmp_path, caplog):
    selector([ROWS[0]], tmp_path, num_clusters=5).check_run(model, RunAhead(1, 10, 1))
    assert not caplog.text


def test_states_that_are_not_finite_are_said(tmp_path):
    broken = tiny_model(layers=3)
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight.fill_(torch.nan)
    with pytest.raises(ComponentError, match="hidden states are NaN or infinite for 70 of 70 rows"):
        chosen(selector(folder=tmp_path), broken, 0, 5)


def test_layers_that_the_model_does_not_have_are_refused_before_training(model):
    ahead = RunAhead(1, 10, 8)
    selector(embedding_layers=[-1, 0, 3]).check_run(model, ahead)
    with pytest.raises(
        ComponentError, match=r"embedding_layers: found \[4\], and the model has the hidden states 0 to 3"
    ):
        selector(embedding_layers=[4]).check_run(model, ahead)


def test_everything_wrong_with_its_parameters_is_in_one_message():
    with pytest.raises(ConfigError) as found:
        selector(
            embedding_layers=[1.5], num_clusters=0, temperature=0, variant="x", bandwidth=-1, single_member_density=0,
            refresh=0, exclude_seen=1, token_budget=0,
        )  # fmt: skip
    for key in ("embedding_layers", "num_clusters", "temperature", "variant", "bandwidth", "single_member_density"):
        assert f"{key} of the coincide selector: found" in str(found.value)
    for key in ("refresh", "exclude_seen", "token_budget"):
        assert f"{key} of the coincide selector: found" in str(found.value)


def test_gaps_in_the_numbers_of_clusters_do_not_end_in_an_error_as_in_the_authors_program():
    vectors = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    every, labels = np.ones(4, dtype=bool), np.arange(9) % 3
    gaps = concepts_of(vectors, np.array([0, 5, 9])[labels], every, "authors", 1.0, 1.0)
    plain = concepts_of(vectors, labels, every, "authors", 1.0, 1.0)
    assert gaps.label.tolist() == labels.tolist()
    assert gaps.turn.tolist() == plain.turn.tolist()
    assert gaps.values(1.0).tolist() == plain.values(1.0).tolist()
