import numpy as np
import pytest
from dataflex.planning.mixture import MixtureManager, initial_proportions, largest_remainder
from dataflex.rows.lengths import row_lengths
from dataflex.rows.views import MixedSources, PlannedRows
from dataflex.testing import TokenRows
from hypothesis import given
from hypothesis import strategies as st

SIZES = [10, 200, 31]


def manager(shares=(0.5, 0.3, 0.2), seed=1):
    return MixtureManager(["a", "b", "c"], SIZES, shares, seed)


def counts_of(rows):
    return np.bincount(np.searchsorted(np.cumsum(SIZES), rows, side="right"), minlength=3)


@given(
    shares=st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda s: sum(s) > 1e-3), segment=st.integers(1, 97)
)
def test_each_segment_holds_the_planned_share_within_one_row(shares, segment):
    mixture = manager(shares)
    for _ in range(5):
        counts = counts_of(mixture.plan(segment))
        assert counts.sum() == segment
        assert (abs(counts - mixture.proportions * segment) < 1 + 1e-9).all()


def test_no_row_repeats_before_its_source_is_exhausted():
    mixture = manager((1, 0, 0))
    rows = np.concatenate([mixture.plan(4) for _ in range(5)])
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert rows[:10].tolist() != rows[10:].tolist()


