"""The objective of a step does not depend on how the step is split, nor on what the training loop does to a loss."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from dataflex.objective.loop_scale import Loop, loop_of, scale, undone
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args
from packaging.version import Version
from rank_group import on_ranks
from split_step import LOSSES, ROWS, mixed_step, weighted_step
from transformers import Trainer

SPLITS = {"cross entropy": (4, 16), "smoothed": (2, 16)}  # into micro-batches; the others into 4
RANKS = 2


def require_same(found, expected, case):
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=2e-4, atol=1e-6, err_msg=f"{case}: {key}")


@pytest.mark.parametrize("counted", [True, False], ids=["counted", "not counted"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("by", ["sample", "token"])
def test_a_weighted_step_is_the_same_however_it_is_split_into_micro_batches(tmp_path, by, loss, counted):
    whole = weighted_step(tmp_path, 1, loss, by=by, counted=counted)
    assert np.linalg.norm(whole["gradient"]) > 0.1
    assert (whole["factors"] > 0).sum() == ROWS - 2
    for micro in SPLITS.get(loss, (4,)):
        require_same(weighted_step(tmp_path, micro, loss, by=by, counted=counted), whole, micro)


@pytest.mark.parametrize("loss", ["cross entropy", "smoothed"])
@pytest.mark.parametrize("by", ["sample", "token"])
def test_documents_of_packed_rows_are_the_same_however_their_rows_are_split(tmp_path, by, loss):
    whole = weighted_step(tmp_path, 1, loss, by=by, packed=True)
    require_same(weighted_step(tmp_path, 8, loss, by=by, packed=True), whole, 8)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_weighter_that_passes_no_count_on_trains_the_same_step(tmp_path, loss):
    whole = weighted_step(tmp_path, 1, loss, name="passes_no_count_on")
    require_same(weighted_step(tmp_path, 4, loss, name="passes_no_count_on"), whole, 4)


@pytest.mark.parametrize("weights", [(0.3, 2.0), (1.0, 1.0)], ids=["weighed", "alike"])
@pytest.mark.parametrize("counted", [True, False], ids=["counted", "not counted"])
@pytest.mark.parametrize("loss", ["cross entropy", "smoothed", "dft"])
def test_a_step_of_weighed_sources_is_the_same_however_it_is_split(tmp_path, loss, counted, weights):
    whole = mixed_step(tmp_path, 1, loss, counted=counted, weights=weights)
    for micro in SPLITS.get(loss, (4,)):
        require_same(mixed_step(tmp_path, micro, loss, counted=counted, weights=weights), whole, micro)


def test_the_objective_is_the_mean_that_is_promised_whatever_the_loop_counts(tmp_path):
    """All rows have labels behind the first token only, so both counts are the same."""
    found = [weighted_step(tmp_path, 4, "smoothed", by="token", counted=counted) for counted in (True, False)]
    require_same(found[1], found[0], "counted or not")


CASES = [
    ("weighted", {"loss": "cross entropy"}),
    ("weighted", {"loss": "cross entropy", "by": "token", "counted": False}),
    ("weighted", {"loss": "cross entropy", "by": "token", "packed": True}),
    ("weighted", {"loss": "smoothed", "by": "token"}),
    ("weighted", {"loss": "smoothed", "counted": False}),
    ("weighted", {"loss": "smoothed", "by": "token", "average_tokens_across_devices": False}),
    ("weighted", {"loss": "smoothed", "name": "passes_no_count_on"}),
    ("weighted", {"loss": "dft", "by": "token"}),
    ("weighted", {"loss": "chunked", "by": "token"}),
    ("weighted", {"loss": "chunked dft"}),
    ("mixed", {"loss": "cross entropy"}),
    ("mixed", {"loss": "cross entropy", "average_tokens_across_devices": False, "weights": (1.0, 1.0)}),
    ("mixed", {"loss": "smoothed", "counted": False}),
    ("mixed", {"loss": "smoothed", "weights": (1.0, 1.0)}),
    ("mixed", {"loss": "dft"}),
]
STEPS = {"weighted": weighted_step, "mixed": mixed_step}


def of_rank(accelerator, folder):
    found = {}
    for number, (kind, given) in enumerate(CASES):
        given = {"average_tokens_across_devices": True} | given  # transformers 4.51 has another default
        step = STEPS[kind](folder, 2, accelerator=accelerator, **given)
        found |= {f"{number} {key}": value for key, value in step.items()}
    return found


def test_two_ranks_with_two_micro_batches_make_the_step_of_one_batch_on_one_rank(tmp_path):
    ranks = on_ranks(of_rank, RANKS, tmp_path)
    for number, (kind, given) in enumerate(CASES):
        whole = STEPS[kind](tmp_path, 1, **given)
        for found in ranks:
            require_same({key: found[f"{number} {key}"] for key in whole}, whole, (kind, given))


@pytest.mark.parametrize("release", ["4.51.0", "4.53.0", "5.6.0"])
@pytest.mark.parametrize("short", [False, True], ids=["whole step", "last step of an epoch"])
def test_parts_of_a_loss_add_up_in_every_release(release, short):
    loop = Loop(True, True, False, True, ranks=2, accumulation=4, micro_batches=3 if short else 4)
    version = Version(release)
    assert scale(loop, version) == 2
    assert scale(replace(loop, averages_tokens=False), version) == 1
    divided = 1 / (3 if short and release == "5.6.0" else 4)
    assert scale(replace(loop, counted=False, takes_count=False), version) == divided
    assert scale(replace(loop, counted=False), version) == (1 if release == "4.51.0" else divided)
    assert scale(replace(loop, own_loss=True, counted=False), version) == 1


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("own_loss", [True, False])
@pytest.mark.parametrize("takes_count", [True, False])
@pytest.mark.parametrize("counted", [True, False])
def test_the_installed_loop_does_what_the_table_says(tmp_path, counted, takes_count, own_loss, average):
    """Should it fail with a new release of transformers, loop_scale.py must learn what that one does."""
    args = tiny_training_args(tmp_path, gradient_accumulation_steps=4)
    trainer = Trainer(model=tiny_model(), args=args, train_dataset=TokenRows(4), data_collator=pad_collate)
    trainer.args.average_tokens_across_devices = average
    trainer.model_accepts_loss_kwargs, trainer.current_gradient_accumulation_steps = takes_count, 3
    plain = torch.tensor(1.5, requires_grad=True)
    trainer.compute_loss_func = (lambda *args, **kwargs: plain * 1) if own_loss else None
    trainer.model.forward = lambda **kwargs: {"loss": plain * 1}
    trainer.create_optimizer()
    count = torch.tensor(10) if counted else None
    loss = trainer.training_step(trainer.model, pad_collate([TokenRows(1)[0]]), count)
    loop = loop_of(trainer, counted, 3)
    assert plain.grad.item() == pytest.approx(scale(loop))
    assert loss.item() == pytest.approx(1.5 * scale(loop)) == 1.5 / undone(loop)
