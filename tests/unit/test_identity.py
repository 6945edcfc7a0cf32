"""The tables of what may differ, and how a difference is told."""

from __future__ import annotations

import numpy as np
import pytest
from dataflex.config.arguments import DataflexArguments
from dataflex.config.known_keys import llamafactory_keys
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.errors import CheckpointError
from dataflex.core.kinds import SELECTOR
from dataflex.core.schedule import Schedule
from dataflex.planning.mixture import MixtureManager
from dataflex.rows.views import MixedSources
from dataflex.run import identity
from dataflex.run.identity import differences, identity_of_rows, identity_of_run, require_same, settings
from dataflex.run.run_length import require_continues
from dataflex.testing import TokenRows

RENAMED = {  # fields that only some of the supported versions have
    "group_by_length", "train_sampling_strategy", "enable_jit_checkpoint", "hub_revision", "master_addr", "master_port",
    "project", "trackio_space_id", "ddp_static_graph", "trackio_bucket_id", "trackio_static_space_id",
    "enable_torch_profiler", "profile_modules", "profiler_output_dir", "profiler_wait_steps", "profiler_warmup_steps",
    "profiler_active_steps", "profiler_repeat", "profiler_record_shapes", "profiler_profile_memory",
    "profiler_with_stack", "sglang_maxlen", "sglang_mem_fraction", "sglang_tp_size", "sglang_config",
    "sglang_lora_backend", "save_safetensors", "push_to_hub_model_id", "push_to_hub_organization", "push_to_hub_token",
    "activation_checkpointing", "activation_checkpointing_kwargs", "dataloader_multiprocessing_context",
    "dataloader_in_order",
}  # fmt: skip


@pytest.mark.llamafactory
def test_the_tables_name_keys_that_exist():
    known = llamafactory_keys() | set(DataflexArguments.names()) | RENAMED
    tables = [identity.MAY_DIFFER, identity.LENGTH, identity.NAMES]
    named = {*identity.TRAINING_ARGUMENTS, *identity.ROW_ORDER}.union(*tables)
    assert named - known == set()
    assert not identity.MAY_DIFFER & {*identity.TRAINING_ARGUMENTS, *identity.ROW_ORDER, *identity.NAMES}


SHAPES_ROWS = {
    "dataset", "template", "cutoff_len", "train_on_prompt", "mask_history", "packing", "neat_packing", "max_samples",
    "val_size", "mix_strategy", "interleave_probs", "streaming", "buffer_size", "ignore_pad_token_for_loss",
    "default_system", "enable_thinking", "tool_format", "preprocessing_batch_size", "image_max_pixels", "stage",
    "finetuning_type", "lora_rank", "lora_alpha", "lora_target", "use_dft_loss", "disable_shuffling", "learning_rate",
}  # fmt: skip


def test_no_key_that_shapes_rows_or_the_objective_may_differ():
    assert not SHAPES_ROWS & identity.MAY_DIFFER


def test_a_key_that_nobody_thought_of_is_compared():
    assert settings({"something_new": 1, "logging_steps": 5, "train_step": 9, "empty": None}) == {"something_new": 1}


def test_a_model_may_lie_elsewhere_but_must_have_its_name():
    assert settings({"model_name_or_path": "a/tiny"}) == settings({"model_name_or_path": "/b/c/tiny/"})
    assert settings({"adapter_name_or_path": "a/x,b/y"}) == settings({"adapter_name_or_path": ["x", "z/y"]})
    assert settings({"model_name_or_path": "a/tiny"}) != settings({"model_name_or_path": "a/small"})


def test_nan_is_nan_and_what_is_off_so_that_an_older_run_goes_on():
    """``max_grad_norm: .nan`` passed once; nothing was clipped, as with 0."""
    nan = float("nan")
    saved = {"data": [], "arguments": {"max_grad_norm": float("nan"), "optim": "x"}, "params": {"a": [float("nan")]}}
    for now in ({"max_grad_norm": nan, "optim": "x"}, {"optim": "x"}):
        require_same(saved, {"data": [], "arguments": now, "params": {"a": [nan]}}, "checkpoint-1")
    with pytest.raises(CheckpointError, match=r"max_grad_norm: nan in the checkpoint, 1\.0 now"):
        require_same(saved, saved | {"arguments": {"max_grad_norm": 1.0, "optim": "x"}}, "checkpoint-1")
    with pytest.raises(CheckpointError, match="params: "):
        require_same(saved, saved | {"params": {"a": [1.0]}}, "checkpoint-1")
    assert differences({"max_grad_norm": nan}, {"max_grad_norm": 0}, "before") == []
    assert differences({"max_grad_norm": nan}, {"max_grad_norm": nan}, "before") == []
    assert differences({"max_grad_norm": nan}, {"max_grad_norm": 1}, "before") == ["max_grad_norm: nan before, 1 now"]


def test_datasets_are_the_same_with_commas_and_as_a_list():
    assert settings({"dataset": "a, b"}) == settings({"dataset": "a,b"}) == settings({"dataset": ["a", "b"]})
    assert settings({"dataset": "a,b"}) != settings({"dataset": "b,a"})


def test_parameters_of_a_component_are_compared_as_values():
    def of(value):
        component = ComponentSpec(SELECTOR, "loss", "loss", {"share": value})
        return identity_of_run(RunSpec(DataflexArguments("dynamic_select"), component, {}), 1) | {"data": []}

    require_same(of(1), of(1.0), "x")
    require_same(of((1, 2)), of([1, 2]), "x")
    assert "params: {'share': 1} in the checkpoint, {'share': '1'} now" in refused(of(1), of("1"))


