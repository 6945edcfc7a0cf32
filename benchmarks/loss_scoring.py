"""Loss scoring against a bare forward pass over the same rows.

    python -m benchmarks.loss_scoring                      # rows from the standard library's docstrings
    python -m benchmarks.loss_scoring --data alpaca.json --repeats 5
    python -m benchmarks.loss_scoring --model FOLDER --data gsm8k.json alpaca.json --rows 24 --cutoff 192
    python -m benchmarks.loss_scoring --device cuda

Bare: ``model(**batch).loss`` without gradients, collation included, in dataset order and sorted by length, at the best
of several batch sizes. With ``--no-loss`` it computes logits alone. Scoring computes them at label positions alone, so
a ratio of 1 is not a limit. Batch size 1: one row at a time with labels, as scoring is often written.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from dataflex.scoring import per_sample_losses
from scipy.stats import spearmanr
from transformers import DataCollatorForSeq2Seq

from benchmarks.common import (
    add_device,
    add_rows,
    add_threads,
    at_least,
    chats,
    examples,
    interleaved,
    machine,
    median,
    real_model,
    small_model,
    table,
    timed,
    tokenised,
)

SIZES = (1, 4, 8, 16, 32, 64)
Collate = Callable[[list[Any]], Mapping[str, torch.Tensor]]


@torch.no_grad()
def bare(
    model: torch.nn.Module, rows: Sequence[Any], collate: Collate, size: int, device: str, loss: bool = True
) -> None:
    for start in range(0, len(rows), size):
        batch = dict(collate([dict(r) for r in rows[start : start + size]]))
        if not loss:
            del batch["labels"]
        model(**{key: value.to(device) for key, value in batch.items()}, use_cache=False)


@torch.no_grad()
def one_by_one(model: torch.nn.Module, rows: Sequence[Any], collate: Collate, device: str) -> list[float]:
    return [model(**{key: value.to(device) for key, value in collate([dict(r)]).items()}).loss.item() for r in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_rows(parser)
    parser.add_argument("--no-loss", action="store_true", help="the bare forward computes no loss")
    parser.add_argument("--sizes", type=at_least(1), nargs="+", default=SIZES, help="batch sizes that are tried")
    parser.add_argument("--size", type=at_least(1), help="the bare forward's batch size, nothing tried")
    parser.add_argument("--repeats", type=at_least(1), default=5)
    add_device(parser)
    add_threads(parser)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    logging.getLogger("transformers").setLevel(logging.ERROR)

    pairs = examples(options.data, options.rows)
    if options.model:
        model, tokenizer = real_model(options.model, getattr(torch, options.dtype), options.device)
        rows = chats(pairs, options.cutoff, tokenizer)
    else:
        rows, tokenizer = tokenised(pairs, options.cutoff)
        model = small_model(options.device)
    model.eval()
    collate = DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8, label_pad_token_id=-100)
    by_length = sorted(rows, key=lambda r: -len(r["input_ids"]))

    orders = {"length-sorted": by_length} if options.size else {"dataset order": rows, "length-sorted": by_length}
    run = partial(bare, model, collate=collate, device=options.device, loss=not options.no_loss)
    best = {order: options.size or _best_size(run, data, options, order) for order, data in orders.items()}

    score = partial(per_sample_losses, model, rows, collator=collate, progress=False)
    runs: dict[str, Callable[[], object]] = {
        f"bare forward, {order}, batch size {size}": partial(run, orders[order], size=size)
        for order, size in best.items()
    }
    runs["per_sample_losses"] = score
    runs |= {f"per_sample_losses, {b} tokens": partial(score, token_budget=b) for b in options.budgets}
    if not options.model:
        runs["batch size 1 with labels"] = partial(one_by_one, model, rows, collate, options.device)
    took = interleaved(runs, options.repeats, options.device)

    tokens, labels = (sum(sum(x != -100 for x in r[key]) for r in rows) for key in ("input_ids", "labels"))
    print(f"{machine(options.device)}; {options.repeats} repeats, interleaved")
    print(f"{len(rows)} rows, {tokens} tokens, {labels} of them labels; {model.num_parameters() / 1e6:.1f}M parameters")
    print("ratio: rows/s against the faster bare forward\n")
    print(table(took, len(rows), min((median(took[name]) for name in runs if "bare" in name), key=lambda t: t.wall)))
    if options.model and options.dtype != "float32":
        whole, _ = real_model(options.model, torch.float32, options.device)
        own, full = score(), per_sample_losses(whole, rows, collator=collate, progress=False)
        print(
            f"\nagainst the losses in float32: Spearman {spearmanr(own, full).statistic:.4f}, largest difference "
            f"{np.max(np.abs(own - full)):.3f}, their standard deviation {np.std(full):.2f}"
        )
    if options.size:
        return
    largest = np.max(np.abs(score()[::8] - np.array(one_by_one(model, rows[::8], collate, options.device))))
    print(f"\nlargest difference from the losses at batch size 1, over every eighth row: {largest:.1e}")


def _best_size(run: Callable[..., object], rows: Sequence[Any], options: argparse.Namespace, order: str) -> int:
    """Returns the batch size of the fastest bare forward over a part of the rows, by CPU time; each is tried twice."""
    part = rows[::8] if len(rows) >= 8 * max(options.sizes) else rows
    run(part[:16], size=4)  # warm-up
    fastest = {
        s: min(timed(partial(run, part, size=s), options.device).measure(options.device) for _ in "12")
        for s in options.sizes
    }
    tried = ", ".join(f"{size}: {len(part) / seconds:.1f}" for size, seconds in fastest.items())
    print(f"bare forward, {order}, rows/s by batch size, on {len(part)} rows: {tried}", flush=True)
    return min(fastest, key=lambda size: fastest[size])


if __name__ == "__main__":
    main()
