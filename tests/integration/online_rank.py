"""What each rank runs in the test of planned prompts: two runs over TRL's GRPO, the second resumed inside of the first.

    python -m torch.distributed.run --nproc_per_node 2 online_rank.py FOLDER

Each rank leaves ``FOLDER/rank-R.json``: what the rewards of prompts are at the end, and a digest of the weights.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.trl_packages import mend_trl

if __name__ == "__main__":
    import trl.import_utils  # noqa: F401  # mended before its trainers are imported

    mend_trl()

from tests.unit.online_runs import STEPS, online_trainer, prompts

AXES: dict[str, Any] = {"mixer": "odm", "selector": "reward_spread", "mixture_sample_rule": "uniform", **STEPS}


def by_place(prompts: list[str], completions: list[str], kind: list[int], **more: Any) -> list[float]:
    """Rewards that depend on the prompt alone: for kind 2, half of a prompt's four answers are right."""
    return [float(n % 2) if k == 2 else float(k) for n, k in enumerate(kind)]


def trained(folder: Path, ranks: int, resume: str | None = None) -> dict[str, Any]:
    """Trains, and returns what is left."""
    made = online_trainer(
        "grpo", folder, {"a": prompts(12), "b": prompts(16, "blue")}, AXES, reward_funcs=by_place,
        per_device_train_batch_size=8 // ranks, num_iterations=2, save_strategy="steps", save_steps=3, max_steps=8,
    )  # fmt: skip
    made.train(resume_from_checkpoint=resume)
    kept = made.rollouts.rewards
    state = made.model.state_dict()
    digest = hashlib.blake2b(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()
    return {
        "sums": kept.sums.tolist(), "counts": kept.counts.tolist(), "steps": kept.steps.tolist(), "weights": digest,
        "shares": made.mixture_manager.proportions.tolist(),
    }  # fmt: skip


def main(folder: Path) -> None:
    """Trains twice and writes down what came of it."""
    torch.set_num_threads(1)
    whole = trained(folder / "whole", 2)
    resumed = trained(folder / "resumed", 2, str(folder / "whole" / "checkpoint-3"))  # inside of a generation
    rank = torch.distributed.get_rank()
    (folder / f"rank-{rank}.json").write_text(json.dumps({"whole": whole, "resumed": resumed}))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