def made(rows=None, **keys):
    arguments = DataflexArguments(train_type="dynamic_mix", **keys)
    data = identity_of_rows("train dataset", TokenRows(9) if rows is None else rows)
    return identity_of_run(RunSpec(arguments, None, {"cutoff_len": 64}), 3) | {"data": data}


def refused(saved, now):
    with pytest.raises(CheckpointError) as caught:
        require_same(saved, now, "out/checkpoint-3")
    assert "belongs to another run" in str(caught.value)
    return str(caught.value)


def test_the_same_run_is_the_same_and_reading_its_rows_draws_nothing():
    class Draws(TokenRows):
        def __getitem__(self, row):
            np.random.random()
            return super().__getitem__(row)

    before = np.random.get_state()[1].tolist()
    require_same(made(Draws(9)), made(), "x")
    assert np.random.get_state()[1].tolist() == before


def test_every_difference_is_named():
    said = refused(made() | {"component": "loss"}, made(mixture_unit="tokens") | {"component": "random", "seed": 4})
    assert "component: loss in the checkpoint, random now" in said
    assert "mixture_unit: not set in the checkpoint, tokens now" in said
    assert "seed: 3 in the checkpoint, 4 now" in said


def test_sources_in_another_order_and_other_rows_are_told_apart():
    a, b = TokenRows(9), TokenRows(9, seed=2)
    both = made(MixedSources({"a": a, "b": b}))
    said = refused(both, made(MixedSources({"b": b, "a": a})))
    assert "sources, in this order: a, b in the checkpoint, b, a now" in said
    said = refused(both, made(MixedSources({"a": a, "b": TokenRows(9, seed=3)})))
    assert "b: 9 rows with the digest " in said
    assert "sources" not in said


def test_rows_that_are_drawn_anew_each_time_are_known_by_their_number_alone():
    class Augmented(TokenRows):
        read = 0

        def __getitem__(self, row):
            Augmented.read += 1
            return {"input_ids": [Augmented.read]}

    require_same(made(Augmented(9)), made(Augmented(9)), "x")
    refused(made(Augmented(9)), made(Augmented(10)))


def test_rows_of_which_few_are_drawn_anew_are_known_by_their_number_alone():
    class Sometimes(TokenRows):
        def __getitem__(self, row):
            return super().__getitem__(row) if np.random.random() >= 0.05 else {"input_ids": [0, 1]}

    ((_, number, digest),) = identity_of_rows("train dataset", Sometimes(300))
    assert (number, digest) == (300, "rows that differ each time they are read")
    lucky = [["train dataset", 300, "0123456789abcdef"]]
    drawn = [["train dataset", number, digest]]
    for saved, now in ((lucky, drawn), (drawn, lucky)):
        require_same(made() | {"data": saved}, made() | {"data": now}, "x")
    said = refused(made(Sometimes(300)), made(Sometimes(301)))
    assert "300 rows that differ each time they are read in the checkpoint, 301 rows that differ" in said


def test_a_checkpoint_of_an_earlier_version_is_refused_in_a_clear_sentence():
    with pytest.raises(CheckpointError, match="written by an earlier version of dataflex, which did not"):
        require_same({"rows": 9}, made(), "out/checkpoint-3")


def test_a_mixture_takes_back_the_state_of_its_own_sources_only():
    state = MixtureManager(["a", "b"], [5, 5], [0.9, 0.1], 0).state_dict()
    with pytest.raises(CheckpointError, match="a mixture of a, b cannot be that of b, a"):
        MixtureManager(["b", "a"], [5, 5], [0.5, 0.5], 0).load_state_dict(state)


def schedule(total, updates=2, warmup=2, interval=3, cycle=None):
    return Schedule(total, warmup, interval, updates, cycle or total, 5.0)


def fields(of):
    return dict(vars(of))


@pytest.mark.parametrize(
    ("before", "now", "step"),
    [
        (schedule(8), schedule(8), 8),
        (schedule(8), schedule(14, 4), 8),  # update_times 2 -> 4
        (schedule(8), schedule(11), 8),  # train_step: the last segment goes on
        (schedule(8), schedule(11), 6),
        (schedule(7, None), schedule(11, None), 7),  # ended inside of a segment
        (schedule(8), schedule(20, None), 5),
        (schedule(8, cycle=8), schedule(24, cycle=8), 8),  # three epochs
        (schedule(1), schedule(8), 1),  # ended inside of the warm-up
    ],
)
def test_a_run_is_continued_by_making_it_longer(before, now, step):
    require_continues(fields(before), now, step, "x")


@pytest.mark.parametrize(
    ("before", "now", "step", "said"),
    [
        (schedule(8), schedule(5), 6, "run of 8 steps and has done 6 of them.* has 5 "),
        (schedule(8), schedule(7), 2, "run of 8 steps and has done 2 of them.* has 7 "),
        (schedule(8), schedule(9, warmup=3), 4, "warmup_step: 2 in the checkpoint, 3 now"),
        (schedule(8), schedule(10, interval=4), 4, "update_step: 3 in the checkpoint, 4 now"),
        (schedule(11), schedule(14, 4), 11, "the steps 5 to 11 were one segment, and now one goes from 5 to 8"),
        (schedule(8, 0), schedule(8, 2), 1, "the steps 0 to 8 were one segment"),
    ],
)
def test_what_was_done_does_not_change(before, now, step, said):
    with pytest.raises(CheckpointError, match=said):
        require_continues(fields(before), now, step, "x")
