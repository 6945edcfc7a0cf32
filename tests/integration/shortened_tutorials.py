"""What the tests change of a tutorial so that it takes seconds: fewer steps, fewer rows, one seed. Nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

FEW = {"warmup_step": 1, "update_step": 1, "update_times": 3, "train_step": 4, "max_steps": 4, "from": 1}
"""Values of the keys that say how long a run is, where they are larger."""
SAVED = 2  # steps between checkpoints
ROWS = 60  # of a dataset; a pre-training text is longer than a row, so 60 give more rows than the runs need

_LENGTH = re.compile(rf"\b({'|'.join(FEW)})(: ?|=)(\d+)")


def _few(text: str) -> str:
    return _LENGTH.sub(lambda found: f"{found[1]}{found[2]}{min(int(found[3]), FEW[found[1]])}", text)


def shortened(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments of a command with few steps; what one update arranges still lasts for the whole run."""
    few = [re.sub(r"checkpoint-\d+", f"checkpoint-{SAVED}", _few(argument)) for argument in arguments]
    once = "update_times=1" in few and "update_step=1" in few
    return [*few, f"update_step={FEW['max_steps']}"] if once else few


def shrink(workspace: Path) -> None:
    """Makes the runs and the data of a workspace short."""
    for file in workspace.glob("*.yaml"):
        text = _few(file.read_text(encoding="utf-8"))
        text = re.sub(r"^save_steps: \d+", f"save_steps: {SAVED}", text, flags=re.MULTILINE)
        text = re.sub(r"^logging_steps: \d+", "logging_steps: 1", text, flags=re.MULTILINE)
        file.write_text(text, encoding="utf-8")
    for file in (workspace / "data").glob("*.jsonl"):
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        file.write_text("".join(lines[:ROWS]), encoding="utf-8")
    for file in (workspace / "data").glob("*.json"):
        rows = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(rows, list):
            file.write_text(json.dumps(rows[: ROWS + 20]), encoding="utf-8")
