"""Loss scoring against a bare forward pass over the same rows.

    python -m benchmarks.loss_scoring                      # rows from the standard library's docstrings
    python -m benchmarks.loss_scoring --data alpaca.json --repeats 5
    python -m benchmarks.loss_scoring --device cuda

Bare: ``model(input_ids, attention_mask)`` without gradients, logits everywhere, collation included, in dataset order
and sorted by length, at the best of several batch sizes. It computes no loss, so a ratio of 1 is not a limit: scoring
computes logits at label positions alone. Batch size 1: one row at a time with labels, the loss computed by the model,
as scoring is often written.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dataflex.scoring import per_sample_losses
from transformers import DataCollatorForSeq2Seq

from benchmarks.common import (
    add_device,
    add_threads,
    at_least,
    examples,
    interleaved,
    machine,
    median,
    small_model,
    table,
    timed,
    tokenised,
)

SIZES = (1, 4, 8, 16, 32, 64)
Collate = Callable[[list[Any]], Mapping[str, torch.Tensor]]


@torch.no_grad()
def bare(model: torch.nn.Module, rows: Sequence[Any], collate: Collate, size: int, device: str) -> None:
    for start in range(0, len(rows), size):
        batch = collate([dict(r) for r in rows[start : start + size]])
        model(
            input_ids=batch["input_ids"].to(device), attention_mask=batch["attention_mask"].to(device), use_cache=False
        )


@torch.no_grad()
def one_by_one(model: torch.nn.Module, rows: Sequence[Any], collate: Collate, device: str) -> list[float]:
    return [model(**{key: value.to(device) for key, value in collate([dict(r)]).items()}).loss.item() for r in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="alpaca-format JSON; default: the standard library's docstrings")
    parser.add_argument("--rows", type=at_least(1), default=999)
    parser.add_argument("--cutoff", type=at_least(2), default=256, help="tokens per row")
    parser.add_argument("--repeats", type=at_least(1), default=5)
    add_device(parser)
    parser.add_argument(
        "--budgets", type=at_least(1), nargs="*", default=[], help="token budgets to try beside the default"
    )
    add_threads(parser)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    logging.getLogger("transformers").setLevel(logging.ERROR)

    rows, tokenizer = tokenised(examples(options.data, options.rows), options.cutoff)
    collate = DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8, label_pad_token_id=-100)
    model = small_model(options.device).eval()
    by_length = sorted(rows, key=lambda r: -len(r["input_ids"]))

    orders = {"dataset order": rows, "length-sorted": by_length}
    best = {order: _best_size(model, data[::8], collate, options.device, order) for order, data in orders.items()}

    score = partial(per_sample_losses, model, rows, collator=collate, progress=False)
    runs: dict[str, Callable[[], object]] = {
        f"bare forward, {order}, batch size {size}": partial(bare, model, orders[order], collate, size, options.device)
        for order, size in best.items()
    }
    runs["per_sample_losses"] = score
    runs |= {f"per_sample_losses, {b} tokens": partial(score, token_budget=b) for b in options.budgets}
    runs["batch size 1 with labels"] = partial(one_by_one, model, rows, collate, options.device)
    took = interleaved(runs, options.repeats, options.device)

    tokens, labels = (sum(sum(x != -100 for x in r[key]) for r in rows) for key in ("input_ids", "labels"))
    print(f"{machine(options.device)}; {options.repeats} repeats, interleaved")
    print(f"{len(rows)} rows, {tokens} tokens, {labels} of them labels; {model.num_parameters() / 1e6:.1f}M parameters")
    print("ratio: rows/s against the faster bare forward\n")
    print(table(took, len(rows), min((median(took[name]) for name in runs if "bare" in name), key=lambda t: t.wall)))
    largest = np.max(np.abs(score()[::8] - np.array(one_by_one(model, rows[::8], collate, options.device))))
    print(f"\nlargest difference from the losses at batch size 1, over every eighth row: {largest:.1e}")


def _best_size(model: torch.nn.Module, rows: Sequence[Any], collate: Collate, device: str, order: str) -> int:
    """Returns the batch size of the fastest bare forward over a part of the rows; each is tried twice."""
    bare(model, rows[:16], collate, 4, device)  # warm-up
    fastest = {s: min(timed(partial(bare, model, rows, collate, s, device), device).wall for _ in "12") for s in SIZES}
    tried = ", ".join(f"{size}: {len(rows) / wall:.0f}" for size, wall in fastest.items())
    print(f"bare forward, {order}, rows/s by batch size, on {len(rows)} rows: {tried}")
    return min(fastest, key=lambda size: fastest[size])


if __name__ == "__main__":
    main()
