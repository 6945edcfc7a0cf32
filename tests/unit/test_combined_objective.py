"""The objective of any combination of weighter, mixer and weights of rows, against plain loops in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from combined_step import MIXERS, ROWS, Combined, combined, combined_step, documents, expected
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.kinds import MIXER
from dataflex.run.record import read_trace
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args
from dataflex.train.trainer import trainer_class
from dataflex.train.weighter.base_weighter import Weighter
from rank_group import on_ranks
from split_step import ByOwnLoss
from transformers import Trainer

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


WITH_LOGITS, WITHOUT = ("smoothed", "dft"), ("chunked", "chunked dft")  # which only a run with a weighter does


@pytest.mark.parametrize(
    ("weighter", "loss"),
    [(weighter, loss) for weighter in ("sample", "token") for loss in (*WITH_LOGITS, *WITHOUT)]
    + [("none", loss) for loss in WITH_LOGITS],
)
def test_every_loss_of_a_token_is_weighed_by_the_formula_and_observed_as_cross_entropy(tmp_path, weighter, loss):
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
    losses, model = np.concatenate([losses_B.numpy() for _, losses_B, _ in kept]), tiny_model(layers=1).double()
    dataset = combined(tmp_path / "alike", micro).train_dataset
    by_hand = [np.array(entropies) for n in numbers for *_, entropies in documents(model, dataset[int(n)], "", False)]
    assert len(by_hand) == ROWS
    expected_N = [part.mean() if part.size else np.nan for part in by_hand]
    np.testing.assert_allclose(losses, expected_N, rtol=1e-5)


@pytest.fixture
def reference(tmp_path):
    tiny_model(layers=1, seed=5).save_pretrained(tmp_path / "reference")
    return str(tmp_path / "reference")


def doremi(folder, reference, weighter, keys=None, resume=None, **args):
    """Trains DoReMi's proxy for some steps, with a weighter beside it."""

    class Both(Combined):
        pass

    Both.weighter = weighter
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "learning_rate": 1e-2}
    trainer = trainer_class(Both, Trainer)(
        model=tiny_model(layers=1),
        args=tiny_training_args(folder, **(sizes | {"max_steps": -1, "max_grad_norm": 0.0} | args)),
        train_dataset={name: TokenRows(30, lengths=range(6, 17), seed=i) for i, name in enumerate("ab")},
        data_collator=pad_collate,
        dataflex=RunSpec(
            DataflexArguments("dynamic_mix", component_name="doremi", update_times=0, train_step=5, **(keys or {})),
            ComponentSpec(MIXER, "doremi", "doremi", {"reference_model": reference}),
        ),
        overwrite_output_dir=True,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


class Uniform(Weighter):
    """The plain mean."""

    def get_weighted_loss(self, losses, *, ctx=None, model=None, inputs=None):
        return losses.mean()


def test_doremi_beside_a_uniform_weighter_is_doremi(tmp_path, reference):
    alone = doremi(tmp_path / "alone", reference, None)
    both = doremi(tmp_path / "both", reference, Uniform(), {"weight_objective": "token"})
    assert max(abs(alone.component.average - 0.5)) > 1e-3, "the weights of the sources have moved"
    np.testing.assert_allclose(both.component.average, alone.component.average, rtol=1e-5)
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(both.model.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_doremi_and_a_weighter_resume_to_the_last_bit_and_leave_the_same_record(tmp_path, reference):
    args = {"save_strategy": "steps", "save_steps": 1, "logging_steps": 2}
    whole = doremi(tmp_path / "w", reference, ByOwnLoss(), **args)
    alone = doremi(tmp_path / "alone", reference, None)
    assert not np.allclose(whole.component.average, alone.component.average, rtol=1e-6), "the weighter counts"
    again = doremi(tmp_path / "a", reference, ByOwnLoss(), resume=str(tmp_path / "w" / "checkpoint-3"), **args)
    np.testing.assert_array_equal(again.component.average, whole.component.average)
    assert all(torch.equal(again.model.state_dict()[name], value) for name, value in whole.model.state_dict().items())
    lines = [line for line in read_trace(tmp_path / "w") if line["kind"] == "weight"]
    assert [line["step"] for line in lines] == [1, 3, 4]
    assert all(set(line["sources"]) == {"a", "b"} for line in lines)
    assert [line for line in read_trace(tmp_path / "a") if line["kind"] == "weight"] == lines[1:]
