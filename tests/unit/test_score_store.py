"""Parts of a scoring pass on disk: a cache that deletes nothing but its own, and that costs nothing but itself."""

from __future__ import annotations

import errno
import os
import shutil

import numpy as np
import pytest
import torch
from dataflex.core.files import is_temporary, replacing
from dataflex.scoring import ScoreStore
from dataflex.scoring.passes.score_store import FOLDER, MARK

RUN = "/runs/a/loss"


def write(folder, key, first=0, owner=RUN):
    """Writes one part of a pass: two rows."""
    store = ScoreStore(folder, lambda: key, seconds=0, owner=owner)
    store.add(np.array([first, first + 1]), torch.tensor([float(first), first + 1.0]))


def read(folder, key, owner=RUN):
    return ScoreStore(folder, lambda: key, owner=owner).load(6).done.tolist()


def passes(folder):
    return sorted(path.name for path in (folder / FOLDER).iterdir())


def everything(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def strangers(folder):
    """Puts files and folders of somebody else everywhere in a cache_dir; returns what they hold."""
    for name in ("photos", ".ssh", f"{FOLDER}/photos", f"{FOLDER}/0123456789ab-key", "0" * 32):
        (folder / name).mkdir(parents=True)
        for file in ("a.jpg", "part-000000000000.bin", "part-000000000000.npz", ".a.1.tmp"):
            (folder / name / file).write_text("mine")
    (folder / FOLDER / "notes.txt").write_text("mine")
    return everything(folder)


def test_only_the_owners_own_earlier_passes_are_deleted(tmp_path):
    before = strangers(tmp_path)
    write(tmp_path, "one", owner="another run")
    write(tmp_path, "any", owner="")
    others = passes(tmp_path)
    write(tmp_path, "one")
    write(tmp_path, "two")
    write(tmp_path, "three", first=2)
    assert len(set(passes(tmp_path)) - set(others)) == 1
    assert read(tmp_path, "three") == [False, False, True, True, False, False]
    assert read(tmp_path, "two") == read(tmp_path, "one") == [False] * 6
    assert read(tmp_path, "one", "another run") == read(tmp_path, "any", "") == [True, True] + [False] * 4
    assert everything(tmp_path).items() >= before.items()


def test_an_earlier_pass_goes_with_what_a_killed_write_left_in_it(tmp_path):
    write(tmp_path, "one")
    write(tmp_path, "one", first=2)
    (earlier,) = (tmp_path / FOLDER).iterdir()
    with replacing(earlier / "part-000000000004.bin") as temporary:
        temporary.write_bytes(b"half")
        temporary_name = temporary.name
    (earlier / temporary_name).write_bytes(b"half")  # where a kill came before the file got its name
    assert is_temporary(earlier / temporary_name)
    write(tmp_path, "two")
    assert not earlier.exists()
    assert len(passes(tmp_path)) == 1


def test_a_pass_keeps_all_of_its_own_parts(tmp_path):
    for first in (0, 2, 4):
        write(tmp_path, "one", first=first)
    assert read(tmp_path, "one") == [True] * 6


def test_a_pass_that_writes_no_part_deletes_nothing(tmp_path):
    write(tmp_path, "one")
    before = everything(tmp_path)
    store = ScoreStore(tmp_path, lambda: "two", seconds=1e9, owner=RUN)
    assert not store.load(6).done.any()
    store.add(np.array([0, 1]), torch.zeros(2))
    assert everything(tmp_path) == before


def test_a_strangers_file_or_a_link_in_an_earlier_pass_of_ours_stays(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "part-1.bin").write_text("mine")
    write(tmp_path, "one")
    (first,) = (tmp_path / FOLDER).iterdir()
    (first / "notes.txt").write_text("mine")
    (tmp_path / FOLDER / first.name.replace("one", "link")).symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / MARK).write_text("")
    write(tmp_path, "two")
    assert os.listdir(first) == ["notes.txt"]
    assert (tmp_path / "photos" / "part-1.bin").exists()


def test_a_folder_of_an_owners_name_without_our_mark_stays(tmp_path):
    write(tmp_path, "one")
    (first,) = (tmp_path / FOLDER).iterdir()
    (first / MARK).unlink()
    write(tmp_path, "two")
    assert sorted(os.listdir(first)) == ["part-000000000000.bin"]


def test_runs_with_one_cache_dir_keep_out_of_each_others_parts(tmp_path):
    write(tmp_path, "same model", owner="/runs/a/loss")
    assert read(tmp_path, "same model", "/runs/b/loss") == [False] * 6
    write(tmp_path, "same model", first=2, owner="/runs/b/loss")
    write(tmp_path, "next", owner="/runs/b/loss")
    assert read(tmp_path, "same model", "/runs/a/loss") == [True, True] + [False] * 4


@pytest.mark.parametrize(
    "damage",
    [
        lambda path, content: path.write_bytes(b""),
        lambda path, content: path.write_bytes(content[: len(content) // 2]),
        *(
            lambda path, content, at=at: path.write_bytes(
                content[: int(at * len(content))]
                + bytes([content[int(at * len(content))] ^ 64])
                + content[int(at * len(content)) + 1 :]
            )
            for at in (0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.99)
        ),
        lambda path, content: path.write_text("rows", encoding="utf-16"),
        lambda path, content: (path.unlink(), path.mkdir()),
    ],
)
def test_a_damaged_part_is_named_and_its_rows_are_scored_again(tmp_path, caplog, damage):
    write(tmp_path, "one")
    write(tmp_path, "one", first=4)
    (folder,) = (tmp_path / FOLDER).iterdir()
    path = folder / "part-000000000000.bin"
    damage(path, path.read_bytes())
    assert read(tmp_path, "one") == [False] * 4 + [True, True]
    assert f"{path} cannot be read (" in caplog.text


@pytest.mark.parametrize("standing", ["file", "link to nowhere"])
def test_something_else_in_the_place_of_the_folder_costs_the_cache_alone(tmp_path, caplog, standing):
    if standing == "file":
        (tmp_path / FOLDER).write_text("mine")
    else:
        (tmp_path / FOLDER).symlink_to(tmp_path / "nowhere" / "at all")
    assert read(tmp_path, "one") == [False] * 6
    write(tmp_path, "one")
    assert "scoring goes on" in caplog.text
    assert standing != "file" or (tmp_path / FOLDER).read_text() == "mine"


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_full_disk_costs_the_cache_alone_and_is_said_once(tmp_path, monkeypatch, caplog, broken):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = ScoreStore(tmp_path, lambda: "one", seconds=0, owner=RUN)
    monkeypatch.setattr(os, broken, full)
    for first in (0, 2, 4):
        store.add(np.array([first, first + 1]), torch.zeros(2))
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"cache_dir: {tmp_path}")
    assert "No space left on device" in caplog.messages[0]
    assert not store._rows, "what is not kept must not fill the memory"


def test_a_pass_is_taken_up_only_where_the_fingerprint_is_the_same(tmp_path):
    write(tmp_path, "one")
    assert read(tmp_path, "two") == [False] * 6
    shutil.rmtree(tmp_path / FOLDER)
    assert read(tmp_path, "one") == [False] * 6
