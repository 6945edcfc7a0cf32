"""Two and three ranks get the losses that one gets, to the last bit, and disagree about nothing."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
import torch
from dataflex.core.errors import ComponentError
from dataflex.core.ranks.by_row import sum_over_ranks
from dataflex.core.ranks.gather_samples import gather_samples
from dataflex.scoring import RowPass, agreed_budget, gather_by_row, per_sample_losses
from dataflex.testing import TokenRows, pad_collate, tiny_model
from rank_group import on_ranks, one_thread

BUDGET = 90


def dataset():
    rows = list(TokenRows(13, lengths=range(6, 40)))
    rows[4]["labels"] = [-100] * len(rows[4]["labels"])  # NaN has to travel as well
    return rows


ROWS, WIDTH, PART = 11, 3, 60  # of what is gathered in parts, and the numbers of a part


class Sizes:
    """An accelerator that notes the numbers it is given to gather."""

    def __init__(self, accelerator):
        self.accelerator, self.gathered = accelerator, []

    def __getattr__(self, name):
        return getattr(self.accelerator, name)

    def gather(self, tensor):
        self.gathered.append(tensor.numel())
        return self.accelerator.gather(tensor)


def in_parts(accelerator):
    """Gathers and adds up in many parts; rank 0 has most of the rows, and the last rank none."""
    rank, last = accelerator.process_index, accelerator.num_processes - 1
    own = np.arange(ROWS)[::-1].copy()
    own = own[: 8 if last > 1 else ROWS] if rank == 0 else own[8:] if 0 < rank < last else own[:0]
    values = torch.from_numpy(own).float()[:, None] * torch.tensor([1.0, -1.0, torch.inf])
    sizes = Sizes(accelerator)
    with patch("dataflex.core.ranks.by_row.PART_NUMBERS", PART):
        everywhere = gather_by_row(own, values, ROWS, sizes)
        on_rank_0 = gather_by_row(own, values, ROWS, accelerator, everywhere=False)
        total = sum_over_ranks(np.full((40, 2), 0.1 + rank) ** 3, sizes)
    return {
        "gathered": everywhere,
        "on rank 0": on_rank_0,
        "largest": np.array(max(sizes.gathered) * accelerator.num_processes),
        "parts": np.array(len(sizes.gathered)),
        "total": total,
    }


def learnt(model, rows, options):
    """Passes of which one rank runs out of memory in the first: in the second, no rank tries what did not fit."""
    accelerator, tried = options["accelerator"], []

    def score(batch):
        tried.append(batch.inputs["input_ids"].numel())
        if tried[-1] > 60 and accelerator.process_index == 0:
            raise torch.OutOfMemoryError
        return batch.inputs["input_ids"].sum(1).float()

    rows_pass = RowPass(rows, pad_collate, accelerator, token_budget=BUDGET, progress=False)
    first = rows_pass.values(model, score)
    tried.clear()
    second = rows_pass.values(model, score)
    return {"first": first, "second": second, "tried": np.array(max(tried))}


def compared(accelerator):
    """Samples of ranks that have 1, 2, ... of them; the last of each does not count."""
    rank, ranks = accelerator.process_index, accelerator.num_processes
    values = torch.arange(rank + 1.0) + 10 * rank
    counted = torch.arange(rank + 1) < rank
    everyone, all_counted, own = gather_samples(values, counted, accelerator, ranks)
    assert torch.equal(everyone[own], values)
    assert torch.equal(all_counted[own], counted)
    return {"compared": everyone[all_counted].numpy()}


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
        **in_parts(accelerator),
        **learnt(tiny_model(), rows, options),
        **compared(accelerator),
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


def test_values_gathered_in_parts_are_whole_and_no_rank_sends_more_than_a_part(answers):
    expected = (torch.arange(ROWS).float()[:, None] * torch.tensor([1.0, -1.0, torch.inf])).numpy()  # 0 times inf: NaN
    for rank, answer in enumerate(answers):
        np.testing.assert_array_equal(answer["gathered"], expected)
        np.testing.assert_array_equal(answer["on rank 0"], expected if rank == 0 else expected[:0])
        assert answer["largest"] <= PART
        assert answer["parts"] > 4


def test_sums_over_ranks_are_in_float64_and_the_same_on_every_rank(answers):
    expected = sum((0.1 + rank) ** 3 for rank in range(len(answers)))
    for answer in answers:
        assert answer["total"].dtype == np.float64
        np.testing.assert_array_equal(answer["total"], answers[0]["total"])
        np.testing.assert_allclose(answer["total"], np.full((40, 2), expected), rtol=1e-15)


def test_what_one_rank_has_learnt_of_its_memory_holds_for_all(answers):
    expected = [sum(row["input_ids"]) for row in dataset()]
    for answer in answers:
        np.testing.assert_array_equal(answer["first"], expected)  # every row once
        np.testing.assert_array_equal(answer["second"], expected)
        assert answer["tried"] <= 60


def test_samples_are_compared_over_ranks_with_different_numbers_of_them(answers):
    expected = [10 * rank + i for rank in range(len(answers)) for i in range(rank)]
    for answer in answers:
        assert answer["compared"].tolist() == expected
