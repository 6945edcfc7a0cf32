"""The objective of any combination of weighter, mixer and weights of rows, against plain loops in float64."""

from __future__ import annotations

import numpy as np
import pytest
from combined_step import MIXERS, ROWS, combined, combined_step, expected
from rank_group import on_ranks

RANKS = 2


def require(tmp_path, micro, *, counted=True, **given):
    found = combined_step(tmp_path, micro, counted=counted, **given)
    want = expected(tmp_path, combined(tmp_path / "alike", micro, **given), counted=counted, **given)
    assert np.linalg.norm(want["gradient"]) > 1e-3
    for key, value in want.items():
        np.testing.assert_allclose(found[key], value, rtol=5e-4, atol=2e-6, err_msg=key)


@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("rows", [False, True], ids=["", "rows"])
@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("weighter", ["none", "sample", "token"])
def test_every_combination_is_the_formula(tmp_path, weighter, mixer, rows, micro):
    if (weighter, mixer, rows) != ("none", "none", False):  # that is the static run
        require(tmp_path, micro, weighter=weighter, mixer=mixer, rows=rows)


@pytest.mark.parametrize("loss", ["smoothed", "dft", "chunked", "chunked dft"])
@pytest.mark.parametrize("weighter", ["none", "sample", "token"])
def test_every_loss_of_a_token_is_weighed_by_the_formula_and_observed_as_cross_entropy(tmp_path, weighter, loss):
    if weighter == "none" and "chunked" in loss:
        pytest.skip("only a run with a weighter leaves the logits out")
    require(tmp_path, 3, loss=loss, weighter=weighter, mixer="weighs", rows=True)


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("weighter", ["sample", "token"])
def test_documents_of_packed_rows_have_the_weights_of_their_row_and_source(tmp_path, weighter, mixer):
    require(tmp_path, 3, weighter=weighter, mixer=mixer, rows=True, packed=True)


@pytest.mark.parametrize("given", [{"weighter": "sample"}, {"mixer": "weighs"}, {}], ids=str)
def test_it_does_not_matter_whether_the_loop_counts_labels(tmp_path, given):
    require(tmp_path, 3, counted=False, rows=True, **given)


CASES = [
    {"weighter": "sample", "mixer": "weighs", "rows": True},
    {"weighter": "token", "mixer": "weighs", "rows": True, "loss": "chunked"},
    {"weighter": "sample", "mixer": "observes", "packed": True},
    {"mixer": "weighs", "rows": True, "loss": "smoothed"},
    {"rows": True},
]


def of_rank(accelerator, folder):
    found = {}
    for number, given in enumerate(CASES):
        step = combined_step(folder, 2, accelerator=accelerator, average_tokens_across_devices=True, **given)
        found |= {f"{number} {key}": value for key, value in step.items()}
    return found


def test_two_ranks_with_two_micro_batches_make_the_step_of_one_batch_on_one_rank(tmp_path):
    ranks = on_ranks(of_rank, RANKS, tmp_path)
    for number, given in enumerate(CASES):
        whole = combined_step(tmp_path, 1, **given)
        for found in ranks:
            for key, value in whole.items():
                close = {"rtol": 2e-4, "atol": 1e-6, "err_msg": f"{given}: {key}"}
                np.testing.assert_allclose(found[f"{number} {key}"], value, **close)


@pytest.mark.parametrize("given", [{}, {"weighter": "sample"}, {"mixer": "observes"}, {"mixer": "weighs"}], ids=str)
@pytest.mark.parametrize("micro", [1, 3])
def test_losses_of_rows_are_offered_to_who_keeps_them(tmp_path, given, micro):
    kept = []

    def seen(rows_B, losses_B, step):
        kept.append((rows_B.clone(), losses_B.clone(), step))

    quiet = combined_step(tmp_path / "quiet", micro, **given)
    found = combined_step(tmp_path, micro, seen=seen, **given)
    assert all(np.array_equal(found[key], quiet[key]) for key in quiet), "to look changes no bit"
    numbers = np.load(tmp_path / "dataflex_selections" / "step_00000000.npz")["indices"]
    assert [int(row) for rows_B, _, _ in kept for row in rows_B] == numbers.tolist()
    assert {step for _, _, step in kept} == {0}
    losses = np.concatenate([losses_B.numpy() for _, losses_B, _ in kept])
    trainer = combined(tmp_path / "alike", micro)
    labelled = [any(label != -100 for label in trainer.train_dataset[int(n)]["labels"][1:]) for n in numbers]
    assert np.array_equal(np.isfinite(losses), labelled)
    assert len(losses) == ROWS
