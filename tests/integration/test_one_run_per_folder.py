"""An output folder is of one run: a replaced one does not come back, a finished one is not trained again, two at once
are refused; through ``dataflex-cli train`` and through a plain Trainer."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml
from dataflex.config.arguments import DataflexArguments
from dataflex.config.resolved import recorded_run
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.errors import ConfigError
from dataflex.core.files import CONFIG, LOCK, REPLACED, SELECTIONS, TRACE
from dataflex.core.kinds import MIXER, SELECTOR, WEIGHTER
from dataflex.run.checkpoints import all_checkpoints, run_of, step_of
from dataflex.run.outcome import outcome
from dataflex.run.record import read_trace
from dataflex.run.state import load_state
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args
from dataflex.train.trainer import MixTrainer, SelectTrainer, WeightTrainer, trainer_class
from dataflex.trainer.saving import CheckpointWriter
from transformers import Trainer, TrainerCallback

TYPES = {
    "dynamic_select": (SelectTrainer, SELECTOR, "random"),
    "dynamic_mix": (MixTrainer, MIXER, "random"),
    "dynamic_weight": (WeightTrainer, WEIGHTER, "loss"),
}
SHORT = ["warmup_step=2", "update_step=2", "save_steps=2"]
SIX = ["warmup_step=2", "train_step=6", "save_steps=2"]

HOLDS = """
import sys, time
from dataflex.run.lock import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that trains in the folder ``run``."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path / "run")], stdout=subprocess.PIPE)
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


