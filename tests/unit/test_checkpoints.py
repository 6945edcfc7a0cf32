from __future__ import annotations

import errno
import json

import pytest
from dataflex.core.errors import CheckpointError
from dataflex.run import checkpoints
from dataflex.run.checkpoints import (
    all_checkpoints,
    begin_writing,
    incompleteness,
    mark_complete,
    naming_write_errors,
    newest_complete,
    require_complete,
    rotate,
    step_of,
)
from dataflex.run.files import COMPLETE, STATE
from safetensors import SafetensorError


def checkpoint(folder, step, complete=True):
    path = folder / f"checkpoint-{step}"
    (path / "global_step").mkdir(parents=True)
    (path / STATE).write_bytes(b"s" * 10)
    (path / "model.safetensors").write_bytes(b"m" * 100)
    (path / "global_step" / "rank0.pt").write_bytes(b"r" * 7)
    if complete:
        mark_complete(path)
    return path


def steps(folder):
    return [step_of(path) for path in all_checkpoints(folder)]


def test_a_whole_checkpoint_has_nothing_to_complain_about(tmp_path):
    assert incompleteness(checkpoint(tmp_path, 3)) is None


def test_a_checkpoint_without_its_list_is_incomplete(tmp_path):
    path = checkpoint(tmp_path, 3, complete=False)
    assert incompleteness(path) == f"{COMPLETE} is missing: the run was stopped while it was written"


@pytest.mark.parametrize("name", ["model.safetensors", STATE, "global_step/rank0.pt"])
def test_a_missing_or_a_truncated_file_at_any_depth_is_named(tmp_path, name):
    path = checkpoint(tmp_path, 3)
    size = (path / name).stat().st_size
    (path / name).write_bytes(b"x" * (size - 1))
    assert incompleteness(path) == f"{name} has {size - 1} bytes instead of {size}"
    (path / name).unlink()
    assert incompleteness(path) == f"{name} is missing"


@pytest.mark.parametrize(
    "content", [b"", b'{"files": {"a', b"\xff\xfe", b"[]", b"{}", b'{"files": 3}', b'{"files": null}']
)
def test_a_torn_or_foreign_list_is_incomplete_and_no_crash(tmp_path, content):
    path = checkpoint(tmp_path, 3)
    (path / COMPLETE).write_bytes(content)
    assert incompleteness(path).startswith(f"{COMPLETE} cannot be read: ")


def test_files_that_a_callback_rewrites_count_after_marking_again(tmp_path):
    path = checkpoint(tmp_path, 3)
    (path / "model.safetensors").write_bytes(b"longer" * 100)
    (path / "added_later").write_bytes(b"x")
    assert incompleteness(path) is not None
    mark_complete(path)
    assert incompleteness(path) is None
    (path / "added_later").unlink()
    assert incompleteness(path) == "added_later is missing"


def test_only_folders_with_a_step_are_checkpoints_and_the_order_is_by_number(tmp_path):
    for step in (9, 10, 100):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-11").write_text("a file")
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-").mkdir()
    assert steps(tmp_path) == [9, 10, 100]
    assert all_checkpoints(tmp_path / "nowhere") == []


def test_the_newest_complete_one_is_found_and_those_passed_over_are_named(tmp_path, caplog):
    good = checkpoint(tmp_path, 2)
    truncated, missing = checkpoint(tmp_path, 10), checkpoint(tmp_path, 11, complete=False)
    (truncated / "model.safetensors").write_bytes(b"m")
    assert newest_complete(tmp_path) == str(good)
    assert [record.getMessage() for record in caplog.records] == [
        f"passing over the incomplete checkpoint {missing}: {COMPLETE} is missing: the run was stopped while it was "
        "written",
        f"passing over the incomplete checkpoint {truncated}: model.safetensors has 1 bytes instead of 100",
    ]


def test_no_complete_checkpoint_is_none(tmp_path):
    assert newest_complete(tmp_path / "nowhere") is None
    checkpoint(tmp_path, 2, complete=False)
    assert newest_complete(tmp_path) is None


def test_a_named_checkpoint_that_is_incomplete_is_refused_with_the_way_out(tmp_path):
    torn = checkpoint(tmp_path, 4, complete=False)
    with pytest.raises(CheckpointError) as error:
        require_complete(torn)
    assert str(error.value) == (
        f"the checkpoint {torn} is incomplete: {COMPLETE} is missing: the run was stopped while it was written -> "
        "leave resume_from_checkpoint out to start anew"
    )
    good = checkpoint(tmp_path, 2)
    with pytest.raises(CheckpointError, match=f"-> resume_from_checkpoint: {good}$"):
        require_complete(torn)
    require_complete(good)


