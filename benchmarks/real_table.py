"""The tables of the real-model benchmark, as the Markdown that stands in RESULTS.md."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.real_data import CASES, SOURCES
from benchmarks.real_plan import LONGER, NAMES

Result = Mapping[str, Any]
TITLES = {
    "kind": "GSM8K among alpaca",
    "answers": "Right answers among exchanged ones",
    "mixture": "A mixture of three sources",
}
BASELINE, PLAIN, BY_SIZE = "random", "weighter static", "mixer sizes"


def report(results: Sequence[Result]) -> str:
    """Returns all tables of the runs that have ended; a case without a run is left out."""
    if not results:
        return "no run has ended yet"
    results = _in_order(results)
    parts = [_head(results)]
    for case in CASES:
        found = [r for r in results if r["case"] == case]
        chosen = [r for r in found if not r["name"].startswith("weighter ")]
        if chosen and case != CASES[0]:  # the same held-out rows, so it is measured once
            chosen = [*(r for r in results if r["name"] == "before"), *chosen]
        weighed = [r for r in found if r["name"].startswith("weighter ")]
        if chosen:
            parts += [f"**{TITLES[case]}** (`{case}`)", _selectors(chosen), *_equal_compute(chosen)]
        if weighed:
            parts += [f"**{TITLES[case]}**: weighters", _weighters(weighed)]
    mixed = [r for r in results if r["case"] == "mixture"]
    if mixed:
        parts += [f"**{TITLES['mixture']}**", _mixers(mixed)]
    return "\n\n".join(part for part in parts if part)


def _in_order(results: Sequence[Result]) -> list[Result]:
    return sorted(results, key=lambda r: (NAMES.index(r["name"]), r["seed"]))


def sentences(results: Sequence[Result]) -> str:
    """Returns a sentence for each selector, as it stands in docs/papers.md."""
    link = "[a real model and real rows](../benchmarks/RESULTS.md#a-real-model-and-real-rows)"
    said, results = [], _in_order(results)
    for name in NAMES:
        cases = [_sentence([r for r in results if r["case"] == case], case, name) for case in CASES]
        if any(cases) and name not in (BASELINE, "before"):
            said.append(f"{name}: With {link}, {'; '.join(filter(None, cases))}.")
    return "\n\n".join(said)


def _sentence(found: Sequence[Result], case: str, name: str) -> str:
    runs, random = ([r for r in found if r["name"] == wanted and "chosen" in r] for wanted in (name, BASELINE))
    pairs = _paired(found, runs, BASELINE)
    if not pairs:
        return ""
    kind = {"kind": "are GSM8K where that is the target", "answers": "have their own answer where half do not"}[case]
    return (
        f"{_chosen(runs)} chosen rows {kind} (random: {_chosen(random)}), and the loss on held-out GSM8K less random's "
        f"of the same seed is {_differences(pairs, 'gsm8k')}"
    )


def _head(results: Sequence[Result]) -> str:
    setting = results[0]["setting"]
    machines = " and ".join(dict.fromkeys(r["machine"] for r in results))
    pool, target = setting["sizes"]["pool"], setting["sizes"]["target"]
    hours = sum(r["took"] for r in results) / 3600
    kind = "bf16 autocast, adapter and optimizer in fp32" if setting["bf16"] else "fp32"
    return (
        f"{machines}; {setting['model']}, {kind}. {pool} rows, {target} more as the target, "
        f"cut at {setting['cutoff']} tokens; LoRA of rank {setting['rank']} on all linear layers, learning "
        f"rate {setting['rate']:g}, {setting['batch']} rows a step. {len(results)} runs, {hours:.1f} hours in all."
    )


def _selectors(found: Sequence[Result]) -> str:
    lines = _header(
        "strategy",
        "seeds",
        "of the target's kind among the chosen",
        "loss, GSM8K",
        "less random's, each seed",
        "lower rows",
        "loss, alpaca",
        "less random's, each seed",
        "update: s",
        "CPU s",
        "peak GiB (held)",
    )
    for name in dict.fromkeys(r["name"] for r in found):
        runs = [r for r in found if r["name"] == name]
        pairs = _paired(found, runs, BASELINE) if name not in (BASELINE, "before") else []
        lines.append(_line(name, len(runs), _chosen(runs), *_losses(runs, pairs), *_cost(runs)))
    return "\n".join(lines)


def _losses(runs: Sequence[Result], pairs: Sequence[tuple[Result, Result]]) -> list[str]:
    """Returns five cells: the loss on GSM8K, its differences, the rows in which it is lower, and the same of alpaca."""
    lower = [sum(a < b for a, b in zip(*_both(pair, "gsm8k"), strict=True)) for pair in pairs]
    rows = len(runs[0]["losses"]["gsm8k"])
    return [
        f"{statistics.mean(_mean(r, 'gsm8k') for r in runs):.3f}",
        _differences(pairs, "gsm8k"),
        f"{', '.join(map(str, lower))} of {rows}" if lower else "",
        f"{statistics.mean(_mean(r, 'alpaca') for r in runs):.3f}",
        _differences(pairs, "alpaca"),
    ]


def _both(pair: tuple[Result, Result], name: str) -> tuple[list[float], list[float]]:
    return pair[0]["losses"][name], pair[1]["losses"][name]


def _chosen(runs: Sequence[Result]) -> str:
    if "chosen" not in runs[0]:
        return ""
    counts = ", ".join(str(r["chosen"]["of_kind"]) for r in runs)
    return f"{counts} of {runs[0]['chosen']['rows']}"


def _cost(runs: Sequence[Result]) -> list[str]:
    updates = [update for r in runs for update in r.get("updates", ())]
    if not updates:
        return ["", "", ""]
    seconds, cpu, peak, held = (
        statistics.median(u[key] for u in updates) for key in ("seconds", "cpu", "peak", "held")
    )
    memory = "" if math.isnan(peak) else f"{peak:.1f} ({held:.1f})"
    return [f"{seconds:.1f}", f"{cpu:.1f}", memory]


def _equal_compute(found: Sequence[Result]) -> list[str]:
    """Returns a sentence for ``less`` against random rows for as long as one of its updates takes."""
    pairs = _paired(found, [r for r in found if r["name"] == "less"], LONGER)
    if not pairs:
        return []
    steps = pairs[0][1]["chosen"]["rows"] // pairs[0][1]["setting"]["batch"]
    lower = [sum(a < b for a, b in zip(*_both(pair, "gsm8k"), strict=True)) for pair in pairs]
    return [
        f"`less` less `{LONGER}`, whose {steps} steps cost what an update of `less` and 12 steps do: "
        f"{_differences(pairs, 'gsm8k')} on GSM8K ({', '.join(map(str, lower))} of "
        f"{len(pairs[0][0]['losses']['gsm8k'])} rows lower), {_differences(pairs, 'alpaca')} on alpaca."
    ]


def _weighters(found: Sequence[Result]) -> str:
    lines = _header("weighter", "loss, GSM8K", "less static's", "lower rows", "loss, alpaca", "less static's", "run: s")
    for run in found:
        pairs = [] if run["name"] == PLAIN else _paired(found, [run], PLAIN)
        lines.append(_line(run["name"].removeprefix("weighter "), *_losses([run], pairs), f"{run['seconds']:.0f}"))
    return "\n".join(lines)


def _mixers(found: Sequence[Result]) -> str:
    lines = _header("mixer", *SOURCES, "mean", "less that by sizes", "run: s")
    base = next((r for r in found if r["name"] == BY_SIZE), None)
    for run in found:
        losses = [_mean(run, source) for source in SOURCES]
        gain = "" if base is None or run is base else f"{statistics.mean(losses) - _mean_of_sources(base):+.3f}"
        cells = [f"{loss:.3f}" for loss in (*losses, statistics.mean(losses))]
        lines.append(_line(run["name"].removeprefix("mixer "), *cells, gain, f"{run['seconds']:.0f}"))
    return "\n".join(lines)


def _paired(found: Sequence[Result], runs: Sequence[Result], baseline: str) -> list[tuple[Result, Result]]:
    """Returns each run with the baseline of its seed, where that has ended."""
    bases = {r["seed"]: r for r in found if r["name"] == baseline}
    return [(r, bases[r["seed"]]) for r in runs if r["seed"] in bases]


def _differences(pairs: Sequence[tuple[Result, Result]], name: str) -> str:
    return ", ".join(f"{_mean(run, name) - _mean(base, name):+.3f}" for run, base in pairs)


def _mean(run: Result, name: str) -> float:
    return statistics.mean(run["losses"][name])


def _mean_of_sources(run: Result) -> float:
    return statistics.mean(_mean(run, source) for source in SOURCES)


def _header(*cells: str) -> list[str]:
    return [_line(*cells), _line(*["---"] * len(cells))]


def _line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"