def test_a_pass_ends_for_all_sources_at_once_where_shares_are_sizes():
    sizes = [50, 100, 69]
    for segment in (219, 3 * 219, 8, 31):
        mixture = MixtureManager("abc", sizes, sizes, seed=1)
        rows = np.concatenate([mixture.plan(segment) for _ in range(-(-4 * 219 // segment))])
        for number in range(4):
            assert sorted(rows[number * 219 : (number + 1) * 219]) == list(range(219)), (segment, number)


def test_the_order_of_a_source_depends_on_its_name_and_the_seed_alone():
    alone = MixtureManager(["x", "b"], [5, 200], [0.2, 0.8], seed=1).plan(500) - 5
    beside = manager().plan(1500) - 10
    in_order = beside[(beside >= 0) & (beside < 200)]
    assert in_order[:400].tolist() == alone[alone >= 0].tolist()


def test_neighbouring_rows_do_not_come_from_the_sources_in_turn():
    rows = MixtureManager("ab", [1000, 1000], [1, 1], seed=1).plan(1000)
    first = rows < 1000
    turns = np.count_nonzero(first[1:] != first[:-1])
    assert 500 < turns < 900, "more even than a coin, less than a metronome"


def test_a_share_below_one_row_per_segment_is_seen_in_time():
    mixture = manager((0.02, 0.49, 0.49))
    seen = sum(counts_of(mixture.plan(10))[0] for _ in range(50))
    assert seen == pytest.approx(0.02 * 500, abs=1)


def test_a_source_with_share_zero_is_never_seen():
    mixture = manager((0, 0.5, 0.5))
    assert all(counts_of(mixture.plan(7))[0] == 0 for _ in range(30))


def test_the_plan_is_a_function_of_the_seed():
    assert (manager(seed=1).plan(50) == manager(seed=1).plan(50)).all()
    assert (manager(seed=1).plan(50) != manager(seed=2).plan(50)).any()


def test_state_continues_exactly():
    whole, first = manager(), manager()
    expected = [whole.plan(13) for _ in range(6)]
    for _ in range(3):
        first.plan(13)
    second = manager((1, 1, 1))
    second.load_state_dict(first.state_dict())
    assert all((second.plan(13) == rows).all() for rows in expected[3:])


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ([0.5, 0.5], "one share for each of a, b, c; got shape"),
        ([0.5, 0.7, -0.2], "non-negative"),
        ([0, 0, 0], "not all zero"),
        ([np.nan, 1, 1], "finite"),
    ],
)
def test_impossible_proportions_are_refused(shares, message):
    with pytest.raises(ValueError, match=message):
        manager().set_proportions(shares)


def test_largest_remainder_by_hand():
    shares = np.array([0.42, 0.33, 0.25])
    assert largest_remainder(shares, 10, np.zeros(3)).tolist() == [4, 3, 3]
    assert largest_remainder(shares, 10, np.array([0, 1.0, 0])).tolist() == [4, 4, 2]


def test_the_three_rules_of_the_start():
    assert initial_proportions("mixture", [3, 1], [10, 30]).tolist() == [0.75, 0.25]
    assert initial_proportions("mixture", None, [10, 30]).tolist() == [0.25, 0.75]
    assert initial_proportions("stratified", None, [10, 30]).tolist() == [0.25, 0.75]
    assert initial_proportions("uniform", None, [10, 30]).tolist() == [0.5, 0.5]


class Counting(list):
    """A source with batched access that counts how often it is used."""

    calls = 0

    def __getitems__(self, rows):
        self.calls += 1
        return [self[row] for row in rows]


def test_sources_are_one_dataset_with_batched_access():
    a, b = Counting([{"v": i} for i in range(3)]), [{"v": 100 + i} for i in range(4)]
    mixed = MixedSources({"a": a, "b": b})
    assert len(mixed) == 7
    assert [row["v"] for row in mixed.__getitems__([6, 0, 3, 2])] == [103, 0, 100, 2]
    assert a.calls == 1
    assert [row["v"] for row in mixed] == [0, 1, 2, 100, 101, 102, 103]
    assert mixed[3]["v"] == 100
    assert mixed.sources_of(np.array([0, 2, 3, 6])).tolist() == [0, 0, 1, 1]
    with pytest.raises(IndexError, match="row 7 of 7"):
        mixed[7]


def test_the_old_name_of_sources_of_still_answers():
    with pytest.deprecated_call(match="sources_of"):
        assert MixedSources.domains(MixedSources({"a": [{}] * 3, "b": [{}]}), np.array([2, 3])).tolist() == [0, 1]


def test_planned_rows_keep_the_order_of_the_plan():
    planned = PlannedRows([{"v": i} for i in range(5)], np.array([4, 0, 4]))
    assert [planned[i]["v"] for i in range(3)] == [4, 0, 4]
    assert [row["v"] for row in planned.__getitems__([2, 1])] == [4, 0]


LONG = TokenRows(90, lengths=range(40, 121), seed=1)
SHORT = TokenRows(400, lengths=range(5, 12), seed=2)
TINY = TokenRows(3, lengths=30, seed=3)


@pytest.mark.parametrize("shares", [(0.5, 0.3, 0.2), (0.05, 0.9, 0.05), (1 / 3, 1 / 3, 1 / 3)])
def test_shares_of_tokens_are_met_within_one_per_cent_by_the_rows_of_the_segments(shares):
    sources = {"long": LONG, "short": SHORT, "tiny": TINY}
    mixed, lengths = MixedSources(sources), [row_lengths(rows) for rows in sources.values()]
    means = [part.mean() for part in lengths]
    mixture = MixtureManager(mixed.names, mixed.sizes, shares, 7, mean_lengths=means)
    rows = np.concatenate([mixture.plan(500) for _ in range(20)])
    tokens = np.bincount(mixed.sources_of(rows), weights=np.concatenate(lengths)[rows], minlength=3)
    np.testing.assert_allclose(tokens / tokens.sum(), shares, rtol=0, atol=0.01)
    by_rows = MixtureManager(mixed.names, mixed.sizes, shares, 7)
    rows = np.concatenate([by_rows.plan(500) for _ in range(20)])
    tokens = np.bincount(mixed.sources_of(rows), weights=np.concatenate(lengths)[rows], minlength=3)
    assert (abs(tokens / tokens.sum() / np.array(shares) - 1) > 0.1).any(), "the unit makes a difference here"


def test_amounts_are_in_the_unit_of_the_shares():
    assert MixtureManager("ab", [4, 6], [1, 1], 0).amounts.tolist() == [4, 6]
    assert MixtureManager("ab", [4, 6], [1, 1], 0, mean_lengths=[10, 2]).amounts.tolist() == [40, 12]
    assert MixtureManager("ab", [4, 6], [1, 1], 0, mean_lengths=[10, 2]).unit == "tokens"


def test_how_often_each_source_was_seen_counts_rows_and_passes():
    mixture = manager((0.5, 0.3, 0.2))
    mixture.plan(100)
    mixture.plan(100)
    assert mixture.seen() == {
        "rows_seen": {"a": 100, "b": 60, "c": 40},
        "passes": {"a": 10.0, "b": 0.3, "c": round(40 / 31, 6)},
    }


@pytest.mark.parametrize("given", [[1e308] * 3, [10**308] * 3, [1e38] * 3, [5e-324] * 3])
def test_initial_proportions_of_any_size_are_shares(given):
    np.testing.assert_allclose(initial_proportions("mixture", given, SIZES), [1 / 3] * 3)
