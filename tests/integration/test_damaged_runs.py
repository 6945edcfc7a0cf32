"""Files of a run that were damaged, or put together from two: refused or passed over by name, never a traceback."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.errors import CheckpointError, ComponentError, ConfigError, DataflexError
from dataflex.core.files import CACHE, COMPLETE, COMPONENTS, CONFIG, SELECTIONS, STATE, TRACE
from dataflex.core.kinds import SELECTOR
from dataflex.discovery.component_classes import find
from dataflex.discovery.construct import construct
from dataflex.run.checkpoints import newest_complete, require_complete
from dataflex.run.record import read_trace
from dataflex.run.record_files import FILES
from dataflex.run.score_file import write_scores
from dataflex.run.state import load_state, require_step
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args
from dataflex.train.selector.base_selector import Selector
from dataflex.train.trainer import SelectTrainer, trainer_class
from transformers import Trainer

PARTS = (STATE, "model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json")


class Keeps(Selector):
    """A selector whose state no checkpoint can hold."""

    def select(self, model, step_id, num_samples, **kwargs):
        return list(range(num_samples))

    def state_dict(self):
        return {"nested": [{"where": Path("a")}]}


def trainer(folder, **args):
    keys = DataflexArguments(
        train_type="dynamic_select", component_name="loss", warmup_step=2, update_step=2, update_times=1
    )
    model = tiny_model()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1  # so that each checkpoint has random states of its own
    return trainer_class(SelectTrainer, Trainer)(
        model=model,
        args=tiny_training_args(
            folder, **{"max_steps": -1, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2, **args}
        ),
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


def test_a_state_that_no_checkpoint_can_hold_stops_the_run_before_its_first_step(tmp_path):
    made = trainer(tmp_path / "run")
    made.component = Keeps(made.train_dataset, made.accelerator, pad_collate, "")
    with pytest.raises(ComponentError) as caught:
        made.train()
    assert str(caught.value).startswith(
        "selector 'loss': its state_dict()['nested'][0]['where'] is of type pathlib.PosixPath, and could not be resumed"
    )
    assert made.state.global_step == 0
    unsaved = trainer(tmp_path / "unsaved", save_strategy="no")
    unsaved.component = Keeps(unsaved.train_dataset, unsaved.accelerator, pad_collate, "")
    unsaved.train()
    assert unsaved.state.global_step == 4


SEGMENTS = [f"{SELECTIONS}/step_{i:08d}.npz" for i in (0, 2)]
RECORD = (CONFIG, COMPONENTS, TRACE, SELECTIONS, CACHE, *SEGMENTS)


def flipped(content, at):
    return content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :]


DAMAGES = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "flipped": lambda content: flipped(content, len(content) // 3),
    "latin-1": lambda content: "\xe9: \xff\n".encode("latin-1"),
    "utf-16": lambda content: content.decode("latin-1").encode("utf-16"),
    "folder": None,
}


def damaged(path, damage):
    content = path.read_bytes()
    if DAMAGES[damage] is None:
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(DAMAGES[damage](content))
        assert path.read_bytes() != content


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [*PARTS, COMPLETE])
def test_a_damaged_file_of_a_checkpoint_is_named_and_the_one_before_is_taken(copy, name, damage, caplog):
    two, four = copy / "checkpoint-2", copy / "checkpoint-4"
    damaged(four / name, damage)
    with pytest.raises(CheckpointError, match=re.escape(f"the checkpoint {four} is ")) as caught:
        require_complete(four)
    assert name in str(caught.value) or (name, damage) == (COMPLETE, "flipped")  # there it may be in another's digest
    assert newest_complete(copy) == str(two)
    assert f"passing over the incomplete checkpoint {four}: " in caplog.text


@pytest.mark.parametrize("damage", sorted(set(DAMAGES) - {"flipped"}))  # that is for the digest to find
def test_a_damaged_state_that_is_marked_as_whole_is_one_sentence(copy, damage):
    path = copy / "checkpoint-4" / STATE
    damaged(path, damage)
    with pytest.raises(CheckpointError, match=re.escape(str(path))) as caught:
        load_state(copy / "checkpoint-4")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "name",
    [
        CONFIG,
        COMPONENTS,
        *FILES,
        SELECTIONS,
        f"{SELECTIONS}/step_00000000.npz",
        f"{SELECTIONS}/step_00000002.npz",
        CACHE,
    ],
)
def test_a_damaged_record_stops_no_run_unless_it_stands_where_the_run_writes(copy, name, damage):
    (copy / CACHE).mkdir(exist_ok=True)
    path = copy / name
    wrong_kind = damage == "folder" and name in (CONFIG, COMPONENTS, *FILES)
    if not path.exists():  # a run without a tokenizer, or whose components explain nothing, has no such file
        path.write_bytes(b'{"version": 1}\n' * 9)
    if path.is_dir():
        if damage != "empty":
            pytest.skip("a folder is damaged by a file in its place alone")
        shutil.rmtree(path)
        path.write_bytes(b"")
        wrong_kind = name == SELECTIONS
    else:
        damaged(path, damage)
    if wrong_kind:
        with pytest.raises(ConfigError, match=re.escape(f"output_dir: {path} is a ")):
            trainer(copy)
        return
    resumed = trainer(copy)
    resumed.train(resume_from_checkpoint=str(copy / "checkpoint-2"))
    assert resumed.state.global_step == 4
    assert [line["step"] for line in read_trace(copy)] == [2]
    assert len(np.load(copy / SELECTIONS / "step_00000002.npz")["indices"]) == 8


@pytest.mark.parametrize("damage", sorted(set(DAMAGES) - {"flipped"}))
def test_a_damaged_file_of_scores_is_one_sentence(tmp_path, damage):
    path, given = scores_of_forty_rows(tmp_path)
    damaged(path, damage)
    with pytest.raises(DataflexError, match=re.escape(str(path))):
        construct(find(SELECTOR, "scores"), {"file": str(path)}, given)


def test_a_flipped_bit_in_a_file_of_scores_is_refused_or_in_what_nobody_reads(tmp_path):
    path, given = scores_of_forty_rows(tmp_path)
    content, refused = path.read_bytes(), 0
    for at in range(0, len(content), 7):
        path.write_bytes(flipped(content, at))
        try:
            made = construct(find(SELECTOR, "scores"), {"file": str(path)}, given)
        except DataflexError:
            refused += 1
        else:
            assert made.scores(None, 0).tolist() == list(range(40))
    assert refused > 100


def scores_of_forty_rows(folder):
    """Writes the scores 0 to 39; returns the file, and what a selector of these rows is given."""
    path, rows = folder / "scores.parquet", TokenRows(40, lengths=8)
    write_scores(path, np.arange(40, dtype=np.float32), rows, None, {})
    return path, {"dataset": rows, "accelerator": None, "data_collator": pad_collate, "cache_dir": ""}
