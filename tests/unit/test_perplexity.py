"""Perplexity takes rows from a band of the losses under a reference model, and what the early script got wrong."""

from __future__ import annotations

import numpy as np
import pytest
from dataflex.core.context import RunAhead, UpdateContext
from dataflex.core.errors import ComponentError, ConfigError
from dataflex.core.kinds import SELECTOR
from dataflex.discovery.component_classes import find
from dataflex.scoring import model_beside, per_sample_losses
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_tokenizer
from dataflex_selectors.parts.ranking import first_places
from dataflex_selectors.perplexity import BANDS, PerplexitySelector, band_of, widest
from every_component import run_objects
from golden_numbers import golden_cases

CASES = golden_cases("perplexity")
EMPTY_MIDDLE = ("three rows, nine tenths", "20 rows, nine tenths: 0.99")  # theirs cuts [c:-c], and c = 0 leaves nothing


def build(rows, folder="unused", **params):
    selector = PerplexitySelector(**run_objects(rows, folder=folder), **params)
    selector.bind("perplexity", 7)
    return selector


def context(update=0):
    return UpdateContext(update, 6, step=10 * update, total_steps=60, learning_rate=1e-3, optimizer=None)


def kept(case, band):
    """Returns the row ids of a band in the order of their losses, as :class:`PerplexitySelector` finds them."""
    losses, ids = np.array(case["inputs"]["summed_token_losses"]), np.array(case["inputs"]["row_ids"])
    first, last = band_of(len(losses), case["params"]["kept_share"], band)
    return ids[first_places(last, losses, ids)[first:]].tolist()


@pytest.fixture(scope="module")
def rows():
    return TokenRows(21, lengths=range(6, 20))


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def losses(rows, model):
    return per_sample_losses(model, rows, collator=pad_collate, progress=False)


def test_the_entry_point_leads_to_the_class():
    assert find(SELECTOR, "perplexity") is PerplexitySelector


