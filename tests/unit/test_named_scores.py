"""Scores by name: each computed once at an update, the right rows for whoever asks, and refused with the way out."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
from dataflex.core.context import SEEN_ONLY, PassOptions, UpdateContext
from dataflex.core.errors import CheckpointError, ComponentError, ConfigError
from dataflex.core.score_names import ScoreName, score_name
from dataflex.rows.score_columns import ScoreColumns
from dataflex.rows.views import MixedSources, PlannedRows
from dataflex.scoring import per_sample_losses
from dataflex.scoring.named_scores import NamedScores
from dataflex.scoring.score_sources import fixed_sources
from dataflex.scoring.seen_losses import SeenLosses
from dataflex.testing import TokenRows, pad_collate, tiny_model
from rank_group import on_ranks
from torch.utils.data import Subset

STEP = 20
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(scope="module")
def rows():
    return TokenRows(30, lengths=range(6, 20))


@pytest.fixture(scope="module")
def losses(rows):
    return per_sample_losses(tiny_model(), rows, collator=pad_collate, progress=False)


class Counted(torch.nn.Module):
    """A model that writes down how many rows went through it."""

    def __init__(self, seed=0):
        super().__init__()
        self.model = tiny_model(seed=seed)
        self.rows = 0
        self.model.get_input_embeddings().register_forward_pre_hook(self._count)

    def _count(self, _, given):
        self.rows += len(given[0])

    def taken(self):
        rows, self.rows = self.rows, 0
        return rows


def made(dataset, model=None, **options):
    scores = NamedScores(dataset, pad_collate, **options)
    scores.begin_update(tiny_model() if model is None else model, STEP)
    return scores


def test_losses_are_those_of_a_pass_of_ones_own_to_the_last_bit(rows, losses):
    found = made(rows).of("loss")
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found.astype(np.float32), losses)


def test_a_loss_is_computed_once_at_an_update_whoever_asks_for_it(rows, losses):
    counted = Counted()
    scores = made(rows, counted.model)
    np.testing.assert_allclose(scores.of("loss", np.array([4, 4, 2])), losses[[4, 4, 2]], **CLOSE)
    assert counted.taken() == 2
    np.testing.assert_allclose(scores.of("loss", np.array([2, 9])), losses[[2, 9]], **CLOSE)
    assert counted.taken() == 1, "only the row that was missing"
    np.testing.assert_allclose(scores.of("loss"), losses, **CLOSE)
    assert counted.taken() == 27
    scores.of("loss", how=PassOptions(token_budget=7))
    assert counted.taken() == 0
    scores.begin_update(counted.model, STEP + 1)
    scores.of("loss")
    assert counted.taken() == 30, "what was computed at the update before is another model's"


def test_no_rows_have_no_scores(rows):
    scores, none = made(rows, seen=seen_some()), np.empty(0, dtype=np.int64)
    for name in ("loss", "seen", "seen:3", "length"):
        found = scores.of(name, none)
        assert (found.shape, found.dtype) == ((0,), np.float64)
    assert scores.ages(none).shape == (0,)


def test_a_component_that_is_made_on_some_rows_asks_by_its_own_numbers(rows, losses):
    counted = Counted()
    whole = made(rows, counted.model)
    part = whole.within(np.arange(10, 20)).within(np.array([3, 1]))
    np.testing.assert_allclose(part.of("loss"), losses[[13, 11]], **CLOSE)
    np.testing.assert_allclose(part.of("loss", np.array([1])), losses[[11]], **CLOSE)
    assert part.of("length").tolist() == [len(rows[13]["input_ids"]), len(rows[11]["input_ids"])]
    whole.of("loss", np.array([11, 13, 12]))
    assert counted.taken() == 3, "the part and the whole share what was computed"
    whole.begin_update(tiny_model(seed=1), STEP)
    others = per_sample_losses(tiny_model(seed=1), rows, collator=pad_collate, indices=[13, 11], progress=False)
    np.testing.assert_allclose(part.of("loss"), others, **CLOSE)


def test_scores_know_whether_their_rows_are_those_of_a_dataset():
    first, second = TokenRows(4), TokenRows(3)
    mixed = MixedSources({"a": first, "b": second})
    scores = NamedScores(mixed, pad_collate)
    kept = np.array([4, 6])
    views = {
        "all": (mixed, None),
        "the second source": (second, np.arange(4, 7)),
        "rows of the second source": (PlannedRows(second, kept - 4), kept),
        "rows of rows": (Subset(PlannedRows(mixed, np.array([1, 6, 4])), [2, 1]), kept),
        "the first source": (first, np.arange(4)),
        "all in another order": (PlannedRows(mixed, np.arange(7)[::-1]), np.arange(7)[::-1]),
    }
    for name, (dataset, rows) in views.items():
        part = scores if rows is None else scores.within(rows)
        assert len(part) == len(dataset)
        alike = {other for other, (their, _) in views.items() if part.are_of(their)}
        assert alike == ({name} if name[:4] != "rows" else {"rows of the second source", "rows of rows"})
        assert part.are_of(dataset)
        assert not part.are_of(TokenRows(7))
    assert scores.are_of(PlannedRows(mixed, np.arange(7)))


def test_lengths_are_made_once_per_run_and_cannot_be_written_to(rows):
    calls = []
    scores = made(rows, sources={"length": lambda _: calls.append(1) or np.arange(30.0)})
    for _ in range(2):
        scores.of("length")
        scores.begin_update(tiny_model(), STEP)
    assert len(calls) == 1
    with pytest.raises(ValueError, match="read-only"):
        scores.of("length")[0] = 1
    assert made(rows).of("length").tolist() == [len(row["input_ids"]) for row in rows]


# --- seen losses


def seen_some(size=30):
    seen = SeenLosses(size)
    seen.note(torch.tensor([1, 2, 3]), torch.tensor([10.0, 20.0, 30.0]), 5)
    seen.note(torch.tensor([3, 4]), torch.tensor([31.0, 40.0]), 19)  # gathered when the update begins
    return seen


def test_seen_losses_are_given_without_any_pass_and_others_are_nan(rows):
    counted = Counted()
    scores = made(rows, counted.model, seen=seen_some())
    for name, options in (("seen", {}), ("loss", {"max_age": SEEN_ONLY})):
        np.testing.assert_array_equal(scores.of(name, np.arange(6), **options), [np.nan, 10, 20, 31, 40, np.nan])
    assert counted.taken() == 0
    assert scores.ages(np.arange(6)).tolist() == [-1, 15, 15, 1, 1, -1]
    assert scores.within(np.array([4, 0])).ages().tolist() == [1, -1]


def test_seen_losses_that_are_too_old_are_computed_and_then_at_hand_for_all(rows, losses):
    counted = Counted()
    scores = made(rows, counted.model, seen=seen_some())
    expected = losses.astype(np.float64)
    expected[[1, 2, 3, 4]] = [10, 20, 31, 40]
    np.testing.assert_allclose(scores.of("seen:15"), expected, **CLOSE)
    assert counted.taken() == 26
    expected[[1, 2]] = losses[[1, 2]]
    np.testing.assert_allclose(scores.of("loss", max_age=14), expected, **CLOSE)
    assert counted.taken() == 2
    np.testing.assert_allclose(scores.of("loss"), losses, **CLOSE)
    assert counted.taken() == 2, "the two that were seen at the last step"
    np.testing.assert_allclose(scores.of("seen"), losses, **CLOSE)  # what is fresher is taken
    assert counted.taken() == 0


def test_seen_losses_that_nobody_keeps_are_refused_with_the_way_out(rows):
    scores = made(rows)
    for ask in (lambda: scores.of("seen"), lambda: scores.of("loss", max_age=3), scores.ages):
        with pytest.raises(ComponentError, match=r"keeps no losses.*-> set takes_seen = True .* or use scores: fresh"):
            ask()


# --- names


@pytest.mark.parametrize("name", ["loss", "length", "seen", "seen:100", "column:x", "file:/a/b:c.npy", "selector"])
def test_names_that_are_allowed(name):
    assert score_name("by", name, "selector") is None


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        (3, ""),
        ("los", "did you mean 'loss'"),
        ("selector", "use one of these"),
        ("loss:3", "write loss"),
        ("column:", "write column:NAME"),
        ("file: ", "write file:PATH"),
        ("seen:0", "whole number of at least 1"),
        ("seen:", "whole number of at least 1"),
        ("seen:1.5", "whole number of at least 1"),
    ],
)
def test_names_that_are_not(name, way_out):
    problem = score_name("by", name)
    assert problem is not None
    assert problem.where == "by"
    assert "allowed: loss, length, seen:STEPS, column:NAME, file:PATH, seen" in problem.what
    assert way_out in problem.way_out


def test_only_losses_change_while_a_run_lasts():
    changing = {"loss": True, "seen:3": True, "selector": True, "length": False, "column:x": False, "file:x": False}
    assert {name: ScoreName.of(name).changes for name in changing} == changing


def test_a_name_that_nobody_provides_is_refused_and_one_of_ones_own_is_given(rows):
    scores = made(rows)
    with pytest.raises(ComponentError, match=r"no scores 'lenght', only column, file, .*-> did you mean 'length'\?"):
        scores.of("lenght")
    with pytest.raises(ComponentError, match="write seen:STEPS"):
        scores.of("seen:x")
    scores.provide("twice", lambda argument: np.arange(30) * float(argument))
    assert scores.of("twice:2", np.array([4])).tolist() == [8.0]
    scores.provide("short", lambda _: np.arange(3))
    with pytest.raises(ComponentError, match=r"scores 'short': it gave \(3,\) numbers for 30 rows -> give one"):
        scores.of("short")
    scores.provide("broken", lambda _: 1 / 0)
    with pytest.raises(ComponentError, match=r"scores 'broken' raised ZeroDivisionError"):
        scores.of("broken")


def test_what_cannot_be_read_is_refused_before_training(rows):
    scores = NamedScores(rows, pad_collate)  # before any update
    scores.prepare("loss", "length")
    with pytest.raises(ConfigError, match="no such file"):
        scores.prepare("file:/nowhere.npy")
    with pytest.raises(ConfigError, match="no column 'x'"):
        scores.prepare("column:x")
    with pytest.raises(ComponentError, match="keeps no losses"):
        scores.prepare("seen:5")


def test_a_context_is_made_as_before_and_has_no_scores():
    assert UpdateContext(0, 1, 3, 9, 1e-3, None).scores is None


# --- columns


def hf(**columns):
    return datasets.Dataset.from_dict({"input_ids": [[1, 2]] * len(next(iter(columns.values()))), **columns})


def test_a_column_of_the_dataset_is_read_by_row_also_through_views_and_sources():
    first, second = hf(x=[1, None, 3]), hf(x=[0.5, 2.5])
    np.testing.assert_array_equal(made(first).of("column:x"), [1, np.nan, 3])
    np.testing.assert_array_equal(made(first.select([2, 0])).of("column:x"), [3, 1])
    mixed = MixedSources({"a": first, "b": second})
    np.testing.assert_array_equal(made(mixed).of("column:x"), [1, np.nan, 3, 0.5, 2.5])
    np.testing.assert_array_equal(made(PlannedRows(first, np.array([2, 2]))).of("column:x"), [3, 3])
    part = MixedSources({"a": first, "b": hf(y=[1])})
    np.testing.assert_array_equal(made(part).of("column:x"), [1, np.nan, 3, np.nan])


@pytest.mark.parametrize(
    ("value", "shown"), [("high", "'high'"), ("3.5", "'3.5'"), (True, "True"), ([1, 2], r"\[1, 2\]")]
)
def test_a_value_that_is_no_number_is_named_with_its_row(value, shown):
    for dataset in (hf(x=[None, value]), [{"input_ids": [1], "x": 0.5}, {"input_ids": [1], "x": value}]):
        with pytest.raises(ConfigError, match=rf"column:x: row 1 of the train dataset has {shown}, which is no number"):
            made(dataset).of("column:x")


def test_a_column_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(ConfigError, match=r"no column 'leve' but input_ids, level -> did you mean 'level'\?"):
        made(hf(level=[1])).of("column:leve")


def test_kept_columns_come_first_and_removed_ones_from_the_dataset_before():
    now, before = hf(y=[1, 2]), hf(x=[3, 4])
    kept = ScoreColumns(now, kept={"y": np.array([7.0, 8.0])}, before=before)
    assert kept.read("y").tolist() == [7, 8]
    assert kept.read("x").tolist() == [3, 4]
    with pytest.raises(ConfigError, match="column:z: the train dataset has no column 'z' but input_ids, x"):
        kept.read("z")
    assert made(now, sources=fixed_sources(now, kept)).of("column:x").tolist() == [3, 4]


def test_removed_columns_of_several_sources_are_read_from_all_of_them():
    now = MixedSources({"a": hf(y=[1, 2]), "b": hf(y=[3])})
    columns = ScoreColumns(now, before={"a": hf(x=[5, 6]), "b": hf(x=[7])})
    assert columns.read("x").tolist() == [5, 6, 7]
    assert columns.read("y").tolist() == [1, 2, 3]


def test_a_column_of_rows_that_were_joined_or_dropped_since_is_refused():
    now = hf(y=[1, 2])
    with pytest.raises(ConfigError, match=r"rows are packed.* -> set packing: false, or give the scores as file:PATH"):
        ScoreColumns(now, before=hf(x=[3, 4]), joins=True).read("x")
    with pytest.raises(ConfigError, match=r"preparing 3 rows left 2, so a value is not that of one row"):
        ScoreColumns(now, before=hf(x=[3, 4, 5])).read("x")


# --- files


def test_a_file_gives_one_number_per_row_and_one_of_other_rows_is_refused(rows, tmp_path, caplog):
    file = tmp_path / "s.npy"
    np.save(file, np.arange(30.0))
    assert made(rows).of(f"file:{file}", np.array([3, 1])).tolist() == [3, 1]
    np.save(file, np.arange(29.0))
    with pytest.raises(ConfigError, match=r"s\.npy has 29 numbers and no column row, for 30 rows of the train dataset"):
        made(rows).of(f"file:{file}")
    with pytest.raises(ConfigError, match="no such file"):
        made(rows).of("file:/nowhere.npy")


def test_a_resumed_run_must_read_the_same_numbers(rows, tmp_path):
    file = tmp_path / "s.npy"
    np.save(file, np.arange(30.0))
    scores = made(rows)
    scores.of(f"file:{file}")
    state = scores.state_dict()
    again = made(rows)
    again.load_state_dict(state)
    again.of(f"file:{file}")
    assert again.state_dict() == state
    np.save(file, np.arange(30.0) + 1)
    changed = made(rows)
    changed.load_state_dict(state)
    assert changed.state_dict() == state, "what was not read yet is not forgotten"
    with pytest.raises(CheckpointError, match=r"are other numbers than when the checkpoint was written -> put back"):
        changed.of(f"file:{file}")
    late = made(rows)
    late.of(f"file:{file}")
    with pytest.raises(CheckpointError, match="are other numbers"):
        late.load_state_dict(state)


# --- ranks


def on_a_rank(accelerator, folder):
    scores = NamedScores(TokenRows(30, lengths=range(6, 20)), pad_collate, accelerator)
    scores.begin_update(tiny_model(), STEP)
    some = scores.of("loss", np.array([7, 2, 9]))
    refused = ""
    scores.provide("mine", lambda _: np.full(30, float(accelerator.process_index)))
    try:
        scores.of("mine")
    except ComponentError as error:
        refused = str(error)
    file = folder / "s.npy"
    if accelerator.is_main_process:
        np.save(file, np.arange(30.0))
    alone = ""
    try:
        scores.of(f"file:{file}" if accelerator.is_main_process else "file:/nowhere.npy")
    except ValueError as error:
        alone = str(error)
    return {"some": some, "all": scores.of("loss"), "refused": np.array(refused), "alone": np.array(alone)}


def test_ranks_get_the_same_scores_and_stop_together_where_one_is_refused(tmp_path, losses):
    found = on_ranks(on_a_rank, 2, tmp_path)
    for rank in found:
        np.testing.assert_allclose(rank["all"], losses, **CLOSE)
        np.testing.assert_array_equal(rank["all"], found[0]["all"])
        np.testing.assert_allclose(rank["some"], losses[[7, 2, 9]], **CLOSE)
        assert "scores 'mine' decided differently on rank 1" in str(rank["refused"])
        assert "no such file" in str(rank["alone"])