class Killed(TrainerCallback):
    """Ends a run in a way that nothing handles."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def trainer(kind, folder, killed=None, replaces=False, **changes):
    mixin, component, name = TYPES[kind]
    keys = DataflexArguments(
        train_type=kind, component_name=name, warmup_step=2, update_step=2, update_times=2,
        mixture_sample_rule="uniform",
    )  # fmt: skip
    rows = TokenRows(40, lengths=16)
    return trainer_class(mixin, Trainer)(
        model=tiny_model(),
        args=tiny_training_args(folder, **({"max_steps": -1, "save_strategy": "steps", "save_steps": 2} | changes)),
        train_dataset={"a": rows, "b": TokenRows(40, seed=2)} if kind == "dynamic_mix" else rows,
        data_collator=pad_collate,
        callbacks=None if killed is None else [Killed(killed)],
        dataflex=RunSpec(keys, ComponentSpec(component, name, name)),
        overwrite_output_dir=replaces,
    )


def steps(folder):
    return [step_of(path) for path in all_checkpoints(folder)]


@pytest.mark.parametrize("kind", TYPES)
def test_a_replaced_run_does_not_come_back_and_strangers_keep_their_files(tmp_path, kind):
    run = tmp_path / "run"
    first = trainer(kind, run)
    first.train()
    first.save_model()
    first.save_state()
    a = recorded_run(run).id
    strangers = [run / "checkpoint-1" / "mine.txt", run / "notes.txt", run / "checkpoint-best" / "x", run / "model.txt"]
    if kind != "dynamic_weight":
        strangers.append(run / SELECTIONS / "notes.txt")
    for path in strangers:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")

    with pytest.raises(KeyboardInterrupt):
        trainer(kind, run, killed=3, replaces=True, learning_rate=1e-2).train()
    b = recorded_run(run).id
    assert a != b
    assert [run_of(path) for path in all_checkpoints(run)] == [None, b]
    assert steps(run / REPLACED / a) == [2, 4, 6]
    moved = {path.name for path in (run / REPLACED / a).iterdir()}
    assert {CONFIG, TRACE, "model.safetensors", "trainer_state.json"} <= moved
    assert not (run / "model.safetensors").exists()  # the results of one run under the configuration of another
    assert not (run / LOCK).exists()

    resumed = trainer(kind, run, learning_rate=1e-2)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.log_history[0]["learning_rate"] == 1e-2
    assert recorded_run(run).id == load_state(run / "checkpoint-6")["run"] == b
    assert steps(run) == [1, 2, 4, 6]
    assert [path.read_text() for path in strangers] == ["mine"] * len(strangers)


def test_the_losses_of_a_replaced_run_are_not_those_of_the_one_in_its_place(tmp_path):
    first = trainer("dynamic_select", tmp_path)
    first.train()
    first.save_state()
    first.save_metrics("eval", {"eval_loss": 1.0})
    assert outcome(tmp_path).losses == {"eval_loss": 1.0}
    replaced = recorded_run(tmp_path)
    assert replaced.finished == 6
    other = trainer("dynamic_select", tmp_path, replaces=True, learning_rate=1e-2)
    other.train()
    other.save_state()
    with pytest.raises(ConfigError, match="the run evaluated nothing"):
        outcome(tmp_path)
    (tmp_path / "eval_results.json").write_text('{"eval_loss": 1.0}')  # as a static run before it leaves one
    with pytest.raises(ConfigError, match="the run evaluated nothing"):
        outcome(tmp_path)
    (tmp_path / "trainer_state.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"trainer_state.json is not of the run that is recorded in dataflex_config"):
        outcome(tmp_path)
    assert {"eval_results.json", "all_results.json"} <= {
        path.name for path in (tmp_path / REPLACED / replaced.id).iterdir()
    }


def test_a_run_that_was_killed_before_its_first_checkpoint_does_not_resume_the_one_before(tmp_path):
    trainer("dynamic_select", tmp_path).train()
    with pytest.raises(KeyboardInterrupt):
        trainer("dynamic_select", tmp_path, killed=1, replaces=True, learning_rate=1e-2).train()
    with pytest.raises(ConfigError, match="holds no complete checkpoint of its run -> leave it out"):
        trainer("dynamic_select", tmp_path, learning_rate=1e-2).train(resume_from_checkpoint=True)
    with pytest.raises(KeyboardInterrupt):  # and a beginning alone is not worth a folder
        trainer("dynamic_select", tmp_path, killed=1, replaces=True, learning_rate=1e-2).train()
    assert len(list((tmp_path / REPLACED).iterdir())) == 1


def test_a_checkpoint_of_another_run_among_ours_is_passed_over_with_a_warning(tmp_path, caplog):
    trainer("dynamic_select", tmp_path / "other").train()
    trainer("dynamic_select", tmp_path / "run", max_steps=5).train()
    (tmp_path / "other" / "checkpoint-6").rename(tmp_path / "run" / "checkpoint-6")
    resumed = trainer("dynamic_select", tmp_path / "run", max_steps=7)
    resumed.train(resume_from_checkpoint=True)
    assert f"passing over the checkpoint {tmp_path / 'run' / 'checkpoint-6'}: run " in caplog.text
    assert run_of(tmp_path / "run" / "checkpoint-6") == recorded_run(tmp_path / "run").id


def test_several_trainings_of_one_process_are_not_refused_and_each_is_a_run(tmp_path):
    made = trainer("dynamic_select", tmp_path)
    made.train()
    first = recorded_run(tmp_path).id
    made.train()
    assert recorded_run(tmp_path).id != first
    assert steps(tmp_path) == steps(tmp_path / REPLACED / first) == [2, 4, 6]
    assert (tmp_path / SELECTIONS / "step_00000000.npz").exists()


@pytest.mark.parametrize("kind", TYPES)
def test_a_folder_in_use_is_refused_by_a_plain_trainer(tmp_path, holder, kind):
    with pytest.raises(ConfigError, match=rf"run is in use by another run: process {holder.pid} on host "):
        trainer(kind, tmp_path / "run").train()
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", TYPES)
def test_another_run_in_the_folder_is_not_written_over_by_a_plain_trainer(tmp_path, kind):
    with pytest.raises(KeyboardInterrupt):
        trainer(kind, tmp_path, killed=3).train()
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=r"holds a run that was stopped.*resume_from_checkpoint: true, or overwrite"):
        trainer(kind, tmp_path).train()
    assert contents(tmp_path) == before
    resumed = trainer(kind, tmp_path)
    resumed.train(resume_from_checkpoint=True)
    resumed.save_state()
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=r"holds a finished run of 6 steps -> choose another output_dir"):
        trainer(kind, tmp_path).train()
    other = trainer(kind, tmp_path)
    other.spec = replace(other.spec, arguments=replace(other.arguments, warmup_step=1))
    with pytest.raises(ConfigError, match=r"holds a run with another configuration:\n  - warmup_step: 2 before, 1 now"):
        other.train()
    assert contents(tmp_path) == before


class StoppedByASignal(TrainerCallback):
    """Saves inside of a step and stops, as transformers does when a scheduler sends SIGTERM."""

    def __init__(self, trainer, step):
        self.trainer, self.step = trainer, step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.trainer._save_checkpoint(self.trainer.model, trial=None)
            control.should_training_stop = True


def test_a_run_that_a_signal_stopped_is_not_finished_and_its_checkpoint_is_whole(tmp_path):
    stopped = trainer("dynamic_select", tmp_path, save_steps=100)
    stopped.add_callback(StoppedByASignal(stopped, 3))
    stopped.train()
    stopped.save_state()
    assert stopped.state.global_step == 4
    assert recorded_run(tmp_path).finished is None
    resumed = trainer("dynamic_select", tmp_path, save_steps=100)
    resumed.train(resume_from_checkpoint=True)
    assert [entry["step"] for entry in resumed.state.log_history if "loss" in entry] == [1, 2, 3, 4, 5, 6]
    assert resumed.state.global_step == 6


def test_checkpoints_after_the_one_that_a_run_goes_on_from_are_moved_aside(tmp_path, caplog):
    trainer("dynamic_select", tmp_path).train()
    run = recorded_run(tmp_path).id
    with pytest.raises(KeyboardInterrupt):
        trainer("dynamic_select", tmp_path, killed=3).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert steps(tmp_path) == [2]
    assert steps(tmp_path / REPLACED / f"{run}-after-2") == [4, 6]
    assert "goes on from step 2: its later checkpoints were moved to" in caplog.text


def test_a_finished_run_is_not_trained_again_by_a_plain_trainer_but_continued(tmp_path):
    done = trainer("dynamic_weight", tmp_path)
    done.train()
    done.save_state()
    with pytest.raises(
        ConfigError, match=r"holds a finished run of 6 steps -> .*overwrite_output_dir: true to replace"
    ):
        trainer("dynamic_weight", tmp_path).train(resume_from_checkpoint=True)
    more = trainer("dynamic_weight", tmp_path)
    more.args.max_steps = 8
    more.train(resume_from_checkpoint=True)
    assert more.state.global_step == 8
    assert recorded_run(tmp_path).finished is None


def test_a_finished_run_without_checkpoints_is_not_written_over_and_its_model_is_known_as_its_result(tmp_path):
    done = trainer("dynamic_weight", tmp_path, save_strategy="no")
    done.train()
    assert recorded_run(tmp_path).finished == 6
    done.save_model()  # and no save_state
    known = recorded_run(tmp_path)
    assert known.finished == 6
    assert "model.safetensors" in known.files
    with pytest.raises(ConfigError, match=r"holds a finished run of 6 steps -> choose another output_dir"):
        trainer("dynamic_weight", tmp_path, save_strategy="no").train()
    trainer("dynamic_weight", tmp_path, save_strategy="no", replaces=True).train()
    assert (tmp_path / REPLACED / known.id / "model.safetensors").exists()


@pytest.fixture
def killed_at(monkeypatch):
    """Kills a run of the command line when the checkpoint of a step is whole."""

    def kill(step):
        settle = CheckpointWriter.settle

        def settled(self):
            settle(self)
            if self._trainer.state.global_step == step:
                raise KeyboardInterrupt

        monkeypatch.setattr(CheckpointWriter, "settle", settled)
        return lambda: monkeypatch.setattr(CheckpointWriter, "settle", settle)

    return kill


def test_the_command_line_refuses_a_finished_run_and_continues_it_with_more_updates(train, tmp_path, capsys):
    assert train("select_random", *SHORT, "update_times=1") == 0
    run = tmp_path / "run"
    kept = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.iterdir() if path.is_file()}
    capsys.readouterr()
    for more in ([], ["resume_from_checkpoint=true"], ["logging_steps=2"]):
        assert train("select_random", *SHORT, "update_times=1", *more) == 2
        said = capsys.readouterr().err
        assert f"output_dir: {run} holds a finished run of 4 steps -> choose another output_dir" in said
        assert "overwrite_output_dir: true" in said
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in kept} == kept
    assert train("select_random", *SHORT, "update_times=2") == 0
    assert [line["step"] for line in read_trace(run)] == [2, 4]
    assert json.loads((run / "trainer_state.json").read_text())["global_step"] == recorded_run(run).finished == 6
    assert train("select_random", *SHORT, "update_times=1") == 1
    assert (
        "of a run of 6 steps and has done 6 of them, and the run that would continue it has 4"
        in capsys.readouterr().err
    )


def test_the_command_line_never_resumes_what_was_replaced(train, tmp_path, killed_at, capsys):
    run, other = tmp_path / "run", [*SIX, "learning_rate=0.01"]
    assert train("weight_loss", *SIX) == 0
    a = recorded_run(run).id
    alive = killed_at(2)
    assert train("weight_loss", *other) == 2
    assert train("weight_loss", *other, "overwrite_output_dir=true", "resume_from_checkpoint=true") == 2
    said = capsys.readouterr().err
    assert said.count("learning_rate: ") == 2
    assert train("weight_loss", *other, "overwrite_output_dir=true") == 130
    alive()
    b = recorded_run(run).id
    assert (a != b, steps(run), steps(run / REPLACED / a)) == (True, [2], [2, 4, 6])
    assert train("weight_loss", *SIX) == 2  # the configuration of the replaced run
    assert train("weight_loss", *other, "resume_from_checkpoint=true", "overwrite_output_dir=true") == 0
    assert recorded_run(run).id == b
    assert {run_of(path) for path in all_checkpoints(run)} == {b}
    assert "adapter_model.safetensors" in {path.name for path in (run / REPLACED / a).iterdir()}


def test_the_command_line_refuses_a_checkpoint_of_other_data_before_a_model_is_loaded(train, tmp_path, capsys):
    assert train("mix_random", *SHORT, "update_times=1") == 0
    saved = f"resume_from_checkpoint={tmp_path / 'run' / 'checkpoint-2'}"
    names = yaml.safe_load((tmp_path / "run" / CONFIG).read_text())["dataset"]
    names = names if isinstance(names, str) else ",".join(names)
    turned = ",".join(reversed([name.strip() for name in names.split(",")]))
    for change, said in (
        (f"dataset='{turned}'", "dataset: "),
        ("cutoff_len=48", "cutoff_len: 64 in the checkpoint, 48 now"),
        ("learning_rate=0.5", "learning_rate: "),
    ):
        capsys.readouterr()
        assert train("mix_random", *SHORT, "update_times=1", saved, change, out="other") == 1
        error = capsys.readouterr().err
        assert "belongs to another run" in error
        assert said in error
        assert not (tmp_path / "other" / CONFIG).exists()
    assert train("mix_random", *SHORT, "update_times=2", saved, out="other") == 0


def test_the_command_line_refuses_a_checkpoint_of_other_rows_before_a_model_is_loaded(
    train, workspace, tmp_path, monkeypatch, capsys
):
    assert train("select_random", *SHORT, "update_times=1") == 0
    data = shutil.copytree(workspace / "data", tmp_path / "data")
    rows = json.loads((data / "instructions.json").read_text())
    (data / "instructions.json").write_text(json.dumps(rows[::-1]))
    monkeypatch.setattr("llamafactory.train.sft.workflow.load_model", None)
    saved = f"resume_from_checkpoint={tmp_path / 'run' / 'checkpoint-2'}"
    capsys.readouterr()
    assert train("select_random", *SHORT, "update_times=1", saved, f"dataset_dir={data}", out="other") == 1
    assert "train dataset: 60 rows with the digest " in capsys.readouterr().err


def test_the_command_line_refuses_a_folder_in_use(train, tmp_path, holder, capsys):
    assert train("select_random", *SHORT, "update_times=1") == 2
    error = capsys.readouterr().err
    assert f"output_dir: {tmp_path / 'run'} is in use by another run: process {holder.pid} on host " in error
    assert "if it is gone, delete " in error