@pytest.mark.parametrize("band", BANDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"][:40])
def test_bands_are_those_of_the_early_script_but_where_it_is_wrong(case, band):
    size, share = len(case["inputs"]["row_ids"]), case["params"]["kept_share"]
    found, theirs = kept(case, band), case["outputs"][band]["kept_in_order"]
    if band == "medium" and theirs == [] and size > 0:
        assert found, "nothing to cut at the ends keeps everything: theirs comes out empty"
        cut = int(size * (1 - share) / 2 + 1e-9)
        assert len(found) == size - 2 * cut
    elif band == "medium" and int(size * (1 - share) / 2) < int(size * (1 - share) / 2 + 1e-9):
        assert found == theirs[1:-1], "1.9999999999999996 rows at each end are two: theirs cuts one"
    elif band == "high" and int(size * share + 1e-9) == 0:
        assert found == []
        assert len(theirs) == size, "no row is wanted, and their slice keeps all of them"
    else:
        assert found == theirs


def test_the_cases_that_the_early_script_gets_wrong_are_among_those_compared():
    wrong = [case["name"] for case in CASES if case["outputs"]["medium"]["kept_in_order"] == []]
    assert all(any(name.startswith(known) for name in wrong) for known in EMPTY_MIDDLE)


def test_a_share_counts_rows_without_the_rounding_of_binary_fractions():
    assert band_of(100, 0.29, "low") == (0, 29), "100 * 0.29 is 28.999999999999996"
    assert band_of(20, 0.9, "medium") == (1, 19), "20 * 0.1 / 2 is 0.9999999999999998"


@pytest.mark.parametrize("band", BANDS)
@pytest.mark.parametrize("size", range(1, 12))
def test_bands_of_any_size_lie_within_the_rows_and_hold_about_their_share(size, band):
    for share in (0.1, 0.25, 0.5, 0.9, 1.0):
        first, last = band_of(size, share, band)
        assert 0 <= first <= last <= size
        assert abs(last - first - share * size) <= (2 if band == "medium" else 1)
    for count in range(size + 1):
        first, last = widest(size, count, band)
        assert last - first == count
        assert first >= 0


@pytest.mark.parametrize(("band", "places"), [("low", slice(0, 5)), ("medium", slice(8, 13)), ("high", slice(16, 21))])
def test_without_a_share_the_rows_asked_for_are_the_whole_band(rows, model, losses, band, places):
    found = build(rows, band=band, share=None).select(model, 0, 5, context=context())
    assert set(found.indices.tolist()) == set(np.argsort(losses, kind="stable")[places].tolist())
    np.testing.assert_array_equal(found.scores, losses[found.indices])


def test_with_a_share_rows_are_drawn_from_the_band_anew_at_each_update(rows, model, losses):
    selector = build(rows, band="low", share=0.5)
    drawn = [selector.select(model, 0, 4, context=context(update)).indices.tolist() for update in (0, 1, 0)]
    assert drawn[0] == drawn[2] != drawn[1]
    assert set(drawn[0] + drawn[1]) <= set(np.argsort(losses, kind="stable")[:10].tolist())


def test_a_band_that_holds_too_few_rows_is_refused_with_the_way_out(rows, model):
    with pytest.raises(ComponentError, match=r"only 5 of 21 lie in the band \(band: high, share: 0\.25\) -> a larger"):
        build(rows, band="high", share=0.25).select(model, 0, 6, context=context())


def test_a_band_that_no_update_can_be_filled_from_is_refused_before_the_first_step(rows, model):
    selector = build(rows, band="high", share=0.25)
    with pytest.raises(ComponentError, match=r"only 5 of 21 lie in the band .* -> a larger share, or null"):
        selector.check_run(model, RunAhead(updates=1, total_steps=4, most_rows=6))
    selector.check_run(model, RunAhead(updates=1, total_steps=4, most_rows=5))
    selector.check_run(model, RunAhead(updates=1, total_steps=4, most_rows=6, shared_out=True))  # may be fewer


@pytest.mark.parametrize("band", BANDS)
def test_the_rows_with_the_highest_scores_are_those_of_the_band(rows, model, band):
    selector = build(rows, band=band, share=None)
    scores = selector.scores(model, 0, context=context())
    best = np.argsort(-scores, kind="stable")[:5]
    assert set(best.tolist()) == set(selector.select(model, 0, 5, context=context()).indices.tolist())


def test_a_row_without_a_label_has_no_score_and_is_never_drawn(model):
    rows = [*TokenRows(6), {"input_ids": [5, 6], "attention_mask": [1, 1], "labels": [-100, -100]}]
    selector = build(rows, band="high", share=1.0)
    assert np.isnan(selector.scores(model, 0, context=context())[-1])
    assert set(selector.select(model, 0, 6, context=context()).indices.tolist()) == set(range(6))
    with pytest.raises(ComponentError, match="7 rows are wanted, but only 6 of 7"):
        selector.check_run(model, RunAhead(updates=1, total_steps=4, most_rows=7))


def test_a_reference_model_scores_once_and_its_losses_resume(rows, model, tmp_path, monkeypatch):
    tiny_model(seed=3).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    given = {"reference_model": str(tmp_path), "tokenizer": tiny_tokenizer(), "band": "high", "share": None}
    selector = build(rows, tmp_path / "cache", **given)
    selector.check_run(model, RunAhead(updates=1, total_steps=4, most_rows=7))
    found = selector.select(model, 0, 7, context=context())
    wanted = per_sample_losses(tiny_model(seed=3), rows, collator=pad_collate, progress=False)
    np.testing.assert_allclose(found.candidates, wanted, rtol=1e-5)
    resumed = build(rows, tmp_path / "cache", **given)
    resumed.load_state_dict(selector.state_dict())
    monkeypatch.setattr(model_beside, "load_whole", None)  # would raise
    assert resumed.select(model, 0, 7, context=context()).indices.tolist() == found.indices.tolist()


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"band": "middle"}, "band of the perplexity selector: found 'middle', allowed: low, medium, high"),
        ({"share": 0}, "share of the perplexity selector: found 0, allowed: a number above 0 and at most 1, or null"),
        ({"reference_model": "./nowhere"}, "reference_model of the perplexity selector: there is no folder"),
        ({"token_budget": 0}, "token_budget of the perplexity selector: found 0"),
    ],
)
def test_a_wrong_parameter_is_named_with_what_is_allowed(rows, params, said):
    with pytest.raises(ConfigError) as caught:
        build(rows, **params)
    assert said in str(caught.value)