def test_a_checkpoint_that_lost_our_state_is_incomplete_and_one_that_never_had_it_is_left_to_others(tmp_path):
    lost = checkpoint(tmp_path, 4)
    (lost / STATE).unlink()
    with pytest.raises(CheckpointError, match=f"{STATE} is missing"):
        require_complete(lost)
    foreign = tmp_path / "checkpoint-5"
    foreign.mkdir()
    require_complete(foreign)


def test_beginning_to_write_leaves_nothing_of_the_last_attempt(tmp_path):
    path = checkpoint(tmp_path, 3)
    begin_writing(path)
    assert not path.exists()
    begin_writing(path)


def test_a_checkpoint_that_is_half_deleted_never_looks_whole(tmp_path, monkeypatch):
    path = checkpoint(tmp_path, 3)

    def killed(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        begin_writing(path)
    assert (path / "model.safetensors").exists()
    assert incompleteness(path) is not None


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (None, None, [2, 4, 6, 8]),
        (0, None, [2, 4, 6, 8]),
        (-1, None, [2, 4, 6, 8]),
        (9, None, [2, 4, 6, 8]),
        (2, None, [6, 8]),
        (1, None, [8]),
        (2, 2, [2, 8]),
        (3, 2, [2, 6, 8]),
        (1, 2, [2, 8]),  # the best is kept beyond the limit, as in transformers
        (1, 8, [8]),
    ],
)
def test_rotation_keeps_the_newest_and_the_best(tmp_path, limit, best, left):
    paths = {step: checkpoint(tmp_path, step) for step in (2, 4, 6, 8)}
    rotate(tmp_path, limit, None if best is None else str(paths[best]), paths[8])
    assert steps(tmp_path) == left
    assert all(incompleteness(path) is None for path in all_checkpoints(tmp_path))


def test_rotation_never_leaves_an_incomplete_checkpoint_in_the_place_of_a_whole_one(tmp_path):
    checkpoint(tmp_path, 2)
    checkpoint(tmp_path, 3, complete=False)
    written = checkpoint(tmp_path, 4)
    checkpoint(tmp_path, 9, complete=False)
    rotate(tmp_path, 2, None, written)
    assert steps(tmp_path) == [2, 4]
    checkpoint(tmp_path, 9, complete=False)
    rotate(tmp_path, 1, None, written)
    assert steps(tmp_path) == [4]


def test_rotation_keeps_what_was_just_written_and_drops_a_continuation_that_was_given_up(tmp_path):
    for step in (2, 5, 6):
        checkpoint(tmp_path, step)
    written = checkpoint(tmp_path, 3)  # resumed from 2
    rotate(tmp_path, 2, None, written)
    assert steps(tmp_path) == [2, 3]


def test_rotation_survives_a_best_checkpoint_of_a_run_that_was_moved(tmp_path):
    written = checkpoint(tmp_path, 3)
    checkpoint(tmp_path, 2)
    rotate(tmp_path, 1, str(tmp_path / "before the move" / "checkpoint-2"), written)
    assert steps(tmp_path) == [3]


def test_an_old_checkpoint_that_cannot_be_deleted_does_not_stop_the_run_and_goes_first_next_time(
    tmp_path, monkeypatch, caplog
):
    first, written = checkpoint(tmp_path, 2), checkpoint(tmp_path, 3)

    def busy(folder):
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints.shutil, "rmtree", busy)
        rotate(tmp_path, 1, None, written)
    assert (
        f"the old checkpoint {first} could not be deleted: [Errno {errno.ENOTEMPTY}] Directory not empty" in caplog.text
    )
    assert newest_complete(tmp_path) == str(written)
    rotate(tmp_path, 1, None, written)
    assert steps(tmp_path) == [3]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
    ],
)
def test_a_failed_write_says_where_how_much_room_there_is_and_what_is_left(tmp_path, error):
    good, folder = checkpoint(tmp_path, 2), checkpoint(tmp_path, 3, complete=False)
    with pytest.raises(CheckpointError) as caught, naming_write_errors(folder):
        raise error
    assert str(caught.value).startswith(f"the checkpoint {folder} could not be written: {error} (")
    assert "MiB are free there) -> free disk space or choose another output_dir" in str(caught.value)
    assert str(caught.value).endswith(f"resuming continues from {good}")
    assert caught.value.__cause__ is error


def test_an_error_that_has_nothing_to_do_with_writing_passes(tmp_path):
    with pytest.raises(RuntimeError, match="NCCL"), naming_write_errors(tmp_path / "checkpoint-1"):
        raise RuntimeError("NCCL error")


def test_the_list_holds_every_file_but_itself(tmp_path):
    path = checkpoint(tmp_path, 3)
    mark_complete(path)
    files = json.loads((path / COMPLETE).read_text())["files"]
    assert files == {STATE: 10, "model.safetensors": 100, "global_step/rank0.pt": 7}
