from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest
from dataflex.core.errors import CheckpointError
from dataflex.core.files import COMPLETE, STATE
from dataflex.run import checkpoints, completeness
from dataflex.run.checkpoints import (
    all_checkpoints,
    begin_writing,
    incompleteness,
    is_ours,
    mark_complete,
    naming_write_errors,
    newest_complete,
    require_complete,
    rotate,
    run_of,
    step_of,
)
from safetensors import SafetensorError

RUN = "0123456789abcdef"


def checkpoint(folder, step, complete=True, run=RUN):
    path = folder / f"checkpoint-{step}"
    (path / "global_step").mkdir(parents=True)
    (path / STATE).write_bytes(b"s" * 10)
    (path / "model.safetensors").write_bytes(b"m" * 100)
    (path / "global_step" / "rank0.pt").write_bytes(b"r" * 7)
    if complete:
        mark_complete(path, run, step)
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
    assert run_of(path) is None
    assert newest_complete(tmp_path) is None


def test_a_list_of_an_earlier_version_is_named_as_such(tmp_path):
    path = checkpoint(tmp_path, 3)
    (path / COMPLETE).write_text(json.dumps({"files": {STATE: 10, "model.safetensors": 100}}))
    assert incompleteness(path) == (
        f"{COMPLETE} was written by an earlier version of dataflex, whose checkpoints are not resumed"
    )


def test_a_file_is_read_once_until_it_changes(tmp_path, monkeypatch):
    read = []

    def reads(path, size):
        read.append(path.name)
        return original(path, size)

    original = completeness._read
    monkeypatch.setattr(completeness, "_read", reads)
    path = checkpoint(tmp_path, 3, complete=False)
    for file in path.rglob("*"):
        os.utime(file, (1, 1))
    monkeypatch.setattr(completeness, "_SETTLED", 0)
    for _ in range(2):
        mark_complete(path, RUN, 3)
        assert incompleteness(path) is None
    assert sorted(read) == [STATE, "model.safetensors", "rank0.pt"]
    time.sleep(0.02)  # longer than the clock of the file system takes
    (path / STATE).write_bytes(b"t" * 10)
    os.utime(path / STATE, (1, 1))
    assert "its contents differ" in incompleteness(path)


def test_a_file_that_has_just_changed_is_read_again(tmp_path):
    path = checkpoint(tmp_path, 3)
    assert incompleteness(path) is None
    stood = (path / STATE).stat()
    (path / STATE).write_bytes(b"t" * 10)
    os.utime(path / STATE, ns=(stood.st_atime_ns, stood.st_mtime_ns))
    assert "its contents differ" in incompleteness(path)


@pytest.mark.parametrize("name", ["\\ud800", "\\u0000", "a" * 5000])
def test_a_name_in_the_list_that_no_file_can_have_is_incomplete_and_no_crash(tmp_path, name):
    path = checkpoint(tmp_path, 3)
    about = '{"run": "r", "step": 3, "files": {"%s": {"bytes": 1, "digest": "00"}}}'
    (path / COMPLETE).write_text(about % name)
    assert re.search("cannot be read|is missing", incompleteness(path))


def test_a_folder_in_the_place_of_the_list_or_of_a_file_is_incomplete(tmp_path):
    path = checkpoint(tmp_path, 3)
    (path / STATE).unlink()
    (path / STATE).mkdir()
    assert incompleteness(path) == f"{STATE} is not a file"
    (path / COMPLETE).unlink()
    (path / COMPLETE).mkdir()
    assert incompleteness(path).startswith(f"{COMPLETE} cannot be read: [Errno {errno.EISDIR}]")


@pytest.mark.parametrize("name", [STATE, "model.safetensors", "global_step/rank0.pt", "trainer_state.json"])
def test_a_file_of_the_same_size_from_another_checkpoint_is_named(tmp_path, name):
    paths = [checkpoint(tmp_path / str(step), step) for step in (2, 4)]
    for path in paths:
        (path / "trainer_state.json").write_text(json.dumps({"global_step": step_of(path)}))
        (path / STATE).write_bytes(b"%10d" % step_of(path))
        (path / "model.safetensors").write_bytes(b"%100d" % step_of(path))
        (path / "global_step" / "rank0.pt").write_bytes(b"%7d" % step_of(path))
        mark_complete(path, RUN, step_of(path))
    shutil.copyfile(paths[0] / name, paths[1] / name)
    assert incompleteness(paths[1]) == (
        f"{name} is not the file that was written with this checkpoint: its contents differ"
    )


@pytest.mark.parametrize("at", [0, 0.5, 0.999999])
def test_a_large_file_of_which_a_sample_is_digested_differs_at_its_head_tail_and_middle(tmp_path, monkeypatch, at):
    monkeypatch.setattr(completeness, "_WHOLE", 1000)
    monkeypatch.setattr(completeness, "_BLOCK", 50)
    path = tmp_path / "checkpoint-3"
    path.mkdir()
    (path / STATE).write_bytes(bytes(40_000))
    mark_complete(path, RUN, 3)
    assert incompleteness(path) is None
    whole = bytearray(40_000)
    block = int(at * 40_000) // 1000 * 1000
    whole[block : block + 1000] = b"x" * 1000
    (path / STATE).write_bytes(whole)
    assert "its contents differ" in incompleteness(path)


