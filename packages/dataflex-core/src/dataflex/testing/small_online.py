"""A small run over TRL's GRPO, made in one call: for components that go by the rewards of sampled answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from dataflex.api.dynamic_call import dynamic
from dataflex.api.keywords import allowed
from dataflex.testing.devices import device
from dataflex.testing.tiny_models import tiny_model, tiny_tokenizer
from dataflex.upstream.trl_packages import trl_with_absent_packages

ANSWERS = 2
"""Answers to a prompt."""


def small_prompts(count: int, word: str = "red") -> datasets.Dataset:
    """Returns prompts as TRL's trainers take them."""
    return datasets.Dataset.from_dict({"prompt": [f"{word} {number} green" for number in range(count)]})


def by_prompt(prompts: Sequence[str], completions: Sequence[Any], **more: Any) -> list[float]:
    """Returns rewards that depend on the prompt alone, so that they are the same on any number of ranks."""
    return [float(sum(map(ord, prompt)) % 2) for prompt in prompts]


def small_online_trainer(
    folder: Path, train_dataset: Any, *, model: Any = None, args: Mapping[str, Any] | None = None, **given: Any
) -> Any:
    """Returns a GRPO trainer that is ready to train. Needs TRL.

    Args:
        folder: The folder of the run.
        train_dataset: Prompts, or a mapping from sources to theirs.
        model: The model; None for a tiny one with the tokenizer's words.
        args: Fields of ``GRPOConfig`` in place of those here.
        **given: Keywords of :func:`dataflex.dynamic`; what it does not know goes to the trainer.

    Raises:
        ConfigError: What ``dynamic`` or the trainer refuses.
    """
    trl = trl_with_absent_packages()  # here, as it is no dependency of the kit

    tokenizer = tiny_tokenizer()
    made = tiny_model(len(tokenizer), layers=1) if model is None else model
    vars(made).setdefault("warnings_issued", {})  # TRL 0.24 writes into it; models of transformers 5 have none
    quiet: dict[str, Any] = {
        "output_dir": str(folder), "report_to": "none", "disable_tqdm": True, "logging_steps": 1, "bf16": False,
        "use_cpu": device().type == "cpu", "num_generations": ANSWERS, "max_completion_length": 2, "beta": 0.0,
    }  # fmt: skip
    keywords: Any = {key: value for key, value in given.items() if key in allowed()}
    others = {key: value for key, value in given.items() if key not in keywords}
    others = {"reward_funcs": by_prompt, "processing_class": tokenizer} | others
    config = trl.GRPOConfig(**quiet | dict(args or {}))
    return dynamic(trl.GRPOTrainer, **keywords)(model=made, args=config, train_dataset=train_dataset, **others)
