"""Per-sample gradients of a LoRA adapter, in Adam's form, against one plain forward and backward pass over the rows.

    python -m benchmarks.gradient_features                 # rows from the standard library's docstrings
    python -m benchmarks.gradient_features --data alpaca.json --repeats 5
    python -m benchmarks.gradient_features --model FOLDER --data gsm8k.json alpaca.json --rows 24 --cutoff 192
    python -m benchmarks.gradient_features --device cuda --large --cutoff 512

Plain: ``model(**batch).loss.backward()`` over length-sorted batches, at the best of several batch sizes: what one epoch
of training costs without its optimizer. Dense: one row at a time, its gradient in Adam's form, multiplied with a random
sign matrix that is generated again block by block for every 16 rows; measured on some of the rows, as rows/s.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from dataflex.scoring import (
    AdamDirection,
    RowPass,
    Sketch,
    TargetSet,
    gradient_features,
    influences,
    per_sample_gradients,
    read_moments,
    target_means,
)
from peft import LoraConfig, get_peft_model
from scipy.stats import spearmanr
from transformers import DataCollatorForSeq2Seq, Qwen2Config, Qwen2ForCausalLM

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

SIZES = (1, 2, 4, 8, 16, 32)
PROJ_DIM = 4096
BLOCK = 128  # columns of the dense matrix that exist at a time
Collate = Callable[[list[Any]], Mapping[str, torch.Tensor]]


def large_model(device: str) -> Qwen2ForCausalLM:
    """Returns a Qwen2 of 0.5 billion parameters with random weights, in bf16."""
    config = Qwen2Config(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=2048,
    )  # fmt: skip
    with torch.device(device):
        return Qwen2ForCausalLM(config).to(torch.bfloat16)


def with_lora(model: torch.nn.Module, rank: int) -> torch.nn.Module:
    """Returns the model with an adapter on all linear layers."""
    return get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear", lora_dropout=0.0))


def on(batch: Mapping[str, torch.Tensor], device: str) -> dict[str, torch.Tensor]:
    return {key: value.to(device) for key, value in batch.items()}


def plain(model: torch.nn.Module, rows: Sequence[Any], collate: Collate, size: int, device: str) -> None:
    for start in range(0, len(rows), size):
        model(**on(collate([dict(r) for r in rows[start : start + size]]), device)).loss.backward()
    model.zero_grad(set_to_none=True)


def trained(
    model: torch.nn.Module, rows: Sequence[Any], collate: Collate, device: str, steps: int
) -> torch.optim.Optimizer:
    """Trains a few steps, so that Adam has moments."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for step in range(steps):
        taken = [dict(rows[(8 * step + number) % len(rows)]) for number in range(8)]
        model(**on(collate(taken), device)).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return optimizer


