import numpy as np
import pytest
from dataflex.core.decision_hash import decision_hash
from dataflex.core.errors import ComponentError
from dataflex.planning import answers as decision
from dataflex.planning.answers import checked_permutation, checked_proportions, checked_rows, checked_scores

ASKED = {"count": 3, "size": 10, "replacement": False, "who": "selector 'x' at update 2 (step 7)"}


def test_good_answers_pass_in_order():
    assert checked_rows([9, 0, 4], **ASKED).tolist() == [9, 0, 4]
    assert checked_rows([4, 4, 4], **(ASKED | {"replacement": True})).tolist() == [4, 4, 4]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([1, 2], "returned 2 rows; expected 3"),
        ([1, 2, 3, 4], "returned 4 rows; expected 3"),
        ([1, 2, 10], "1 row numbers outside of the dataset, the first is 10; expected 0 to 9"),
        ([-1, 2, 3], "the first is -1"),
        ([1, 2, 2], "1 rows more than once"),
        ([0.5, 1.0, 2.0], "float64"),
        ([1.0, float("nan"), 2.0], "NaN or infinite"),
        ([[1, 2, 3]], r"shape \(1, 3\)"),
        (None, "NoneType"),
    ],
)
def test_a_bad_answer_of_a_selector_names_component_update_and_step(answer, message):
    with pytest.raises(ComponentError, match=message) as error:
        checked_rows(answer, **ASKED)
    assert str(error.value).startswith("selector 'x' at update 2 (step 7) returned")


def test_scores_belong_to_rows():
    assert checked_scores(None, count=3, who="x") is None
    with pytest.raises(ComponentError, match=r"scores of shape \(2,\); expected one for each of its 3 rows"):
        checked_scores([1.0, 2.0], count=3, who="x")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([0.5, 0.5, 0.0], "expected 2 shares, one for each of a, b"),
        ([0.5, 0.6], "sum 1.1"),
        ([1.5, -0.5], "non-negative"),
        ([np.nan, 1.0], "finite"),
        ("half", "str"),
    ],
)
def test_a_bad_answer_of_a_mixer_is_refused(answer, message):
    with pytest.raises(ComponentError, match=message):
        checked_proportions(answer, names=["a", "b"], who="mixer 'x' at update 0 (step 0)")


def test_the_hash_tells_order_and_value_apart():
    a = np.array([1, 2, 3])
    assert decision_hash(a) == decision_hash(np.array([1, 2, 3]))
    assert decision_hash(a) != decision_hash(a[::-1])
    assert len(decision_hash(a)) == 16


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint8, list])
def test_a_permutation_is_taken_from_integers_of_any_width(kind):
    answer = [2, 0, 1] if kind is list else np.array([2, 0, 1], dtype=kind)
    found = checked_permutation(answer, 3, "order 'x'")
    assert found.tolist() == [2, 0, 1]
    assert found.dtype == np.int64


def test_no_rows_are_arranged_as_nothing():
    assert checked_permutation([], 0, "order 'x'").tolist() == []


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([0, 1], "returned 2 positions for 3 rows; expected each of 0 to 2 once"),
        ([0, 1, 3], "returned the position 3; expected each of 0 to 2 once"),
        ([0, 1, -1], "returned the position -1; expected each of 0 to 2 once"),
        ([0, 2, 2], "left out 1 of 3 rows, the first is 1, and repeated others; expected each of 0 to 2 once"),
        ([0.0, 1.0, 2.0], "returned list of shape (3,) and type float64; expected a flat sequence of 3 integer"),
        ([[0, 1, 2]], "returned list of shape (1, 3)"),
        ([True, False, True], "type bool; expected a flat sequence of 3 integer positions"),
        (None, "returned NoneType of shape ()"),
        ("abc", "returned str of shape ()"),
    ],
)
def test_what_is_no_permutation_is_refused_with_who_what_and_what_is_expected(answer, message):
    with pytest.raises(ComponentError) as caught:
        checked_permutation(answer, 3, "order 'x', update 2 at step 40,")
    assert str(caught.value).startswith("order 'x', update 2 at step 40, ")
    assert message in str(caught.value)


def test_a_fault_beyond_the_first_piece_of_a_permutation_is_found(monkeypatch):
    monkeypatch.setattr(decision, "_PIECE", 4)
    order = np.arange(11)
    assert checked_permutation(order[::-1], 11, "o").tolist() == list(range(10, -1, -1))
    for wrong in (11, 3):
        order[9] = wrong
        with pytest.raises(ComponentError, match=r"the position 11|the first is 9"):
            checked_permutation(order, 11, "o")
