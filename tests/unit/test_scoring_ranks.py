"""Two and three ranks get the losses that one gets, to the last bit, and disagree about nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dataflex.core.errors import ComponentError
from dataflex.scoring import agreed_budget, gather_by_row, per_sample_losses
from dataflex.testing import TokenRows, pad_collate, tiny_model
from rank_group import on_ranks, one_thread

BUDGET = 90


def dataset():
    rows = list(TokenRows(13, lengths=range(6, 40)))
    rows[4]["labels"] = [-100] * len(rows[4]["labels"])  # NaN has to travel as well
    return rows


def scored(accelerator, folder):
    model, rows = tiny_model(), dataset()
    options = {"collator": pad_collate, "accelerator": accelerator, "progress": False}
    return {
        "losses": per_sample_losses(model, rows, token_budget=BUDGET, **options),
        "wrapped": per_sample_losses(accelerator.prepare(tiny_model()), rows, token_budget=BUDGET, **options),
        "one batch": per_sample_losses(model, rows, token_budget=10_000, **options),
        "some": per_sample_losses(model, rows, indices=[5, 1], token_budget=BUDGET, **options),
        "none": per_sample_losses(model, rows, indices=[], **options),
        "budget": np.array(agreed_budget(100 + accelerator.process_index, accelerator)),
        "errors": np.array(_errors(model, rows, options)),
    }


def _errors(model, rows, options):
    """What goes wrong on one rank has to stop all of them; one that went on would wait for ever."""
    found = []
    with torch.no_grad():
        model.model.embed_tokens.weight[rows[0]["input_ids"][3]] = torch.nan  # row 0 is in one rank's share alone
    try:
        per_sample_losses(model, rows, indices=[0, 4], token_budget=1, **options)
    except ComponentError as error:
        found.append(str(error))
    try:
        gather_by_row(np.array([0]), torch.ones(1), 2, options["accelerator"])  # row 0 on every rank, row 1 on none
    except RuntimeError as error:
        found.append(str(error))
    return found


@pytest.fixture(scope="module", params=[2, 3])
def answers(request, tmp_path_factory):
    return on_ranks(scored, request.param, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def alone():
    model, rows, options = tiny_model(), dataset(), {"collator": pad_collate, "progress": False}
    with one_thread():
        found = {
            "losses": per_sample_losses(model, rows, token_budget=BUDGET, **options),
            "one batch": per_sample_losses(model, rows, token_budget=10_000, **options),
            "some": per_sample_losses(model, rows, indices=[5, 1], token_budget=BUDGET, **options),
            "none": np.empty(0, dtype=np.float32),
        }
    return found | {"wrapped": found["losses"]}


@pytest.mark.parametrize("what", ["losses", "wrapped", "one batch", "some", "none"])
def test_every_rank_has_the_losses_of_a_single_process(answers, alone, what):
    for answer in answers:
        np.testing.assert_array_equal(answer[what], alone[what])


def test_the_smallest_budget_holds_for_all(answers):
    assert {int(answer["budget"]) for answer in answers} == {100}


def test_what_is_wrong_on_one_rank_stops_them_all(answers):
    first, second = answers[0]["errors"].tolist()
    assert "NaN or infinite for 1 of 2 rows, first for row 0" in first
    assert "not computed exactly once" in second
    assert all(answer["errors"].tolist() == [first, second] for answer in answers)
