"""Rho_loss takes the rows with the largest reducible loss, from any source of irreducible losses, and resumes."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import DistributedType
from dataflex.core.context import RunAhead, UpdateContext
from dataflex.core.errors import ComponentError, ConfigError
from dataflex.core.kinds import SELECTOR
from dataflex.discovery.component_classes import find
from dataflex.run.state import load_state, save_state
from dataflex.scoring import ScoreStore, model_beside, per_sample_losses
from dataflex.scoring.model_beside import contradicting
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_tokenizer
from dataflex_selectors.parts import irreducible
from dataflex_selectors.rho_loss import RhoLossSelector, largest
from every_component import run_objects


def context(update):
    return UpdateContext(update, 6, step=10 * update, total_steps=90, learning_rate=1e-3, optimizer=None)


def build(dataset, seed=7, name="rho_loss", collator=pad_collate, accelerator=None, cache_dir="unused", **params):
    selector = RhoLossSelector(
        **run_objects(dataset, accelerator=accelerator, collator=collator, folder=cache_dir), **params
    )
    selector.bind(name, seed)
    return selector


def choose(selector, count, update, model):
    return selector.select(model, 10 * update, count, context=context(update))


def pick(*args):
    return choose(*args).indices.tolist()


def losses(model, dataset):
    return per_sample_losses(model, dataset, collator=pad_collate, progress=False)


@pytest.fixture(scope="module")
def rows():
    return TokenRows(40, lengths=range(6, 20))


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    """A model on disk that differs from the trained one."""
    folder = tmp_path_factory.mktemp("reference")
    tiny_model(seed=1).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(4.8, 0.3, 40).astype(np.float32)


@pytest.fixture
def file(tmp_path, values):
    np.save(tmp_path / "il.npy", values)
    return str(tmp_path / "il.npy")


def test_the_entry_point_leads_to_the_class():
    assert find(SELECTOR, "rho_loss") is RhoLossSelector


# --- the choice


def test_the_rows_with_the_largest_difference_of_losses_are_taken(rows, model, file, values):
    rho = losses(model, rows) - values
    answer = choose(build(rows, file=file, pool_factor=None), 12, 0, model)
    assert sorted(answer.indices) == sorted(np.argsort(-rho)[:12])
    np.testing.assert_allclose(answer.scores, rho[answer.indices], atol=1e-5)


def test_they_come_in_random_order(rows, model, file):
    selector = build(rows, file=file, pool_factor=None)
    first, second = choose(selector, 12, 0, model), choose(selector, 12, 1, model)
    assert sorted(first.indices) == sorted(second.indices)
    assert first.indices.tolist() != second.indices.tolist()
    assert first.scores.tolist() != sorted(first.scores, reverse=True)


@pytest.mark.parametrize(("factor", "candidates"), [(2, 10), (1.5, 8), (100, 40)])
def test_candidates_are_drawn_afresh_at_each_update_and_the_best_of_them_taken(
    rows, model, file, values, factor, candidates
):
    seen = []

    def watching(batch):
        seen.extend(tuple(row["input_ids"]) for row in batch)
        return pad_collate(batch)

    selector = build(rows, file=file, pool_factor=factor, collator=watching)
    number = {tuple(row["input_ids"]): i for i, row in enumerate(rows)}
    rho, drawn = losses(model, rows) - values, []
    for update in range(3):
        seen.clear()
        answer = choose(selector, 5, update, model)
        pool = np.array(sorted(number[tokens] for tokens in seen))
        assert len(set(pool)) == len(pool) == candidates
        assert sorted(answer.indices) == sorted(pool[np.argsort(-rho[pool])[:5]])
        drawn.append(pool.tolist())
    assert (drawn[0] != drawn[1] != drawn[2]) == (candidates < 40)


def test_a_factor_of_one_is_a_random_draw(rows, model, file):
    selector = build(rows, file=file, pool_factor=1)
    counts = np.bincount([row for update in range(60) for row in pick(selector, 8, update, model)], minlength=40)
    assert ((counts - 12) ** 2 / 12).sum() < 72.1  # chi-square, 39 degrees of freedom, p = 0.001; the seed is fixed


def test_equal_values_are_taken_in_row_order():
    assert largest(np.array([1.0, 2, 1, 2, 1]), np.array([9, 8, 3, 4, 5]), 4).tolist() == [3, 1, 2, 4]


def test_noise_and_learnt_rows_are_left_out():
    # Row 0 is learnt (small loss), row 1 is noise (large loss, large irreducible loss), row 2 is worth it.
    rho = np.array([0.1, 5.0, 3.0]) - np.array([0.1, 4.9, 0.5])
    assert largest(rho, np.arange(3), 1).tolist() == [2]


def test_scores_are_those_of_every_row(rows, model, file, values):
    np.testing.assert_allclose(build(rows, file=file).scores(model, 0), losses(model, rows) - values, atol=1e-5)


# --- the sources


def test_all_sources_give_the_same_choice(rows, model, held_out, tmp_path):
    values = losses(tiny_model(seed=1), rows)
    np.save(tmp_path / "il.npy", values)
    np.savez(tmp_path / "one.npz", anything=values)
    np.savez(tmp_path / "two.npz", irreducible_loss=values, other=np.zeros(3))
    pq.write_table(pa.table({"x": values}), tmp_path / "one.parquet")
    pq.write_table(pa.table({"irreducible_loss": values, "text": ["t"] * 40}), tmp_path / "two.parquet")
    with_column = [row | {"il": float(value)} for row, value in zip(rows, values, strict=True)]
    stored = datasets.Dataset.from_list(with_column)
    choices = [pick(build(rows, file=str(path)), 12, 0, model) for path in sorted(tmp_path.iterdir())]
    choices += [pick(build(dataset, column="il"), 12, 0, model) for dataset in (with_column, stored)]
    choices.append(pick(build(rows, reference_model=held_out), 12, 0, model))
    assert len(choices) == 8
    assert all(choice == choices[0] for choice in choices)


def test_the_column_does_not_reach_the_collator(rows, model):
    def strict(batch):
        assert all("il" not in row for row in batch)
        return pad_collate(batch)

    pick(build([row | {"il": 1.0} for row in rows], column="il", collator=strict), 12, 0, model)


def test_the_reference_model_is_scored_once_and_its_losses_are_in_the_state(
    rows, model, held_out, tmp_path, monkeypatch
):
    first = build(rows, reference_model=held_out)
    assert first.state_dict() == {"irreducible": None, "numbers": None}
    expected = [pick(first, 12, update, model) for update in range(3)]
    save_state(tmp_path, {"identity": {}, "component": first.state_dict()})
    monkeypatch.setattr(model_beside, "load_whole", None)  # would raise
    assert pick(first, 12, 1, model) == expected[1]
    resumed = build(rows, reference_model=held_out)
    resumed.load_state_dict(load_state(tmp_path)["component"])
    assert [pick(resumed, 12, update, model) for update in range(3)] == expected


def test_an_interrupted_pass_of_the_reference_model_goes_on(rows, model, held_out, tmp_path, monkeypatch):
    monkeypatch.setattr(irreducible, "ScoreStore", lambda folder, key: ScoreStore(folder, key, seconds=0))
    seen = []

    def watching(batch):
        seen.extend(batch)
        return pad_collate(batch)

    options = {"reference_model": held_out, "token_budget": 60, "cache_dir": tmp_path, "pool_factor": None}
    expected = pick(build(rows, collator=watching, **options), 12, 0, model)
    assert len(seen) == 80
    seen.clear()
    assert pick(build(rows, collator=watching, **options), 12, 0, model) == expected
    assert len(seen) == 40  # the rows under the model being trained, none under the reference


def test_a_file_is_read_again_when_a_run_is_resumed(rows, model, file):
    first, resumed = build(rows, file=file), build(rows, file=file)
    expected = [pick(first, 12, update, model) for update in range(4)]
    resumed.load_state_dict(first.state_dict())
    assert [pick(resumed, 12, update, model) for update in range(2, 4)] == expected[2:]


def test_draws_repeat_for_a_seed_and_change_with_the_update_the_seed_and_the_preset(rows, model, file):
    def chosen(update=1, **options):
        return pick(build(rows, file=file, pool_factor=2, **options), 10, update, model)

    assert chosen() == chosen()
    assert chosen() not in (chosen(2), chosen(seed=8), chosen(name="other"))


def test_nothing_is_drawn_from_the_global_generators(rows, model, file):
    before = torch.get_rng_state().tolist(), str(np.random.get_state())
    pick(build(rows, file=file), 5, 0, model)
    assert (torch.get_rng_state().tolist(), str(np.random.get_state())) == before


# --- rows that have no score


def test_rows_without_a_label_or_an_irreducible_loss_are_never_taken(rows, model, tmp_path, values):
    values[:10] = np.nan
    np.save(tmp_path / "il.npy", values)
    dataset = [row | {"labels": [-100] * len(row["labels"])} if 10 <= i < 20 else row for i, row in enumerate(rows)]
    for factor in (1, 1.2, None):  # further candidates take the place of those without a label
        selector = build(dataset, file=str(tmp_path / "il.npy"), pool_factor=factor)
        assert sorted(pick(selector, 20, 0, model)) == list(range(20, 40))
        message = r"21 rows are wanted, but only 20 of 40 have .*irreducible loss -> .*a shorter stretch"
        with pytest.raises(ComponentError, match=message):
            pick(selector, 21, 3, model)


def test_no_irreducible_loss_at_all_is_an_error(rows, model, tmp_path):
    np.save(tmp_path / "il.npy", np.full(40, np.nan))
    for factor in (2, None):
        with pytest.raises(ComponentError, match="only 0 of 40 have"):
            pick(build(rows, file=str(tmp_path / "il.npy"), pool_factor=factor), 1, 0, model)


# --- what is refused


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "column, file, reference_model of the rho_loss selector: found none of them, needed: exactly one"),
        ({"column": "a", "reference_model": "b"}, "found column and reference_model, needed: exactly one"),
        ({"column": 3}, "column of the rho_loss selector: found 3, allowed: a text"),
        (
            {"file": "values.csv"},
            "file of the rho_loss selector: values.csv .* '.csv'; allowed: .npy, .npz, .parquet",
        ),
        ({"file": "missing.npy"}, "file of the rho_loss selector: missing.npy cannot be read: there is no such file"),
        (
            {"column": "a", "pool_factor": 0.5},
            "pool_factor of the rho_loss selector: found 0.5, allowed: a number of at",
        ),
    ],
)
def test_wrong_parameters_are_refused(params, message):
    with pytest.raises(ConfigError, match=message):
        build([], **params)


def test_all_bad_parameters_are_reported_at_once():
    with pytest.raises(ConfigError, match="3 problems"):
        build([], pool_factor=0, token_budget=0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.npy",
            np.zeros(39),
            "has 39 numbers and no column row, for 40 rows of the train dataset -> give one",
        ),
        ("a.npy", np.zeros((40, 1)), r"holds float64 of shape \(40, 1\); needed: a number for each row"),
        ("a.npy", np.array(["x"] * 40), "holds <U1 of shape"),
        (
            "a.npy",
            np.r_[np.zeros(39), np.inf],
            r"is infinite, or too large .* for 1 row \(39\) -> write NaN instead",
        ),
        ("a.npy", np.r_[np.zeros(38), 1e300, 0], r"too large for 32 bits, for 1 row \(38\)"),
        ("a.npy", None, "cannot be read"),
        (
            "a.npz",
            {"b": np.zeros(40), "a": np.zeros(40)},
            "'irreducible_loss' but a, b; needed: irreducible_loss, or a single",
        ),
        ("a.npz", None, "cannot be read"),
        ("a.npz", b"PK\x03\x04 and no more", "cannot be read"),
        ("a.parquet", None, "cannot be read"),
    ],
)
def test_files_that_hold_something_else_are_refused(rows, tmp_path, name, content, message):
    path = tmp_path / name
    if content is None or isinstance(content, bytes):
        path.write_bytes(content or b"nothing")
    elif isinstance(content, dict):
        np.savez(path, **content)
    else:
        np.save(path, content)
    with pytest.raises(ConfigError, match=message):
        build(rows, file=str(path))


def test_columns_that_hold_something_else_are_refused(rows):
    with pytest.raises(ConfigError, match=r"no row of the train dataset has the column 'il' .* -> LLaMA-Factory keeps"):
        build(rows, column="il")
    with pytest.raises(ConfigError, match="the column 'input_ids' of the train dataset holds something else"):
        build(rows, column="input_ids")
    with pytest.raises(ConfigError, match="the column 'il' of the train dataset holds something else"):
        build([row | {"il": "much"} for row in rows], column="il")


def test_a_reference_model_that_is_not_there_or_knows_fewer_tokens_is_refused(rows, model, tmp_path):
    with pytest.raises(ComponentError, match=f"reference_model: {tmp_path} cannot be loaded"):
        pick(build(rows, reference_model=str(tmp_path)), 1, 0, model)
    tiny_model(vocab_size=64).save_pretrained(tmp_path)
    with pytest.raises(ComponentError, match=r"knows 64 tokens, and the dataset has token \d+ -> use a model with"):
        pick(build(rows, reference_model=str(tmp_path)), 1, 0, model)


def test_a_reference_model_is_refused_where_the_engine_shards_weights_and_a_file_is_not(rows, file):
    accelerator = SimpleNamespace(distributed_type=DistributedType.FSDP)
    with pytest.raises(ConfigError, match="FSDP shards the weights over the ranks, and a reference model is loaded"):
        build(rows, reference_model="x", accelerator=accelerator)
    build(rows, file=file, accelerator=accelerator)


def test_a_reference_model_with_another_tokenizer_is_refused_before_training(rows, model, tmp_path):
    tiny_model(seed=1).save_pretrained(tmp_path)
    theirs, ours = tiny_tokenizer(), tiny_tokenizer()
    theirs.add_tokens(["<old>"])
    ours.add_tokens(["<new>"])  # at the number of <old>
    theirs.save_pretrained(tmp_path)
    ahead = RunAhead(updates=1, total_steps=4, most_rows=2)
    build(rows, reference_model=str(tmp_path), tokenizer=tiny_tokenizer()).check_run(model, ahead)
    with pytest.raises(ComponentError, match="gives other numbers to 1 of the run's tokens, such as '<new>'"):
        build(rows, reference_model=str(tmp_path), tokenizer=ours).check_run(model, ahead)


def test_a_reference_model_without_the_tokens_that_a_template_adds_is_told_of(rows, model, tmp_path, caplog):
    tiny_model(seed=1).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    ours = tiny_tokenizer()
    ours.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    ahead = RunAhead(updates=1, total_steps=4, most_rows=2)
    with caplog.at_level(logging.WARNING, logger="dataflex"):
        build(rows, reference_model=str(tmp_path), tokenizer=ours).check_run(model, ahead)
    assert "lacks 1 of the run's tokens, such as '<|im_end|>'" in caplog.text


def test_which_tokens_of_two_vocabularies_contradict_each_other():
    run = {"a": 0, "b": 1, "c": 2, "d": 9}
    assert contradicting(run, run) == []
    assert contradicting(run, {"a": 0, "b": 1}) == []
    assert contradicting(run, {"a": 0, "b": 2, "x": 9}) == ["b", "c", "d"]
