"""Rows whose family and whose errors are known, and a small model that has begun to learn them.

Families of tasks come from :mod:`dataflex.workspace.tasks`: in each, three answers of ten belong to another task.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dataflex.testing import pad_collate, tiny_tokenizer, tiny_training_args
from dataflex.workspace.library_text import harvest
from dataflex.workspace.tasks import FAMILIES, Material, Task, make_tasks
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast, PrinterCallback, Qwen2Config, Qwen2ForCausalLM, Trainer

BASE_SEED = 1000
"""Seed of the rows that the base model is trained on; those of the benchmark have 0, 1, 2, .."""

BASE_ROWS, POOL_ROWS, HELD_OUT_ROWS = 1500, 200, 120
"""Rows of each family: to train the base model on, to select from, and held out."""

TARGET_ROWS, TEST_ROWS = 16, 50
"""Held-out rows of each family that are a target, and that the trained model is measured on; the others are known as
clean to the reference model of rho_loss."""

EVEN_TARGET_ROWS = 4
"""Held-out rows of each family that are the target where all families are."""

Row = dict[str, list[int]]


@dataclass(frozen=True)
class Pool:
    """The rows of one seed.

    Attributes:
        rows: N rows to select from.
        families: The family of each.
        in_target: (N,) whether a row is of the target family.
        clean: (N,) whether its answer is the right one.
        target: A few rows of the target family, all right: what selectors aim at.
        test: Family -> held-out rows, all right.
        reference: Held-out rows of all families, all right, that are in none of the others.
    """

    rows: list[Row]
    families: list[str]
    in_target: NDArray[np.bool_]
    clean: NDArray[np.bool_]
    target: list[Row]
    test: dict[str, list[Row]]
    reference: list[Row]


@dataclass(frozen=True)
class World:
    """What all seeds share.

    Attributes:
        material: What tasks are made from.
        tokenizer: Trained on the base model's rows.
        base: The rows that the base model is trained on.
    """

    material: Material
    tokenizer: PreTrainedTokenizerFast
    base: list[Row]


def world() -> World:
    """Returns the material, a tokenizer of nearly single letters, and the base model's rows."""
    found = harvest()
    counts = Counter(word for piece in found.sources["prose"] for word in re.findall(r"\b[a-z]{4,8}\b", piece.text))
    words = sorted(counts, key=lambda word: (-counts[word], word))[:400]
    material = Material(words, found.summaries)
    _, tasks = make_tasks(material, 0, BASE_ROWS, BASE_SEED)  # held-out tasks: none of them is answered wrongly
    tokenizer = tiny_tokenizer((part for t in tasks for part in (t.instruction, t.input, t.output)), vocab_size=300)
    return World(material, tokenizer, tokenised(tasks, tokenizer))


def tokenised(tasks: Iterable[Task], tokenizer: PreTrainedTokenizerFast) -> list[Row]:
    """Returns rows in which only the answer has labels."""
    rows = []
    for task in tasks:
        head = tokenizer(f"{task.instruction}\n{task.input}\n")["input_ids"]
        tail = [*tokenizer(task.output)["input_ids"], tokenizer.eos_token_id]
        tokens = head + tail
        rows.append({"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": [-100] * len(head) + tail})
    return rows


def pool(shared: World, family: str | None, seed: int) -> Pool:
    """Returns the rows of a seed, with ``family`` as the target; None for all families alike."""
    train, held_out = make_tasks(shared.material, POOL_ROWS, HELD_OUT_ROWS, seed)
    by_family = {name: tokenised((t for t in held_out if t.family == name), shared.tokenizer) for name in FAMILIES}
    every = [row for rows in by_family.values() for row in rows[:EVEN_TARGET_ROWS]]
    used = TARGET_ROWS + TEST_ROWS
    return Pool(
        rows=tokenised(train, shared.tokenizer),
        families=[task.family for task in train],
        in_target=np.array([family in (None, task.family) for task in train]),
        clean=np.array([not task.noisy for task in train]),
        target=by_family[family][:TARGET_ROWS] if family else every,
        test={name: rows[TARGET_ROWS:used] for name, rows in by_family.items()},
        reference=[row for rows in by_family.values() for row in rows[used:]],
    )


def base_model(shared: World, folder: Path, steps: int) -> None:
    """Trains a Qwen2 of 0.36 million parameters and saves it in ``folder``."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(shared.tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        pad_token_id=0,
    )
    model = Qwen2ForCausalLM(config)
    train(model, shared.base, folder, steps, batch=16, rate=4e-3)
    model.save_pretrained(folder)


def train(model: torch.nn.Module, rows: Sequence[Row], folder: Path, steps: int, batch: int, rate: float) -> None:
    """Trains a model on rows in random order, with a short warm-up and a cosine schedule."""
    arguments = tiny_training_args(
        folder,
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=rate,
        lr_scheduler_type="cosine",
        warmup_steps=20,
        logging_steps=max(1, steps // 5),
    )
    trainer = Trainer(model, arguments, train_dataset=list(rows), data_collator=pad_collate)
    trainer.remove_callback(PrinterCallback)
    done: Any = trainer.train()
    print(f"trained for {steps} steps: loss {done.training_loss:.2f}", file=sys.stderr)
