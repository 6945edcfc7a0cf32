"""SIGTERM while training: a checkpoint at the end of the step, exit code 143, and nothing of the run is lost."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, Part, RunSpec
from dataflex.core import registry, sigterm
from dataflex.core.errors import StoppedError
from dataflex.core.kinds import MIXER, ORDER, SELECTOR, WEIGHTER
from dataflex.run.checkpoints import all_checkpoints, incompleteness, step_of
from dataflex.run.record import read_trace, read_updates
from dataflex.scoring import per_sample_losses
from dataflex.scoring.passes.score_store import ScoreStore
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args
from dataflex.train.selector.base_selector import Selector
from dataflex.train.trainer import DynamicTrainer, MixTrainer, SelectTrainer, WeightTrainer, trainer_class
from transformers import Trainer, TrainerCallback

KINDS = {
    "dynamic_select": (SelectTrainer, SELECTOR, "loss"),
    "dynamic_mix": (MixTrainer, MIXER, "random"),
    "dynamic_weight": (WeightTrainer, WEIGHTER, "loss"),
}


class Terminated(TrainerCallback):
    """Sends SIGTERM to this process inside of a step."""

    def __init__(self, step: int, times: int = 1) -> None:
        self._step, self._times = step, times

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self._step:
            for _ in range(self._times):
                os.kill(os.getpid(), signal.SIGTERM)


def trainer(folder: Path, train_type: str, name: str | None = None, *callbacks, train_step: int = 6, **changes):
    mixin, kind, usual = KINDS[train_type]
    name = name or usual
    keys = DataflexArguments(
        train_type=train_type,
        component_name=name,
        warmup_step=2,
        update_step=2,
        update_times=-1 if train_type != "dynamic_weight" else 0,
        train_step=train_step,
    )
    rows = TokenRows(64, lengths=range(8, 17))
    if train_type == "dynamic_mix":
        rows = {"a": TokenRows(11, lengths=16), "b": TokenRows(90, lengths=range(8, 17), seed=2)}
    model = tiny_model()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1  # so that every step depends on the random state
    sizes = {"max_steps": -1, "learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 100}
    return trainer_class(mixin, Trainer)(
        model=model,
        args=tiny_training_args(folder, **(sizes | changes)),
        train_dataset=rows,
        eval_dataset=TokenRows(4, lengths=8, seed=1),
        data_collator=pad_collate,
        dataflex=RunSpec(keys, ComponentSpec(kind, name, name)),
        callbacks=list(callbacks),
    )


def weights(made) -> torch.Tensor:
    return torch.cat([p.detach().double().flatten() for p in made.model.parameters()])


def stopped(made) -> str:
    """Trains as the command line does until the run stops itself; returns its last words."""
    before = signal.getsignal(signal.SIGTERM)
    with sigterm.allowed(), pytest.raises(StoppedError) as caught:
        made.train()
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    return str(caught.value)


@pytest.mark.parametrize("train_type", KINDS)
def test_sigterm_inside_of_a_step_saves_at_its_end_and_the_resumed_run_is_the_one_never_stopped(train_type, tmp_path):
    whole = trainer(tmp_path / "whole", train_type)
    whole.train()
    out = tmp_path / "stopped"
    # Twice at the same moment, as a service manager and a launcher do it: one request.
    said = stopped(trainer(out, train_type, None, Terminated(2, times=2)))
    saved = out / "checkpoint-3"
    assert said == f"stopped by SIGTERM at step 3 with the checkpoint {saved} -> the same command goes on from there"
    assert [incompleteness(path) for path in all_checkpoints(out)] == [None]
    resumed = trainer(out, train_type)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    assert torch.equal(weights(resumed), weights(whole))


class AllTerminated(TrainerCallback):
    """Has another process send SIGTERM to this one and to the workers of its loaders, as a scheduler does."""

    def __init__(self, step: int, evaluating: bool) -> None:
        self._step, self._evaluating, self.signalled = step, evaluating, 0

    def on_step_begin(self, args, state, control, **kwargs):
        if not self._evaluating:
            self._terminate(state)

    def on_prediction_step(self, args, state, control, **kwargs):
        if self._evaluating:
            self._terminate(state)

    def _terminate(self, state):
        if state.global_step != self._step or self.signalled:
            return
        workers = [str(worker.pid) for worker in multiprocessing.active_children()]
        self.signalled = len(workers)
        subprocess.run(["kill", "-TERM", *workers, str(os.getpid())], check=True)
        time.sleep(0.1)  # a worker that the signal ends is gone then


@pytest.mark.parametrize(
    ("train_type", "evaluating"), [("dynamic_select", False), ("dynamic_weight", False), ("dynamic_weight", True)]
)
def test_sigterm_to_the_workers_of_the_loaders_as_well_stops_as_to_the_process_alone(train_type, evaluating, tmp_path):
    changes = {"eval_strategy": "steps", "eval_steps": 2} if evaluating else {}
    told = AllTerminated(2, evaluating)
    made = trainer(tmp_path, train_type, None, told, dataloader_num_workers=1, **changes)
    # Inside of a step, it is ended; while evaluating, there is none to wait for.
    assert f"at step {2 if evaluating else 3} with the checkpoint" in stopped(made)
    assert told.signalled >= 1
    assert [incompleteness(path) for path in all_checkpoints(tmp_path)] == [None]


class TerminatedWhileScoring(Selector):
    """Scores all rows; at the second update SIGTERM comes during that, once."""

    seen: ClassVar[list[int]] = []

    def select(self, model, step_id, num_samples, **kwargs):
        told = Path(self.cache_dir, "told")
        self.seen.clear()

        def collate(rows):
            self.seen.append(len(rows))
            if step_id == 4 and not told.exists() and len(self.seen) == 5:
                told.parent.mkdir(parents=True, exist_ok=True)
                told.touch()
                os.kill(os.getpid(), signal.SIGTERM)
            return self.data_collator(rows)

        store = ScoreStore(self.cache_dir, lambda: str(step_id), owner=self.cache_owner)
        losses = per_sample_losses(
            model, self.dataset, collator=collate, accelerator=self.accelerator, token_budget=96, store=store
        )
        return losses.argsort()[:num_samples]


def test_sigterm_while_scoring_saves_the_steps_that_are_done_and_what_is_scored(tmp_path, monkeypatch):
    monkeypatch.setitem(registry._registered, ("selectors", "scoring"), TerminatedWhileScoring)
    out = tmp_path / "stopped"
    said = stopped(trainer(out, "dynamic_select", "scoring"))
    assert f"stopped by SIGTERM while scoring at step 4 with the checkpoint {out / 'checkpoint-4'} -> the same" in said
    assert [incompleteness(path) for path in all_checkpoints(out)] == [None]
    assert list(out.rglob("part-*.bin"))
    resumed = trainer(out, "dynamic_select", "scoring")
    resumed.train(resume_from_checkpoint=True)
    rescored = sum(TerminatedWhileScoring.seen)
    whole = trainer(tmp_path / "whole", "dynamic_select", "scoring")
    (tmp_path / "whole" / "dataflex_cache" / "scoring").mkdir(parents=True)
    (tmp_path / "whole" / "dataflex_cache" / "scoring" / "told").touch()
    whole.train()
    assert torch.equal(weights(resumed), weights(whole))
    assert 0 < rescored < sum(TerminatedWhileScoring.seen) == 64


SMALL = {"token_budget": 96}
PARTS = (
    Part(ComponentSpec(SELECTOR, "loss", "loss", SMALL), keep=0.5, every=2),
    Part(ComponentSpec(SELECTOR, "loss", "loss", SMALL)),
    Part(ComponentSpec(MIXER, "odm", "odm")),
    Part(ComponentSpec(ORDER, "saw", "saw"), by="loss", over="stretch"),
    Part(ComponentSpec(WEIGHTER, "loss", "loss"), start=3),
)


class TerminatedInAPass:
    """A collator: SIGTERM comes with the fifth batch of the pass at a step."""

    def __init__(self, at: int | None) -> None:
        self.at, self.trainer, self.scored = at, None, {}

    def __call__(self, rows):
        model = self.trainer and self.trainer.model
        if model is not None and not model.training:
            step = self.trainer.state.global_step
            self.scored[step] = self.scored.get(step, 0) + len(rows)
            if step == self.at and self.scored[step] > 20:
                self.at = None
                os.kill(os.getpid(), signal.SIGTERM)
        return pad_collate(rows)


def composed(folder: Path, at: int | None = None):
    """Returns a run of every axis, with SIGTERM while it scores at a step, and the rows that it scores at each."""
    names = {each.component.kind.name: {"component": each.component.name} for each in PARTS}
    names["selector"] = (names["selector"],) * 2
    keys = DataflexArguments(train_type="dynamic", warmup_step=2, update_step=2, update_times=3, **names)
    collate = TerminatedInAPass(at)
    made = trainer_class(DynamicTrainer, Trainer)(
        model=tiny_model(),
        args=tiny_training_args(folder, max_steps=-1, learning_rate=1e-2, save_strategy="steps", save_steps=100),
        train_dataset={"a": TokenRows(30, lengths=16), "b": TokenRows(40, lengths=range(8, 17), seed=2)},
        data_collator=collate,
        dataflex=RunSpec(keys, parts=PARTS),
    )
    collate.trainer = made
    return made, collate.scored


def test_sigterm_while_a_filter_of_several_axes_scores_and_the_resumed_run_is_the_one_never_stopped(tmp_path):
    whole, scored = composed(tmp_path / "whole")
    whole.train()
    out = tmp_path / "stopped"
    made, before = composed(out, at=6)  # the second update that the filter takes part in
    said = stopped(made)
    assert f"stopped by SIGTERM while scoring at step 6 with the checkpoint {out / 'checkpoint-6'} -> the same" in said
    assert {line["step"] for line in read_updates(out)} == {2, 4}
    resumed, rest = composed(out)
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(weights(resumed), weights(whole))
    assert 20 < before[6] < 70
    assert rest[6] == scored[6] - before[6] == 70 - before[6], "what was scored before is not scored again"
    without_seconds = [
        [{key: value for key, value in line.items() if "seconds" not in key} for line in read_trace(folder)]
        for folder in (out, tmp_path / "whole")
    ]
    assert without_seconds[0] == without_seconds[1]


@pytest.mark.parametrize(("depends", "evaluated"), [(False, 0), (True, 1)])
def test_an_evaluation_that_is_due_is_left_out_unless_training_depends_on_it(depends, evaluated, tmp_path):
    changes = {"eval_strategy": "steps", "eval_steps": 3}
    if depends:
        changes |= {"metric_for_best_model": "loss"}
    made = trainer(tmp_path, "dynamic_select", None, Terminated(2), **changes)
    assert "checkpoint-3" in stopped(made)
    assert sum("eval_loss" in line for line in made.state.log_history) == evaluated


def test_a_run_that_saves_no_checkpoints_saves_none_for_sigterm_and_says_so(tmp_path):
    said = stopped(trainer(tmp_path, "dynamic_select", None, Terminated(2), save_strategy="no"))
    assert said == "stopped by SIGTERM at step 3; nothing was saved, as save_strategy is no"
    assert all_checkpoints(tmp_path) == []


def test_training_from_a_program_of_somebody_elses_leaves_its_signals_alone(tmp_path):
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        made = trainer(tmp_path, "dynamic_select", None, Terminated(2))
        made.train()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]
    assert made.state.global_step == 6


def test_a_thread_cannot_catch_signals_and_does_not_try():
    found = []

    def asked():
        with sigterm.allowed(), sigterm.caught():
            found.append(sigterm.may_be_asked())

    thread = threading.Thread(target=asked)
    thread.start()
    thread.join()
    assert found == [False]


def test_another_sigterm_later_on_ends_the_process_at_once():
    code = (
        "import os, signal; from dataflex.core import sigterm\n"
        "sigterm.AT_ONCE_AFTER = 0.0\n"
        "with sigterm.allowed(), sigterm.caught():\n"
        "    os.kill(os.getpid(), signal.SIGTERM); assert sigterm.asked()\n"
        "    os.kill(os.getpid(), signal.SIGTERM); print('alive')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGTERM
    assert done.stdout == ""


def test_sigterm_after_the_last_step_is_not_forgotten():
    code = (
        "import os, signal; from dataflex.core import sigterm\n"
        "with sigterm.allowed():\n"
        "    with sigterm.caught():\n"
        "        os.kill(os.getpid(), signal.SIGTERM); assert sigterm.asked()\n"
        "    print('alive')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGTERM
    assert done.stdout == ""


RANK = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch
from dataflex.core import sigterm
from dataflex.core.errors import StoppedError
from dataflex.launch.torchrun import settle
from test_stopping import trainer
from transformers import TrainerCallback

class Slow(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            Path(sys.argv[1], f"rank-{args.process_index}").write_text(str(os.getpid()))
        time.sleep(0.05)

torch.set_num_threads(1)
made = trainer(Path(sys.argv[1], "out"), "dynamic_select", "random", Slow(), train_step=4000)
try:
    with sigterm.allowed():
        made.train()
except StoppedError as error:
    sys.stderr.write(f"{error}\\n")
    settle()
    sys.exit(error.exit_code)
"""

CLI = """
import sys
from dataflex.launch.supervised import supervised
from dataflex.launch.torchrun import _to_ranks
launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
sys.exit(supervised([*launcher, *sys.argv[1:]], to=_to_ranks))
"""


@pytest.mark.slow
def test_two_ranks_stop_at_the_same_step_with_one_whole_checkpoint(tmp_path):
    for name, text in (("cli.py", CLI), ("rank.py", RANK)):
        (tmp_path / name).write_text(text)
    command = [sys.executable, "cli.py", "rank.py", str(tmp_path), str(Path(__file__).parent), "dataflex"]
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    cli = subprocess.Popen(command, cwd=tmp_path, env=environ, stderr=subprocess.PIPE, text=True)
    while not all((tmp_path / f"rank-{rank}").exists() for rank in (0, 1)) and cli.poll() is None:
        time.sleep(0.05)
    cli.send_signal(signal.SIGTERM)
    said = cli.communicate(timeout=120)[1]
    assert cli.returncode == 143, said[-3000:]
    (checkpoint,) = all_checkpoints(tmp_path / "out")
    assert incompleteness(checkpoint) is None
    assert said.count(f"stopped by SIGTERM at step {step_of(checkpoint)} with the checkpoint {checkpoint} ->") == 2
