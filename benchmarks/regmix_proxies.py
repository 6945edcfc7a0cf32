"""What regmix's mixture is worth: against equal shares, shares by size and DoReMi, at equal steps, paired by seed.

    python -m benchmarks.regmix_proxies --seeds 5 --threads 1

Domains, models and runs are those of :mod:`benchmarks.mixture_quality`. For each seed, proxies of a third of the width
are trained on drawn mixtures, one in five is held out, and each regressor is fitted to the others. Held-out rows are
split in two: by one half the proxies are told apart, by the other everything is measured. The target is the mean loss
over the domains. What the proxies cost is counted in steps of the main run, by floating-point operations.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from dataflex.discovery.installed import has_package
from dataflex.testing import tiny_model
from dataflex_mixers.regmix.found_mixture import ALL, Fit, Found, find
from dataflex_mixers.regmix.mixture_drawing import Drawing, drawn
from dataflex_mixers.regmix.regressors import LIGHTGBM, REGRESSORS

from benchmarks.common import add_device, add_threads, at_least, machine, quieten
from benchmarks.mixture_data import domains, library_documents
from benchmarks.mixture_quality import (
    BATCH,
    FIXED,
    LENGTH,
    METHODS,
    SIZE,
    UNIFORM,
    VOCABULARY,
    Method,
    Outcome,
    Setting,
    difference_table,
    doremi,
    loss_table,
    run,
)
from benchmarks.selection_quality import spread

HELD_OUT = 5
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


def search(
    setting: Setting, small: Setting, count: int, seed: int, folder: Path
) -> tuple[dict[str, Found], tuple[float, float]]:
    """Trains the proxies of a seed; returns regressor -> what it finds, and the least and the mean loss of a proxy."""
    names = list(setting.data.train)
    sizes_K = np.array([len(rows) for rows in setting.data.train.values()], dtype=np.float64)
    prior_K, drawing = sizes_K / sizes_K.sum(), Drawing()
    mixtures_NK = drawn(prior_K, count, drawing, seed)
    losses = []
    for number, shares in enumerate(mixtures_NK):
        method = Method("static", {"proportions": shares.tolist()}, update_step=FIXED)
        outcome, _ = run(method, small, folder / str(number), seed)
        losses.append([outcome.losses[name] for name in names])
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


def one_seed(setting: Setting, small: Setting, count: int, seed: int, folder: Path) -> Seed:
    """Returns what came of a seed."""
    outcomes: dict[str, Outcome] = {}
    for name in (UNIFORM, SIZE):
        outcomes[name], model = run(METHODS[name], setting, folder / name, seed)
        model.save_pretrained(folder / name)
    outcomes["doremi: proxy"], outcomes[DOREMI] = doremi(METHODS[DOREMI], setting, folder / SIZE, folder / DOREMI, seed)
    began = time.perf_counter()
    found, best = search(setting, small, count, seed, folder)
    took = time.perf_counter() - began
    for regressor, each in found.items():
        method = Method("static", {"proportions": each.shares_K.tolist()}, update_step=FIXED)
        outcomes[f"regmix, {regressor}"], _ = run(method, setting, folder / regressor, seed)
        print(
            f"seed {seed}  {regressor:<9} {took:6.1f} s  {outcomes[f'regmix, {regressor}']}",
            file=sys.stderr,
            flush=True,
        )
    return Seed(outcomes, found, best)


def fit_table(seeds: Sequence[Seed]) -> str:
    """Returns a Markdown table of how well each regressor told held-out proxies apart."""
    lines = [
        "| regressor | rank correlation | mean error | error of the mean alone | predicted loss | least loss of a proxy |",
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
        f"which has {setting.steps} and {weights[0]:,} weights; DoReMi's reference and proxy take {2.33 * setting.steps:.0f}"
    )


def _weights(setting: Setting) -> int:
    model = tiny_model(setting.data.vocabulary, hidden=setting.hidden, layers=setting.layers, seed=0, kind="qwen2")
    return sum(p.numel() for name, p in model.named_parameters() if "embed_tokens" not in name)


def _halves(rows: Mapping[str, list[dict[str, list[int]]]]) -> tuple[dict, dict]:  # type: ignore[type-arg]
    return {name: own[::2] for name, own in rows.items()}, {name: own[1::2] for name, own in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=at_least(1), default=5)
    parser.add_argument("--steps", type=at_least(1), default=200, help="optimizer steps of a main run")
    parser.add_argument("--proxies", type=at_least(8), default=64)
    parser.add_argument("--proxy-steps", type=at_least(1), default=50, help="optimizer steps of a proxy")
    add_threads(parser)
    add_device(parser)
    options = parser.parse_args()
    quieten(options.threads)
    data = domains(library_documents(), LENGTH, VOCABULARY)
    told, measured = _halves(data.test)
    setting = Setting(replace(data, test=measured), options.steps)
    small = Setting(replace(data, test=told), options.proxy_steps, hidden=32, layers=1)
    seeds = []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as temporary:
            seeds.append(one_seed(setting, small, options.proxies, seed, Path(temporary)))
    rows = ", ".join(f"{name} {len(found)}" for name, found in data.train.items())
    print(f"{machine(options.device)}; {options.seeds} seeds, mean ± standard deviation")
    print(f"{rows} rows of {LENGTH} tokens; {options.steps} steps of {BATCH} rows")
    print(f"{cost_in_words(setting, small, options.proxies)}\n")
    print(fit_table(seeds), end="\n\n")
    outcomes = [seed.outcomes for seed in seeds]
    print(loss_table(outcomes, list(data.train)), end="\n\n")
    print(difference_table(outcomes))


if __name__ == "__main__":
    main()
