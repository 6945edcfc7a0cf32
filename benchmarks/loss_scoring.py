"""Loss scoring against a bare forward pass over the same rows.

    python benchmarks/loss_scoring.py                      # rows from the standard library's docstrings
    python benchmarks/loss_scoring.py --data alpaca.json --repeats 5
    python benchmarks/loss_scoring.py --device cuda

Bare: ``model(input_ids, attention_mask)`` without gradients, logits everywhere, collation included, in dataset order
and sorted by length, at the best of several batch sizes. It computes no loss, so a ratio of 1 is not a limit: scoring
computes logits at label positions alone. Batch size 1: one row at a time with labels, the loss computed by the model,
as scoring is often written.
"""

from __future__ import annotations

import argparse
import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import examples, interleaved, machine, row, seconds, small_model, tokenised
from dataflex.scoring import per_sample_losses
from transformers import DataCollatorForSeq2Seq

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
    parser.add_argument("--rows", type=int, default=999)
    parser.add_argument("--cutoff", type=int, default=256, help="tokens per row")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--budgets", type=int, nargs="*", default=[], help="token budgets to try beside the default")
    options = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)

    rows, tokenizer = tokenised(examples(options.data, options.rows), options.cutoff)
    collate = DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8, label_pad_token_id=-100)
    model = small_model(options.device).eval()
    by_length = sorted(rows, key=lambda r: -len(r["input_ids"]))

    orders = {"dataset order": rows, "length-sorted": by_length}
    bare(model, rows[:64], collate, 8, options.device)  # warm-up
    fastest = {  # on a quarter of the rows, each twice: the best size of each order then runs over all of them
        (order, size): min(
            seconds(partial(bare, model, data[::4], collate, size, options.device), options.device) for _ in "12"
        )
        for order, data in orders.items()
        for size in SIZES
    }
    best = {order: min(SIZES, key=lambda size, o=order: fastest[o, size]) for order in orders}

    score = partial(per_sample_losses, model, rows, collator=collate, progress=False)
    runs: dict[str, Callable[[], object]] = {
        f"bare forward, {order}, batch size {size}": partial(bare, model, orders[order], collate, size, options.device)
        for order, size in best.items()
    }
    runs["per_sample_losses"] = score
    runs |= {f"per_sample_losses, {b} tokens": partial(score, token_budget=b) for b in options.budgets}
    runs["batch size 1 with labels"] = partial(one_by_one, model, rows, collate, options.device)
    times = interleaved(runs, options.repeats, options.device)

    reference = min(statistics.median(t) for name, t in times.items() if name.startswith("bare"))
    print(f"{machine(options.device)}; {options.repeats} repeats, interleaved")
    tokens, labels = (sum(sum(x != -100 for x in r[key]) for r in rows) for key in ("input_ids", "labels"))
    print(
        f"{len(rows)} rows, {tokens} tokens, {labels} of them labels; {model.num_parameters() / 1e6:.1f}M parameters\n"
    )
    print("| run | median s | min-max s | rows/s | against the best bare forward |\n| --- | --- | --- | --- | --- |")
    for name, measured in times.items():
        print(row(name, measured, len(rows), reference))
    largest = np.max(np.abs(score() - np.array(one_by_one(model, rows, collate, options.device))))
    print(f"\nlargest difference between the losses of per_sample_losses and of batch size 1: {largest:.1e}")
    print(
        "bare forward of every fourth row by batch size, best of 2, s: "
        + "; ".join(f"{o} {s}: {t:.2f}" for (o, s), t in fastest.items())
    )


if __name__ == "__main__":
    main()
