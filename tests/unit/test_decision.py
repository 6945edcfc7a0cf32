import numpy as np
import pytest
from dataflex.core.errors import ComponentError
from dataflex.planning.answers import checked_proportions, checked_rows, checked_scores, decision_hash

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
