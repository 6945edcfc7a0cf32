"""What regmix's mixture is worth: against equal shares, shares by size and DoReMi, at equal steps, paired by seed.

    python -m benchmarks.regmix_proxies --seeds 5 --threads 1

Domains and their rows are those of :mod:`benchmarks.mixture_quality`. For each seed, small proxies are trained on drawn
mixtures, one in six is held out, and each regressor is fitted to the others. Each model on fixed shares is trained by a
plain loop with AdamW and a cosine schedule, as to make a trainer takes longer than these steps; DoReMi's proxy has the
real trainer. Held-out rows are split in two: by one half the proxies are told apart, by the other everything is
measured. The target is the mean loss over the domains. What the proxies cost is counted in steps of the main run, by
floating-point operations. The tables of the seeds so far go to stderr after each.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dataflex.discovery.installed import has_package
from dataflex.testing import tiny_model
from dataflex_mixers.doremi.handover import read_weights
from dataflex_mixers.regmix.found_mixture import ALL, Fit, Found, find
from dataflex_mixers.regmix.mixture_drawing import Drawing, drawn
from dataflex_mixers.regmix.regressors import LIGHTGBM, REGRESSORS
from numpy.typing import NDArray
from transformers import get_cosine_schedule_with_warmup

from benchmarks.common import add_device, add_threads, at_least, machine, quieten
from benchmarks.mixture_data import domains, library_documents
from benchmarks.mixture_quality import (
    BATCH,
    LENGTH,
    METHODS,
    RATE,
    SIZE,
    UNIFORM,
    VOCABULARY,
    Outcome,
    Setting,
    difference_table,
    loss_table,
    run,
)
from benchmarks.selection_quality import spread, test_loss

HELD_OUT = 6
"""One proxy of so many is held out of the fit."""
DOREMI = "doremi"


@dataclass(frozen=True)
class Seed:
    """What came of one seed.

    Attributes:
        outcomes: Method -> outcome.
        found: Regressor -> its search.
        best: The least loss of a proxy, and the mean over the proxies.
    """

    outcomes: dict[str, Outcome]
    found: dict[str, Found]
    best: tuple[float, float]


def trained(setting: Setting, shares_K: NDArray[np.float64], seed: int) -> Any:
    """Returns a model that was trained on a mixture; the seed decides on its weights and its rows, not the mixture."""
    model = tiny_model(setting.data.vocabulary, hidden=setting.hidden, layers=setting.layers, seed=seed, kind="qwen2")
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, min(20, setting.steps // 10), setting.steps)
    rng = np.random.default_rng(seed)
    counts_SK = np.stack([rng.multinomial(BATCH, shares_K) for _ in range(setting.steps)])
    orders = {name: iter(rng.permutation(len(rows)).tolist()) for name, rows in setting.data.train.items()}
    for counts_K in counts_SK:
        drawn_rows = [
            setting.data.train[name][next(orders[name])]
            for name, count in zip(setting.data.train, counts_K, strict=True)
            for _ in range(count)
        ]
        ids = torch.tensor([row["input_ids"] for row in drawn_rows], device=model.device)
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model


def search(small: Setting, count: int, seed: int) -> tuple[dict[str, Found], tuple[float, float]]:
    """Trains the proxies of a seed; returns regressor -> what it finds, and the least and the mean loss of a proxy."""
    names = list(small.data.train)
    sizes_K = np.array([len(rows) for rows in small.data.train.values()], dtype=np.float64)
    prior_K, drawing = sizes_K / sizes_K.sum(), Drawing()
    mixtures_NK = drawn(prior_K, count, drawing, seed)
    losses = []
    for shares in mixtures_NK:
        model = trained(small, shares, seed)
        losses.append([test_loss(model, small.data.test[name]) for name in names])
    losses_NT = np.array(losses)
    held_out_N = np.arange(count) % HELD_OUT == 0
    targets = dict.fromkeys(names, 1 / len(names))
    found = {
        regressor: find(
            mixtures_NK, losses_NT, held_out_N, targets, prior_K, Fit(regressor, 100_000, 128, drawing.minimum, seed)
        )
        for regressor in REGRESSORS
        if regressor != LIGHTGBM or has_package("lightgbm")
    }
    means_N = losses_NT.mean(axis=1)
    return found, (float(means_N.min()), float(means_N.mean()))


def on_shares(setting: Setting, shares_K: NDArray[np.float64], seed: int) -> tuple[Outcome, Any]:
    """Returns what came of a main run on fixed shares, and its model."""
    model = trained(setting, shares_K, seed)
    shares = dict(zip(setting.data.train, shares_K.tolist(), strict=True))
    losses = {name: test_loss(model, rows) for name, rows in setting.data.test.items()}
    return Outcome(losses, shares, shares), model


def one_seed(setting: Setting, small: Setting, count: int, seed: int, folder: Path) -> Seed:
    """Returns what came of a seed."""
    outcomes: dict[str, Outcome] = {}
    sizes_K = np.array([len(rows) for rows in setting.data.train.values()], dtype=np.float64)
    outcomes[UNIFORM], _ = on_shares(setting, np.full(len(sizes_K), 1 / len(sizes_K)), seed)
    outcomes[SIZE], reference = on_shares(setting, sizes_K / sizes_K.sum(), seed)
    reference.save_pretrained(folder / "reference")
    method = replace(METHODS[DOREMI], params={"reference_model": str(folder / "reference")})
    run(method, setting, folder / "proxy", seed)
    average = np.array(read_weights(folder / "proxy", list(setting.data.train)))
    outcomes[DOREMI], _ = on_shares(setting, average, seed)
    found, best = search(small, count, seed)
    for regressor, each in found.items():
        outcomes[f"regmix, {regressor}"], _ = on_shares(setting, each.shares, seed)
    return Seed(outcomes, found, best)


def fit_table(seeds: Sequence[Seed]) -> str:
    """Returns a Markdown table of how well each regressor told held-out proxies apart."""
    lines = [
        "| regressor | rank correlation | mean error | error of the mean alone | predicted loss | best proxy |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for regressor in seeds[0].found:
        every = [seed.found[regressor] for seed in seeds]
        told = [each.quality[ALL] for each in every]
        cells = [
            spread([each.rank_correlation for each in told], 2),
            spread([each.error for each in told], 3),
            spread([each.error_of_mean for each in told], 3),
            spread([each.predicted for each in every], 3),
            spread([seed.best[0] for seed in seeds], 3),
        ]
        lines.append(f"| {regressor} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cost_in_words(setting: Setting, small: Setting, count: int) -> str:
    """Returns what the proxies take in steps of the main run: 6 operations a weight and token, embeddings left out."""
    weights = [_weights(each) for each in (setting, small)]
    steps = count * small.steps * weights[1] / weights[0]
    return (
        f"{count} proxies of {small.steps} steps and {weights[1]:,} weights take {steps:.0f} steps of the main run, "
        f"which has {setting.steps} and {weights[0]:,} weights; DoReMi's reference and proxy {2.33 * setting.steps:.0f}"
    )


def _weights(setting: Setting) -> int:
    model = tiny_model(setting.data.vocabulary, hidden=setting.hidden, layers=setting.layers, seed=0, kind="qwen2")
    return sum(p.numel() for name, p in model.named_parameters() if "embed_tokens" not in name)


def _halves(rows: Mapping[str, list[dict[str, list[int]]]]) -> tuple[dict, dict]:  # type: ignore[type-arg]
    return {name: own[::2] for name, own in rows.items()}, {name: own[1::2] for name, own in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=at_least(1), default=5)
    parser.add_argument("--steps", type=at_least(1), default=100, help="optimizer steps of a main run")
    parser.add_argument("--proxies", type=at_least(8), default=60)
    parser.add_argument("--proxy-steps", type=at_least(1), default=40, help="optimizer steps of a proxy")
    add_threads(parser)
    add_device(parser)
    options = parser.parse_args()
    quieten(options.threads)
    data = domains(library_documents(), LENGTH, VOCABULARY)
    told, measured = _halves(data.test)
    setting = Setting(replace(data, test=measured), options.steps, hidden=64)
    small = Setting(replace(data, test=told), options.proxy_steps, hidden=32, layers=1)
    seeds = []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as temporary:
            seeds.append(one_seed(setting, small, options.proxies, seed, Path(temporary)))
        print(tables(seeds, list(data.train)), file=sys.stderr, flush=True)
    rows = ", ".join(f"{name} {len(found)}" for name, found in data.train.items())
    print(f"{machine(options.device)}; {options.seeds} seeds, mean ± standard deviation")
    print(f"{rows} rows of {LENGTH} tokens; {options.steps} steps of {BATCH} rows")
    print(f"{cost_in_words(setting, small, options.proxies)}\n")
    print(tables(seeds, list(data.train)))


def tables(seeds: Sequence[Seed], names: Sequence[str]) -> str:
    """Returns the three tables."""
    outcomes = [seed.outcomes for seed in seeds]
    return f"{fit_table(seeds)}\n\n{loss_table(outcomes, names)}\n\n{difference_table(outcomes)}"


if __name__ == "__main__":
    main()