def dense(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, rows: Sequence[Any], collate: Collate, device: str
) -> None:
    parameters = [p for p in model.parameters() if p.requires_grad]
    moments = [torch.cat([optimizer.state[p][key].flatten() for p in parameters]) for key in ("exp_avg", "exp_avg_sq")]
    held: list[torch.Tensor] = []
    for number, row in enumerate(rows):
        model(**on(collate([dict(row)]), device)).loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in parameters]).float()
        held.append((0.9 * moments[0] + 0.1 * gradient) / (0.999 * moments[1] + 0.001 * gradient**2 + 1e-8).sqrt())
        model.zero_grad(set_to_none=True)
        if len(held) == 16 or number == len(rows) - 1:
            stacked, held = torch.stack(held), []
            generator = torch.Generator(device).manual_seed(0)
            for _ in range(PROJ_DIM // BLOCK):
                shape = (stacked.shape[1], BLOCK)
                signs = torch.randint(0, 2, shape, generator=generator, device=device, dtype=torch.int8)
                stacked @ (signs.to(stacked.dtype) * 2 - 1)


def sketch_quality(
    model: torch.nn.Module, direction: AdamDirection, rows: RowPass, targets: Sequence[Any], device: str
) -> None:
    """Prints how far sketched scores keep the order of the exact ones."""
    target = [TargetSet("target", targets)]
    with per_sample_gradients(model) as gradients:
        sizes = [route.size for route in gradients.routes]
        exact = influences(gradients, model, target_means(gradients, model, target, rows), rows, direction)[:, 0]
        print(f"\nexact scores: standard deviation {exact.std():.4f}; {sum(sizes)} trainable numbers")
        for dim in (4096, 8192):
            found = []
            for seed in range(3):
                sketch = Sketch(sizes, dim, seed, torch.device(device))
                means = target_means(gradients, model, target, rows, sketch)
                scores = influences(gradients, model, means, rows, direction, sketch)[:, 0]
                found.append((float(spearmanr(exact, scores).statistic), float(np.abs(scores - exact).mean())))
            orders, errors = zip(*found, strict=True)
            print(
                f"proj_dim {dim}: Spearman {min(orders):.3f}-{max(orders):.3f}, mean error {np.mean(errors):.4f} "
                "(3 seeds)"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_rows(parser)
    parser.add_argument("--size", type=at_least(1), help="the plain pass's batch size; default: the best of several")
    parser.add_argument("--exact-only", action="store_true", help="leave the sketched features out")
    parser.add_argument(
        "--steps", type=at_least(1), default=12, help="optimizer steps of 8 rows before the measurement"
    )
    parser.add_argument("--rank", type=at_least(1), default=8)
    parser.add_argument("--repeats", type=at_least(1), default=3)
    parser.add_argument(
        "--dense-rows", type=at_least(0), default=16, help="rows of the dense projection; 0: leave it out"
    )
    add_device(parser)
    parser.add_argument("--large", action="store_true", help="0.5 billion parameters in bf16 instead of 5 million")
    add_threads(parser)
    parser.add_argument("--quality", action="store_true", help="also compare sketched scores with exact ones")
    options = parser.parse_args()
    if options.quality and options.rows < 3:
        parser.error(
            f"argument --quality: compares the order of rows, and --rows {options.rows} has none -> at least 3"
        )
    if options.threads:
        torch.set_num_threads(options.threads)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    device = options.device

    pairs = examples(options.data, options.rows)
    if options.model:
        base, tokenizer = real_model(options.model, getattr(torch, options.dtype), device)
        rows = chats(pairs, options.cutoff, tokenizer)
    else:
        rows, tokenizer = tokenised(pairs, options.cutoff)
        base = large_model(device) if options.large else small_model(device)
    collate = DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8, label_pad_token_id=-100)
    model = with_lora(base, options.rank).eval()
    optimizer = trained(model, rows, collate, device, options.steps)
    by_length = sorted(rows, key=lambda r: -len(r["input_ids"]))
    sample = by_length[::8] if len(rows) >= 8 * max(SIZES) else by_length
    size = options.size or min(
        SIZES,
        key=lambda s: min(
            timed(partial(plain, model, sample, collate, s, device), device).measure(device) for _ in "12"
        ),
    )
    every = RowPass(rows, collate, progress=False)

    with per_sample_gradients(model) as gradients:
        direction = AdamDirection(read_moments(optimizer, gradients.routes) or {})
        sketch = Sketch([route.size for route in gradients.routes], PROJ_DIM, 0, torch.device(device))
        means = target_means(gradients, model, [TargetSet("target", rows[:64])], every)

    def features() -> None:
        with per_sample_gradients(model) as gradients:
            gradient_features(gradients, model, every, sketch, direction)

    def streamed(budget: int | None = None) -> None:
        with per_sample_gradients(model) as gradients:
            influences(gradients, model, means, replace(every, token_budget=budget), direction)

    reference = f"plain forward and backward, batch size {size}"
    runs: dict[str, Callable[[], object]] = {
        reference: partial(plain, model, by_length, collate, size, device),
        f"features, Adam form, proj_dim {PROJ_DIM}": features,
        "influence on 1 target set, Adam form, exact": streamed,
    }
    runs |= {f"influence, {budget} tokens": partial(streamed, budget) for budget in options.budgets}
    if options.exact_only:
        del runs[f"features, Adam form, proj_dim {PROJ_DIM}"]
    took = interleaved(runs, options.repeats, device)
    print(f"{machine(device)}; {options.repeats} repeats, interleaved")
    tokens, labels = (sum(sum(x != -100 for x in r[key]) for r in rows) for key in ("input_ids", "labels"))
    print(f"{len(rows)} rows, {tokens} tokens, {labels} of them labels")
    print(f"{model.num_parameters() / 1e6:.1f}M parameters, LoRA rank {options.rank}; {options.dtype}")
    print("ratio: rows/s against the plain pass\n")
    print(table(took, len(rows), median(took[reference])))
    if options.dense_rows and not options.exact_only:
        few = rows[:: max(1, len(rows) // options.dense_rows)][: options.dense_rows]
        wall = timed(partial(dense, model, optimizer, few, collate, device), device).wall
        ours = len(rows) / median(took[f"features, Adam form, proj_dim {PROJ_DIM}"]).wall
        print(f"\nbatch size 1, dense projection, {len(few)} rows: {len(few) / wall:.2f} rows/s; features: "
              f"{ours / (len(few) / wall):.1f} times that")  # fmt: skip
    if options.quality:
        sketch_quality(model, direction, every, rows[:64], device)


if __name__ == "__main__":
    main()
