"""Faults from outside: a full disk, a folder that cannot be written to, two runs at once, NaN weights, Ctrl-C."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.errors import CheckpointError, ComponentError, ConfigError
from dataflex.core.kinds import SELECTOR, WEIGHTER
from dataflex.run.checkpoints import all_checkpoints, incompleteness, newest_complete, step_of
from dataflex.run.record import read_trace
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args
from dataflex.train.trainer import SelectTrainer, WeightTrainer, trainer_class
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback

SHORT = ["warmup_step=2", "update_step=2", "update_times=2", "save_steps=2"]


def trainer(folder, mixin=SelectTrainer, name="loss", callback=None, **params):
    kind, train_type = (SELECTOR, "dynamic_select") if mixin is SelectTrainer else (WEIGHTER, "dynamic_weight")
    keys = DataflexArguments(train_type=train_type, component_name=name, warmup_step=2, update_step=2, update_times=2)
    return trainer_class(mixin, Trainer)(
        model=tiny_model(),
        args=tiny_training_args(folder, max_steps=-1, save_strategy="steps", save_steps=1, learning_rate=1e-2),
        train_dataset=TokenRows(40, lengths=range(8, 17)),
        data_collator=pad_collate,
        callbacks=None if callback is None else [callback],
        dataflex=RunSpec(keys, ComponentSpec(kind, name, name, params)),
    )


def weights(done):
    return {name: value.clone() for name, value in done.model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class FileSizeLimit(TrainerCallback):
    """No file may grow beyond ``size`` bytes while the checkpoint of a step is written: a full disk, as it feels."""

    def __init__(self, step, size):
        self.step, self.size = step, size
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def lift(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


@pytest.mark.parametrize(("size", "written"), [(60_000, "model.safetensors"), (200_000, "optimizer.pt")])
def test_a_disk_that_is_full_while_saving_leaves_the_older_checkpoints_to_resume_from(tmp_path, size, written):
    whole = trainer(tmp_path / "whole")
    whole.train()
    assert (tmp_path / "whole" / "checkpoint-3" / written).stat().st_size > size
    limit = FileSizeLimit(3, size)
    stopped = trainer(tmp_path / "run", callback=limit)
    try:
        with pytest.raises(CheckpointError) as caught:
            stopped.train()
    finally:
        limit.lift()
    message = str(caught.value)
    assert message.startswith(f"the checkpoint {tmp_path / 'run' / 'checkpoint-3'} could not be written: ")
    assert message.endswith(f"resuming continues from {tmp_path / 'run' / 'checkpoint-2'}")
    assert [step_of(p) for p in all_checkpoints(tmp_path / "run") if incompleteness(p) is None] == [1, 2]

    resumed = trainer(tmp_path / "run")
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(resumed), weights(whole))
    assert all(incompleteness(path) is None for path in all_checkpoints(tmp_path / "run"))


def full_disk(original, name):
    """``original``, but the file ``name`` is cut off and there is no space left."""

    def save(what, path, *args, **kwargs):
        original(what, path, *args, **kwargs)
        if name in str(path):
            os.truncate(path, 100)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    return save


@pytest.mark.parametrize("name", ["checkpoint-4/.dataflex_state", "checkpoint-4/optimizer.pt"])
def test_the_command_line_says_that_the_disk_is_full_and_the_same_command_continues(
    train, tmp_path, monkeypatch, capsys, name
):
    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full_disk(torch.save, name))
        assert train("select_loss", *SHORT) == 1
    *_, record, error = capsys.readouterr().err.splitlines()
    assert f"; the record is in {tmp_path / 'run'} -> dataflex-cli report " in record
    assert "checkpoint-4 could not be written: [Errno 28] No space left on device" in error
    assert error.endswith(f"resuming continues from {tmp_path / 'run' / 'checkpoint-2'}")
    assert train("select_loss", *SHORT) == 0
    assert train("select_loss", *SHORT, out="whole") == 0
    resumed, whole = (load_file(tmp_path / out / "adapter_model.safetensors") for out in ("run", "whole"))
    assert same(resumed, whole)


@pytest.mark.parametrize("mixin", [SelectTrainer, WeightTrainer])
def test_an_output_dir_that_cannot_be_written_to_is_refused(tmp_path, mixin, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^output_dir: .*file/run cannot be written to: Not a directory -> choose"):
        trainer(tmp_path / "file" / "run", mixin)

    def read_only(*args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", read_only)  # the tests may run as root, whom no permission stops
    with pytest.raises(ConfigError, match=r"run cannot be written to: Permission denied -> .*permissions"):
        trainer(tmp_path / "run", mixin)


def test_a_folder_that_becomes_read_only_stops_the_run_at_its_checkpoint_and_leaves_the_others(tmp_path, monkeypatch):
    whole = Path.mkdir

    def read_only(path, *args, **kwargs):
        if path.name == "checkpoint-3":
            raise PermissionError(errno.EROFS, os.strerror(errno.EROFS))
        whole(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(CheckpointError, match=r"checkpoint-3 could not be written: .*Read-only file system"):
        trainer(tmp_path).train()
    assert newest_complete(tmp_path) == str(tmp_path / "checkpoint-2")


def run_in(folder, cache_dir, together):
    """One of two runs that begin at the same time."""
    made = trainer(folder, cache_dir=str(cache_dir))
    together.wait(timeout=500)
    made.train()


def test_two_runs_that_share_a_cache_dir_end_as_each_alone(tmp_path):
    spawned = multiprocessing.get_context("spawn")
    together = spawned.Barrier(2)
    other = spawned.Process(target=run_in, args=(tmp_path / "a", tmp_path / "shared", together))
    other.start()
    run_in(tmp_path / "b", tmp_path / "shared", together)
    other.join()
    assert other.exitcode == 0
    run_in(tmp_path / "alone", tmp_path / "its own", spawned.Barrier(1))
    ends = [load_file(tmp_path / name / "checkpoint-6" / "model.safetensors") for name in ("alone", "a", "b")]
    assert same(ends[0], ends[1])
    assert same(ends[0], ends[2])
    hashes = [[line["decision_hash"] for line in read_trace(tmp_path / name)] for name in ("alone", "a", "b")]
    assert hashes[0] == hashes[1] == hashes[2]


def test_weights_that_are_nan_stop_the_scoring_by_name(tmp_path):
    class Diverges(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 4:
                next(model.parameters()).data.fill_(float("nan"))

    with pytest.raises(ComponentError) as caught:
        trainer(tmp_path, callback=Diverges()).train()
    assert str(caught.value).startswith(
        "selector 'loss' at update 1 (step 4): the model's loss is NaN or infinite for 40 of 40 rows, first for row 0"
    )
    assert [line["step"] for line in read_trace(tmp_path)] == [2]
    assert all(incompleteness(path) is None for path in all_checkpoints(tmp_path))


def test_a_weighter_on_a_model_that_gives_nan_stops_by_name(tmp_path):
    made = trainer(tmp_path, WeightTrainer)
    next(made.model.parameters()).data.fill_(float("nan"))
    with pytest.raises(ComponentError, match=r"^weighter 'loss' at step 2 returned nan"):
        made.train()


SCORES_SLOWLY = '''
import os
import time
from pathlib import Path

from dataflex.core.registry import register_selector
from dataflex.scoring import per_sample_losses
from dataflex_selectors.loss import LossSelector


@register_selector("slow_once")
class SlowOnce(LossSelector):
    """At the second update of the first run it scores for a long time."""

    def select(self, model, step_id, num_samples, **kwargs):
        flag = Path(os.environ["SCORING_FLAG"])
        if kwargs["context"].update == 1 and not flag.exists():
            flag.touch()
            until = time.monotonic() + 120
            while time.monotonic() < until:
                per_sample_losses(model, self.dataset, collator=self.data_collator, accelerator=self.accelerator)
        return super().select(model, step_id, num_samples, **kwargs)
'''


def test_ctrl_c_while_scoring_ends_with_130_and_the_same_command_continues(workspace, train, tmp_path, monkeypatch):
    plugin, flag, out = tmp_path / "slow once.py", tmp_path / "flag", tmp_path / "run"
    plugin.write_text(SCORES_SLOWLY)
    chosen = [f"plugins=['{plugin}']", "component_name=slow_once", *SHORT]
    monkeypatch.setenv("SCORING_FLAG", str(flag))
    quick = ["per_device_train_batch_size=4", "do_eval=false", "plot_loss=false", "cutoff_len=64", "max_samples=60"]
    quick += ["logging_steps=1", "disable_tqdm=true", f"output_dir={out}"]
    command = [sys.executable, "-m", "dataflex", "train", str(workspace / "select_loss.yaml"), *quick, *chosen]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # jobs in the background ignore it
        )
        while not flag.exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        code = process.wait(timeout=300)
    text = (tmp_path / "log").read_text()
    assert code == 130, text[-3000:]
    assert text.splitlines()[-1] == "interrupted"
    assert [step_of(path) for path in all_checkpoints(out) if incompleteness(path) is None] == [2, 4]
    assert [line["step"] for line in read_trace(out)] == [2]

    assert train("select_loss", *chosen) == 0
    assert [line["step"] for line in read_trace(out)] == [2, 4]
    assert train("select_loss", *chosen, out="whole") == 0
    resumed, whole = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("run", "whole"))
    assert same(resumed, whole)