def test_the_step_must_be_that_of_the_folders_name_and_of_the_trainers_state(tmp_path):
    path = checkpoint(tmp_path, 2)
    renamed = path.rename(tmp_path / "checkpoint-4")
    assert incompleteness(renamed) == f"{COMPLETE} is of step 2, the folder's name says 4"
    kept = renamed.rename(tmp_path / "my best one")
    assert incompleteness(kept) is None
    (kept / "trainer_state.json").write_text('{"global_step": 3}')
    mark_complete(kept, RUN, 2)
    assert incompleteness(kept) == f"trainer_state.json is of step 3, {COMPLETE} of step 2"


def test_the_checkpoints_of_another_run_are_passed_over_and_both_runs_named(tmp_path, caplog):
    own, other = checkpoint(tmp_path, 3, run="mine"), checkpoint(tmp_path, 5, run="another")
    assert newest_complete(tmp_path) == str(other)
    assert newest_complete(tmp_path, "mine") == str(own)
    assert caplog.messages == [f"passing over the checkpoint {other}: run another wrote it, this is mine"]
    assert run_of(own) == "mine"
    assert run_of(tmp_path) is None
    assert newest_complete(tmp_path, "a third") is None


def test_files_that_a_callback_rewrites_count_after_marking_again(tmp_path):
    path = checkpoint(tmp_path, 3)
    (path / "model.safetensors").write_bytes(b"longer" * 100)
    (path / "added_later").write_bytes(b"x")
    assert incompleteness(path) is not None
    mark_complete(path, RUN, 3)
    assert incompleteness(path) is None
    (path / "added_later").unlink()
    assert incompleteness(path) == "added_later is missing"


def test_only_folders_with_a_step_are_checkpoints_and_the_order_is_by_number(tmp_path):
    for step in (9, 10, 100):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-11").write_text("a file")
    (tmp_path / "checkpoint-best").mkdir()
    for name in ("", "\u00b2", "\u0663", "1e1", "-1", "0x1", "007"):  # a superscript is a digit, but no number
        (tmp_path / f"checkpoint-{name}").mkdir()
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
    mark_complete(path, RUN, 3)
    found = json.loads((path / COMPLETE).read_text())
    assert {name: about["bytes"] for name, about in found["files"].items()} == {
        STATE: 10,
        "model.safetensors": 100,
        "global_step/rank0.pt": 7,
    }
    assert (found["run"], found["step"]) == (RUN, 3)


def test_a_folder_of_that_name_that_is_not_ours_is_moved_aside_and_never_rotated(tmp_path, caplog):
    for step in (1, 2):
        stranger = tmp_path / f"checkpoint-{step}"
        (stranger / "photos").mkdir(parents=True)
        (stranger / "photos" / "a.jpg").write_text("mine")
    (tmp_path / "aside_checkpoint-2").write_text("in the way")
    begin_writing(tmp_path / "checkpoint-2")
    assert not (tmp_path / "checkpoint-2").exists()
    assert (tmp_path / "aside_checkpoint-2-2" / "photos" / "a.jpg").read_text() == "mine"
    assert caplog.messages == [
        f"{tmp_path / 'checkpoint-2'} was not written by a dynamic run: moved to {tmp_path / 'aside_checkpoint-2-2'}"
    ]
    checkpoint(tmp_path, 3)
    rotate(tmp_path, 1, None, checkpoint(tmp_path, 4))
    assert steps(tmp_path) == [1, 4]
    assert (tmp_path / "checkpoint-1" / "photos" / "a.jpg").read_text() == "mine"


def test_a_link_of_that_name_is_moved_and_what_it_points_to_stands(tmp_path):
    target = checkpoint(tmp_path / "elsewhere", 2)
    (tmp_path / "checkpoint-2").symlink_to(target)
    begin_writing(tmp_path / "checkpoint-2")
    assert incompleteness(target) is None
    assert (tmp_path / "aside_checkpoint-2").is_symlink()


@pytest.mark.parametrize("stopped_after", range(4))
def test_a_checkpoint_whose_deletion_was_stopped_anywhere_is_still_known_as_ours(tmp_path, monkeypatch, stopped_after):
    path = checkpoint(tmp_path, 3)
    left = [stopped_after]
    unlink, rmtree = Path.unlink, shutil.rmtree

    def counted(do):
        def delete(*args, **kwargs):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return do(*args, **kwargs)

        return delete

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", counted(unlink))
        patched.setattr(checkpoints.shutil, "rmtree", counted(rmtree))
        with pytest.raises(KeyboardInterrupt):
            begin_writing(path)
    assert is_ours(path)
    begin_writing(path)
    assert not path.exists()


@pytest.mark.parametrize("first", [f".{STATE}.77.dataflex-tmp", "checkpoint-is-incomplete.txt"])
def test_a_checkpoint_stopped_while_its_first_file_was_written_is_ours(tmp_path, first):
    path = tmp_path / "checkpoint-3"
    path.mkdir()
    (path / first).write_text("half")
    assert is_ours(path)
    (path / "notes.txt").write_text("mine")
    assert not is_ours(path)
