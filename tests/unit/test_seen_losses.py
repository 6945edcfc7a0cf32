"""The losses that training has seen: the latest of each row, the same on any number of ranks, no wait for a device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dataflex.core.errors import CheckpointError
from dataflex.run.state import load_state, save_state
from dataflex.scoring.seen_losses import _TOGETHER, SeenLosses
from pretend_device import DEVICE, pretended
from rank_group import on_ranks

N = 60


def noted(seen, rows, losses, step):
    seen.note(torch.tensor(rows), torch.tensor(losses), step)


def test_a_row_keeps_the_loss_of_its_latest_step_and_the_mean_of_several_at_one_step():
    seen = SeenLosses(6)
    noted(seen, [0, 1, 2], [1.0, 2.0, 3.0], 4)
    noted(seen, [2, 1, 1], [5.0, 0.25, 0.75], 5)
    assert (seen.steps == -1).all(), "notes count from the next gather on"
    seen.gather()
    np.testing.assert_array_equal(seen.losses, np.float32([1.0, 0.5, 5.0, np.nan, np.nan, np.nan]))
    assert seen.steps.tolist() == [4, 5, 5, -1, -1, -1]
    noted(seen, [0], [9.0], 6)
    seen.gather()
    assert seen.losses[:3].tolist() == [9.0, 0.5, 5.0]
    assert (seen.losses.dtype, seen.steps.dtype) == (np.float32, np.int32), "8 bytes per row"


def test_a_loss_that_is_not_finite_leaves_the_row_what_it_had():
    seen = SeenLosses(3)
    noted(seen, [0, 1], [1.0, float("nan")], 1)
    noted(seen, [0, 2], [float("inf"), 3.0], 2)
    seen.gather()
    np.testing.assert_array_equal(seen.losses, np.float32([1.0, np.nan, 3.0]))
    assert seen.steps.tolist() == [1, -1, 2]


def test_half_precision_and_gradients_are_taken_as_plain_float32():
    seen = SeenLosses(2)
    seen.note(torch.tensor([1]), torch.tensor([0.5], dtype=torch.bfloat16, requires_grad=True), 0)
    seen.gather()
    assert seen.losses[1] == 0.5
    assert seen.steps.tolist() == [-1, 0]


def test_gathering_without_a_note_changes_nothing():
    seen = SeenLosses(3)
    seen.gather()
    assert (seen.steps == -1).all()
    assert np.isnan(seen.losses).all()


def test_many_more_notes_than_leave_the_device_at_once_are_all_kept_in_order():
    seen = SeenLosses(5)
    for step in range(3 * _TOGETHER + 7):
        noted(seen, [step % 5], [float(step)], step)
    seen.gather()
    last = 3 * _TOGETHER + 6
    expected = sorted(range(last - 4, last + 1), key=lambda step: step % 5)
    assert seen.steps.tolist() == expected
    assert seen.losses.tolist() == expected


def test_a_checkpoint_holds_both_arrays_and_one_of_other_rows_is_refused(tmp_path):
    seen = SeenLosses(4)
    noted(seen, [3, 0], [1.5, 2.5], 7)
    seen.gather()
    save_state(tmp_path, {"identity": {}, "seen": seen.state_dict()})
    again = SeenLosses(4)
    noted(again, [1], [1.0], 1)  # noted before it is resumed: gone
    again.load_state_dict(load_state(tmp_path)["seen"])
    again.gather()
    np.testing.assert_array_equal(again.losses, seen.losses)
    np.testing.assert_array_equal(again.steps, seen.steps)
    with pytest.raises(CheckpointError, match="seen losses of 4 rows, the train dataset has 5 -> resume with"):
        SeenLosses(5).load_state_dict(seen.state_dict())


def test_notes_that_were_not_gathered_cannot_be_lost_in_a_checkpoint():
    seen = SeenLosses(2)
    noted(seen, [0], [1.0], 0)
    with pytest.raises(AssertionError, match="would be lost"):
        seen.state_dict()


def test_a_training_that_begins_anew_has_seen_nothing():
    seen = SeenLosses(2)
    noted(seen, [0], [1.0], 0)
    seen.gather()
    noted(seen, [1], [1.0], 1)
    seen.forget()
    seen.gather()
    assert seen.steps.tolist() == [-1, -1]
    assert np.isnan(seen.losses).all()


def test_a_note_never_makes_the_host_wait_for_the_device():
    with pretended() as reads:
        seen = SeenLosses(8)
        for step in range(2 * _TOGETHER + 3):
            rows, losses = torch.tensor([step % 8], device=DEVICE), torch.tensor([1.0 + step], device=DEVICE)
            seen.note(rows, losses, step)
        assert not reads, reads
    seen.gather()
    assert seen.steps.tolist() == [512, 513, 514, 507, 508, 509, 510, 511]
    assert seen.losses.tolist() == [step + 1 for step in seen.steps.tolist()]


# --- ranks: the notes of a run of 12 steps, dealt out


def run_of_steps():
    """(step, rows, losses): 12 steps of 6 rows, some twice in a step, some with no loss."""
    rng = np.random.default_rng(0)
    for step in range(12):
        rows = rng.integers(0, N, 6)
        rows[5] = rows[0]  # a row twice at a step, on two ranks
        losses = rng.random(6).astype(np.float32) * 10
        losses[3] = np.nan if step % 3 == 0 else losses[3]
        yield step, rows, losses


def seen_by(rank, ranks, accelerator):
    seen = SeenLosses(N)
    for step, rows, losses in run_of_steps():
        seen.note(torch.from_numpy(rows[rank::ranks]), torch.from_numpy(losses[rank::ranks]), step)
        if step in (4, 11):
            seen.gather(accelerator)
    return {"losses": seen.losses, "steps": seen.steps}


def work(accelerator, folder):
    return seen_by(accelerator.process_index, accelerator.num_processes, accelerator)


def one_rank_has_nothing(accelerator, folder):
    seen = SeenLosses(N)
    if accelerator.process_index == 1:
        noted(seen, [7, 8], [1.0, 2.0], 3)
    seen.gather(accelerator)
    return {"losses": seen.losses, "steps": seen.steps}


def test_two_ranks_hold_exactly_what_one_holds(tmp_path):
    alone = seen_by(0, 1, None)
    assert (alone["steps"] >= 0).sum() > 20
    for rank in on_ranks(work, 2, tmp_path):
        for name, expected in alone.items():
            np.testing.assert_array_equal(rank[name], expected)
            assert rank[name].dtype == expected.dtype


def test_a_rank_without_notes_gets_those_of_the_other(tmp_path):
    for rank in on_ranks(one_rank_has_nothing, 2, tmp_path):
        assert rank["steps"][[7, 8]].tolist() == [3, 3]
        assert rank["losses"][[7, 8]].tolist() == [1.0, 2.0]
        assert (rank["steps"] >= 0).sum() == 2
