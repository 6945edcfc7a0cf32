"""Files of a run that were damaged, or put together from two: refused or passed over by name, never a traceback."""

from __future__ import annotations

import shutil

import pytest
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.errors import CheckpointError
from dataflex.core.kinds import SELECTOR
from dataflex.run.checkpoints import newest_complete
from dataflex.run.files import COMPLETE, STATE
from dataflex.run.state import load_state, require_step
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args
from dataflex.train.trainer import SelectTrainer, trainer_class
from transformers import Trainer

PARTS = (STATE, "model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json")


def trainer(folder):
    keys = DataflexArguments(
        train_type="dynamic_select", component_name="loss", warmup_step=2, update_step=2, update_times=1
    )
    model = tiny_model()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1  # so that each checkpoint has random states of its own
    return trainer_class(SelectTrainer, Trainer)(
        model=model,
        args=tiny_training_args(folder, max_steps=-1, save_strategy="steps", save_steps=2, learning_rate=1e-2),
        train_dataset=TokenRows(40, lengths=range(8, 17)),
        data_collator=pad_collate,
        dataflex=RunSpec(keys, ComponentSpec(SELECTOR, "loss", "loss")),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    trainer(folder).train()
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_the_parts_below_are_all_that_a_checkpoint_is_resumed_from(finished):
    read = {path.name for path in (finished / "checkpoint-4").iterdir()} - {COMPLETE, "training_args.bin"}
    assert read - {"config.json", "generation_config.json"} == set(PARTS)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_another_step_is_refused_where_the_checkpoint_is_named_and_passed_over_where_it_is_not(
    copy, part, caplog
):
    two, four = copy / "checkpoint-2", copy / "checkpoint-4"
    shutil.copyfile(two / part, four / part)
    with pytest.raises(CheckpointError) as caught:
        trainer(copy).train(resume_from_checkpoint=str(four))
    message = str(caught.value)
    assert message.startswith(f"the checkpoint {four} is incomplete: {part} ")
    assert message.endswith(f" -> resume_from_checkpoint: {two}")
    assert newest_complete(copy) == str(two)
    assert f"passing over the incomplete checkpoint {four}: {part} " in caplog.text


def test_a_state_of_another_step_is_refused_even_where_the_list_was_written_after_it(copy):
    two, four = copy / "checkpoint-2", copy / "checkpoint-4"
    shutil.copyfile(two / STATE, four / STATE)
    with pytest.raises(CheckpointError, match=rf"{STATE} is of step 2, trainer_state\.json of step 4 -> "):
        require_step(load_state(four), four)
