"""A run that is killed while it scores goes on with the rows that are left, and ends as if nothing had been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import json, os, signal, sys
from pathlib import Path

import torch
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.kinds import SELECTOR
from dataflex.scoring.passes.score_store import ScoreStore
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args
from dataflex.train.trainer import SelectTrainer, trainer_class
from transformers import Trainer

out, name, kill_after = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
ScoreStore.__init__.__defaults__ = (0.0,)  # a part after every batch, not every minute
torch.set_num_threads(1)
scored = []
running = {"select": False}


def collate(rows):
    if running["select"]:
        scored.append(len(rows))
        if len(scored) == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
    return pad_collate(rows)


class Watched(trainer_class(SelectTrainer, Trainer)):
    def _dataflex_plan(self, segment):
        running["select"] = segment.update == 1
        try:
            return super()._dataflex_plan(segment)
        finally:
            running["select"] = False


keys = DataflexArguments(train_type="dynamic_select", component_name=name, warmup_step=2, update_step=2, update_times=2)
trainer = Watched(
    model=tiny_model(),
    args=tiny_training_args(out, max_steps=-1, save_strategy="steps", save_steps=1, learning_rate=1e-2),
    train_dataset=TokenRows(60, lengths=range(8, 17)),
    eval_dataset=TokenRows(4, lengths=range(8, 17), seed=1),
    data_collator=collate,
    dataflex=RunSpec(keys, ComponentSpec(SELECTOR, name, name, {"token_budget": 96})),
)
trainer.train(resume_from_checkpoint=(out / "checkpoint-2").exists() or None)
digest = sum(float(p.double().abs().sum()) for p in trainer.model.parameters())
print(json.dumps({"batches": len(scored), "rows": sum(scored), "weights": digest.hex()}))
"""


def ran(folder: Path, name: str, kill_after: int = -1) -> subprocess.CompletedProcess[str]:
    script = folder / "run.py"
    script.write_text(RUN)
    command = [sys.executable, str(script), str(folder / "out"), name, str(kill_after)]
    return subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["loss", "less"])
def test_scoring_goes_on_where_it_was_killed(name, tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    done = ran(tmp_path / "whole", name)
    assert done.returncode == 0, done.stderr[-2000:]
    whole = json.loads(done.stdout.splitlines()[-1])
    killed = ran(tmp_path / "killed", name, kill_after=whole["batches"] - 2)
    assert killed.returncode == -signal.SIGKILL
    assert list((tmp_path / "killed" / "out").rglob("part-*.bin"))
    done = ran(tmp_path / "killed", name)
    assert done.returncode == 0, done.stderr[-2000:]
    again = json.loads(done.stdout.splitlines()[-1])
    assert again["weights"] == whole["weights"]
    assert 0 < again["rows"] < whole["rows"] / 2
