"""A run deletes and replaces what a run has written, and nothing else, whatever stands beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.errors import ConfigError
from dataflex.core.files import CACHE, SELECTIONS
from dataflex.core.kinds import MIXER, SELECTOR, WEIGHTER
from dataflex.run.checkpoints import all_checkpoints, is_ours, step_of
from dataflex.scoring.store import FOLDER, ScoreStore
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args
from dataflex.train.trainer import MixTrainer, SelectTrainer, WeightTrainer, trainer_class
from dataflex.workspace import create
from dataflex_mixers.doremi.doremi_command import run as doremi
from transformers import Trainer, TrainerCallback

KINDS = {
    "dynamic_select": (SelectTrainer, SELECTOR, "loss"),
    "dynamic_mix": (MixTrainer, MIXER, "random"),
    "dynamic_weight": (WeightTrainer, WEIGHTER, "loss"),
}
NAMES = (".a.tmp", ".a.12.tmp", "part-000000000000.bin", "step_x.npz", "step_1.npz", "notes.txt", ".hidden")


def trainer(train_type, folder, cache_dir, **args):
    mixin, kind, name = KINDS[train_type]
    keys = DataflexArguments(
        train_type=train_type, component_name=name, warmup_step=1, update_step=1, update_times=3, train_step=4
    )
    rows = TokenRows(40, lengths=range(8, 17))
    params = {"cache_dir": str(cache_dir)} if kind is SELECTOR else {}
    return trainer_class(mixin, Trainer)(
        model=tiny_model(),
        args=tiny_training_args(
            folder, max_steps=-1, save_strategy="steps", save_steps=1, save_total_limit=1, learning_rate=1e-2, **args
        ),
        train_dataset={"a": rows, "b": rows} if kind is MIXER else rows,
        data_collator=pad_collate,
        dataflex=RunSpec(keys, ComponentSpec(kind, name, name, params)),
        overwrite_output_dir=True,
    )


class StopsAt(TrainerCallback):
    """Ends training early, as a run that is stopped does."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def strangers(*folders):
    """Fills folders with files of somebody else; returns path -> content of all of them."""
    written = {}
    for folder in folders:
        (folder / "deep" / ".ssh").mkdir(parents=True)
        for place in (folder, folder / "deep" / ".ssh"):
            for name in NAMES:
                (place / name).write_text(f"{place} {name}")
                written[place / name] = f"{place} {name}"
    return written


@pytest.mark.parametrize("train_type", KINDS)
def test_files_beside_all_that_a_run_deletes_or_replaces_stay(tmp_path, train_type, monkeypatch):
    monkeypatch.setattr(ScoreStore.__init__, "__defaults__", (0.0,))  # a part after every batch, not every minute
    out, cache = tmp_path / "run", tmp_path / "cache"
    checkpoint = out / "checkpoint-2"
    places = [
        out, checkpoint, out / "checkpoint-best", out / "checkpoint-99", out / "checkpoint-1-of-mine", out / SELECTIONS,
        out / CACHE, out / CACHE / "loss", out / CACHE / "loss" / FOLDER, cache, cache / FOLDER, cache / "0123",
    ]  # fmt: skip
    before = strangers(*places)
    stopped = trainer(train_type, out, cache)
    stopped.add_callback(StopsAt(3))
    stopped.train()
    trainer(train_type, out, cache).train(resume_from_checkpoint=str(out / "checkpoint-3"))
    assert [step_of(path) for path in all_checkpoints(out) if is_ours(path)] == [4]
    if train_type == "dynamic_select":
        assert list(cache.rglob("part-*.bin")), "the run has written parts, and deleted those of earlier passes"
    for path, content in before.items():
        moved = out / "aside_checkpoint-2" / path.relative_to(checkpoint) if path.is_relative_to(checkpoint) else path
        assert moved.read_text() == content, path


def test_two_runs_in_one_cache_dir_leave_each_others_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(ScoreStore.__init__, "__defaults__", (0.0,))
    trainer("dynamic_select", tmp_path / "one", tmp_path / "cache").train()
    parts = {path: path.read_bytes() for path in (tmp_path / "cache").rglob("*.bin")}
    trainer("dynamic_select", tmp_path / "two", tmp_path / "cache").train()
    assert parts
    assert all(path.read_bytes() == content for path, content in parts.items())
    assert len(list((tmp_path / "cache" / FOLDER).iterdir())) == 2


@pytest.mark.llamafactory
@pytest.mark.parametrize("name", ["1_reference.yaml", "2_proxy.yaml", "3_final.yaml", "proxy_components.yaml"])
def test_doremi_writes_over_no_file_that_it_did_not_write(workspace, tmp_path, name, monkeypatch):
    monkeypatch.chdir(workspace)
    static = yaml.safe_load((workspace / "mix_static.yaml").read_text())
    own = (
        "train_type",
        "static_mix",
        "mixture_sample_rule",
        "init_mixture_proportions",
        "train_step",
        "component_name",
    )
    common = {key: value for key, value in static.items() if key not in own} | {"output_dir": str(tmp_path / "out")}
    common["finetuning_type"] = "full"
    file = tmp_path / "doremi.yaml"
    steps = {"reference": {"train_step": 2}, "proxy": {"train_step": 2, "update_step": 1}, "final": {"train_step": 2}}
    file.write_text(yaml.safe_dump({"common": common, **steps}))

    def trained(run_file):
        folder = Path(yaml.safe_load(run_file.read_text())["output_dir"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "trainer_state.json").write_text("{}")
        shares = {"proportions": dict.fromkeys(common["dataset"].replace(" ", "").split(","), 0.5)}
        (folder / "doremi_weights.json").write_text(json.dumps(shares))
        return 0

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine: true\n")
    with pytest.raises(ConfigError, match=f"{name} does not say that this command wrote it -> move it away"):
        doremi([str(file)], trained)
    assert (tmp_path / "out" / name).read_text() == "mine: true\n"
    (tmp_path / "out" / name).unlink()
    assert doremi([str(file)], trained) == 0
    assert doremi([str(file)], trained) == 0


def test_a_workspace_is_made_beside_no_file(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="never writes over files"):
        create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
