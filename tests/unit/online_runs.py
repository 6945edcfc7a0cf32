"""Small runs over TRL's trainers that sample answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import trl
from dataflex import dynamic
from dataflex.testing import tiny_model, tiny_tokenizer

STEPS: dict[str, Any] = {"warmup_step": 0, "update_step": 2, "update_times": -1}
BASES = {"grpo": ("GRPOTrainer", "GRPOConfig"), "rloo": ("RLOOTrainer", "RLOOConfig")}
OWN = {"completion_ids", "trainer_state", "log_extra", "log_metric"}
"""What TRL gives a reward function beside prompts, completions and the columns of the rows."""


def prompts(count: int, word: str = "red") -> datasets.Dataset:
    """Prompts with a column that their reward depends on."""
    return datasets.Dataset.from_dict({
        "prompt": [f"{word} {n} green" for n in range(count)],
        "kind": [n % 3 for n in range(count)],
    })  # fmt: skip


def reward(prompts: list[str], completions: list[str], kind: list[int], **more: Any) -> list[float]:
    """0 for a prompt of kind 0, 1 for one of kind 1, and 0 or 1 by the answer for the others."""
    assert set(more) <= OWN, "a column that the user's rows do not have"
    return [float(len(said) % 2) if k == 2 else float(k) for said, k in zip(completions, kind, strict=True)]


def online_trainer(stage: str, folder: Path, rows: Any, axes: dict[str, Any] | None, **settings: Any) -> Any:
    """A trainer of a stage, dynamic where axes are given: two steps of 2 prompts with 4 answers each for an update."""
    base, config = (getattr(trl, name) for name in BASES[stage])
    reward_funcs = settings.pop("reward_funcs", reward)
    keys: dict[str, Any] = {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True,
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_generations": 4,
        "max_completion_length": 4, "max_steps": 8, "logging_steps": 1, "save_strategy": "no", "learning_rate": 1e-2,
        "beta": 0.0,
    }  # fmt: skip
    tokenizer = tiny_tokenizer()
    model: Any = tiny_model(len(tokenizer))
    model.warnings_issued = {}  # TRL 0.24 writes into it; models of transformers 5 have none
    made = base if axes is None else dynamic(base, **axes)
    return made(
        model=model, args=config(**keys | settings), train_dataset=rows, reward_funcs=reward_funcs,
        processing_class=tokenizer,
    )  # fmt: skip
