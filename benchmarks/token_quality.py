"""Weights of tokens where the right answer is known: which tokens are trained on, and what the model learns of it.

    nice -n 10 python -m benchmarks.token_quality [--seeds 5] [--steps 150]

A row is 16 pairs x f(x): x is drawn at random from 30 tokens, f is a fixed table. x cannot be predicted, so it is noise
(half of the tokens); 30 % of the f(x) are replaced by a random token, which is noise too. What is left, 35 % of the
tokens, can be learnt. The held-out loss is that of f(x) in rows without replaced ones. The reference is a model of the
same size, trained for 200 steps on 512 rows of f(x) without replaced ones.

All runs of a seed begin with the same weights and read the same rows in the same order. ``plain, 4/3 of the steps``
has the compute of ``rho_tokens``, whose reference reads each row once (a forward pass is a third of a step).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import torch
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.kinds import WEIGHTER
from dataflex.core.registry import register_weighter
from dataflex.objective.label_counts import predicted
from dataflex.testing import pad_collate, tiny_model, tiny_training_args
from dataflex.train.trainer import WeightTrainer, trainer_class
from dataflex.train.weighter.base_weighter import Weighter
from dataflex_weighters.parts.kept_token_losses import KeptTokenLosses
from dataflex_weighters.rho_tokens import RhoTokensWeighter
from transformers import Trainer

from benchmarks.common import add_device, add_threads, at_least, machine, quieten

PAIRS, SYMBOLS, FIRST, NOISE = 16, 30, 4, 0.3
BATCH = 16
LEARNABLE = (1 - NOISE) / 2


def rows(count: int, seed: int, noise: float) -> datasets.Dataset:
    """Returns rows of pairs, with a column ``clean``: 1 for each f(x) that was not replaced."""
    table = np.random.default_rng(0).permutation(SYMBOLS)
    generator = np.random.default_rng([seed, count])
    x = generator.integers(0, SYMBOLS, (count, PAIRS))
    replaced = generator.random((count, PAIRS)) < noise
    y = np.where(replaced, generator.integers(0, SYMBOLS, (count, PAIRS)), table[x])
    ids = np.stack([x, y + SYMBOLS], axis=-1).reshape(count, -1) + FIRST
    clean = np.stack([np.zeros_like(x), ~replaced], axis=-1).reshape(count, -1)
    columns = {"input_ids": ids, "labels": ids, "attention_mask": np.ones_like(ids), "clean": clean.astype(float)}
    return datasets.Dataset.from_dict({name: values.tolist() for name, values in columns.items()})


class Counted:
    """Counts the tokens that are trained on, and those of them that can be learnt."""

    taken: ClassVar[list[float]] = [0.0, 0.0]

    def count(self, z_BT: torch.Tensor, ctx: Any, dataset: Any) -> torch.Tensor:
        """Returns ``z_BT``."""
        clean_BT = torch.tensor([dataset[row]["clean"] for row in ctx.batch_rows.tolist()])
        clean_BT = torch.nn.functional.pad(clean_BT[:, 1:], (0, 1))
        Counted.taken[0] += float(z_BT[:, :-1].sum())
        Counted.taken[1] += float((z_BT * clean_BT).sum())
        return z_BT


@register_weighter("counted_rho")
class CountedRho(RhoTokensWeighter, Counted):
    """``rho_tokens``, counted."""

    def token_weights(self, losses_BT: torch.Tensor, *, ctx: Any, **given: Any) -> torch.Tensor:
        """See the base class."""
        return self.count(super().token_weights(losses_BT, ctx=ctx, **given), ctx, self.dataset)


@register_weighter("by_rule")
class ByRule(Weighter, Counted):
    """All tokens, a share of them at random, those with the highest loss, or those that can be learnt."""

    weighs_tokens = True

    def __init__(self, dataset: Any, rule: str, share: float) -> None:
        super().__init__()
        self.dataset, self.rule, self.share = dataset, rule, share

    def mean_token_weight(self, batches: Any, *, ctx: Any) -> float:
        """See the base class."""
        if self.rule != "learnable":
            return int(self.share * (2 * PAIRS - 1) * BATCH) / ((2 * PAIRS - 1) * BATCH)
        clean = [self.dataset[row]["clean"][1:] for batch in batches for row in batch.rows.tolist()]
        return float(np.mean(clean))

    def token_weights(self, losses_BT: torch.Tensor, *, ctx: Any, model: Any, inputs: Any) -> torch.Tensor:
        """See the base class."""
        there_BT = predicted(inputs["labels"])
        if self.rule == "learnable":
            clean_BT = torch.tensor([self.dataset[row]["clean"] for row in ctx.batch_rows.tolist()])
            return self.count(torch.nn.functional.pad(clean_BT[:, 1:], (0, 1)), ctx, self.dataset)
        score_X = losses_BT.flatten().clone()
        if self.rule == "random":
            drawn = self.generator(ctx.state.global_step).random(score_X.numel())
            score_X = torch.from_numpy(drawn).to(score_X)
        score_X[~there_BT.flatten()] = -torch.inf
        best = score_X.topk(int(self.share * int(there_BT.sum()))).indices
        z_BT = torch.zeros_like(score_X).scatter_(0, best, 1.0).view_as(losses_BT)
        return self.count(z_BT, ctx, self.dataset)

    def get_weighted_loss(self, losses: torch.Tensor, **given: Any) -> torch.Tensor:
        """See the base class."""
        return losses.mean()


def runs(reference: str, steps: int) -> dict[str, tuple[str, dict[str, Any], int]]:
    """Returns name -> weighter, its parameters, and steps."""
    rho = {"reference_model": reference}
    return {
        "plain": ("by_rule", {"rule": "random", "share": 1.0}, steps),
        "plain, 4/3 of the steps": ("by_rule", {"rule": "random", "share": 1.0}, steps * 4 // 3),
        "random tokens, 0.35": ("by_rule", {"rule": "random", "share": LEARNABLE}, steps),
        "highest loss, 0.35": ("by_rule", {"rule": "loss", "share": LEARNABLE}, steps),
        "rho_tokens, 0.35": ("counted_rho", rho | {"share": LEARNABLE}, steps),
        "rho_tokens, 0.35, row": ("counted_rho", rho | {"share": LEARNABLE, "scope": "row"}, steps),
        "rho_tokens, 0.6 (default)": ("counted_rho", rho, steps),
        "token_column: what can be learnt": ("by_rule", {"rule": "learnable", "share": 1.0}, steps),
    }


def model_of(seed: int) -> Any:
    return tiny_model(FIRST + 2 * SYMBOLS, hidden=64, layers=2, seed=seed)


def trained(model: Any, data: Any, steps: int, folder: Path, spec: RunSpec | None, seed: int) -> Any:
    """Returns the model after so many steps."""
    args = tiny_training_args(
        folder, max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=3e-3, seed=seed, use_cpu=True,
        lr_scheduler_type="constant", logging_strategy="no", save_strategy="no",
    )  # fmt: skip
    given = {"model": model, "args": args, "train_dataset": data, "data_collator": pad_collate}
    if spec is None:
        Trainer(**given).train()
    else:
        trainer_class(WeightTrainer, Trainer)(**given, dataflex=spec).train()
    return model


def held_out_loss(model: Any, data: Any) -> float:
    """Returns the mean loss of f(x) in rows without replaced ones."""
    ids = torch.tensor(data["input_ids"])
    with torch.no_grad():
        logits = model.eval()(input_ids=ids).logits[:, :-1]
    found = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return float(found.view(len(ids), -1)[:, ::2].mean())


def one_seed(seed: int, steps: int, only: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Returns name -> held-out loss, and the share of noise among the tokens that were trained on."""
    found, held_out = {}, rows(64, 1000 + seed, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        sound = rows(512, 500 + seed, 0.0).remove_columns("clean")
        reference = trained(model_of(100 + seed), sound, 200, path / "r", None, seed)
        reference.save_pretrained(path / "reference")
        found["reference"] = (held_out_loss(reference, held_out), float("nan"))
        data = rows(steps * BATCH * 4 // 3 + BATCH, seed, NOISE)
        for number, (name, (component, params, own)) in enumerate(runs(str(path / "reference"), steps).items()):
            if only and name not in only:
                continue
            Counted.taken[:] = [0.0, 0.0]
            spec = RunSpec(
                DataflexArguments(train_type="dynamic_weight", component_name=component),
                ComponentSpec(WEIGHTER, component, component, params),
            )
            model = trained(model_of(seed), data, own, path / str(number), spec, seed)
            taken, clean = Counted.taken
            found[name] = (held_out_loss(model, held_out), 1 - clean / taken)
            print(f"seed {seed}: {name}: {found[name][0]:.4f}, noise {found[name][1]:.3f}", file=sys.stderr, flush=True)
    return found


def memory(counts: Sequence[int]) -> str:
    """Returns a Markdown table of the peak of Python's and NumPy's memory while losses are kept, and while read.

    Rows of 8 tokens, in an Arrow table that is made before.
    """
    lines = [
        "| rows | on disk | peak while the reference reads them | peak of a step of 16 rows |",
        "| --- | --- | --- | --- |",
    ]
    for count in counts:
        ids = np.random.default_rng(0).integers(3, 128, (count, 8))
        data = datasets.Dataset.from_dict(dict.fromkeys(("input_ids", "labels", "attention_mask"), ids.tolist()))
        with tempfile.TemporaryDirectory() as folder:
            kept = KeptTokenLosses(folder, "float32", None)
            peaks = []
            for do in (
                lambda kept=kept, data=data: kept.read_or_make(tiny_model(layers=1), data, pad_collate, None, "rows"),
                lambda kept=kept, count=count: kept.losses_of(np.arange(0, count, count // 16)),
            ):
                tracemalloc.start()
                do()
                peaks.append(tracemalloc.get_traced_memory()[1] / 1e6)
                tracemalloc.stop()
            lines.append(f"| {count:,} | {32 * count / 1e6:.1f} MB | {peaks[0]:.1f} MB | {peaks[1]:.2f} MB |")
    return "\n".join(lines)


def report(seeds: Sequence[dict[str, tuple[float, float]]]) -> str:
    """Returns a Markdown table."""
    lines = [
        "| run | held-out loss of f(x), mean (least to greatest) | lower than plain | noise among tokens trained on |",
        "| --- | --- | --- | --- |",
    ]
    for name in seeds[0]:
        losses, noise = [seed[name][0] for seed in seeds], statistics.mean(seed[name][1] for seed in seeds)
        below = sum(seed[name][0] < seed["plain"][0] for seed in seeds) if "plain" in seeds[0] else 0
        shown = f"{statistics.mean(losses):.4f} ({min(losses):.4f} to {max(losses):.4f})"
        lines.append(f"| {name} | {shown} | {below} of {len(seeds)} | {'' if np.isnan(noise) else f'{noise:.1%}'} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=at_least(1), default=5)
    parser.add_argument("--steps", type=at_least(3), default=150)
    parser.add_argument("--only", nargs="+", default=(), choices=list(runs("", 3)), help="runs; default: all")
    parser.add_argument(
        "--memory", action="store_true", help="of the losses of 3,000 and 100,000 rows, and nothing else"
    )
    add_threads(parser, default=1)
    add_device(parser)
    options = parser.parse_args()
    quieten(options.threads)
    if options.memory:
        print(memory([3_000, 100_000]))
        return
    seeds = [one_seed(seed, options.steps, options.only) for seed in range(options.seeds)]
    print(f"{machine(options.device)}, {options.steps} steps of {BATCH} rows, {options.seeds} seeds\n")
    print(report(seeds))


if __name__ == "__main__":
    main()
