"""Whether ``dataflex-cli compare`` can be believed: killed and taken up, with a known answer, and with nothing to find.

    python -m benchmarks.comparing
    python -m benchmarks.comparing --only luck --repetitions 100

``runs``: in a workspace, where LESS is to find the rows of one task, the arms less, loss and *renamed* (a plugin that
draws rows at random, under another name) with three seeds, beside the controls. The command is killed with SIGKILL
while it trains, taken up, interrupted as by Ctrl-C, and taken up again; then one of the runs that were cut is trained
once more in one go, and its loss must be the same number.

``luck``: *renamed* against random again and again, each time with seeds of its own, in runs of this process over plain
transformers (rows and model of ``benchmarks.selection_quality``): how often is it called better, or worse?
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from dataflex.discovery.plugins import load_plugin_files
from dataflex.experiments.statistics import paired_p, t_interval
from dataflex.workspace.build import create

from benchmarks.common import add_device, add_threads, at_least, chosen, machine, quieten, use_cpu
from benchmarks.quality_data import World, base_model, pool, world
from benchmarks.selection_quality import run

PARTS = {"runs": "", "luck": ""}
LEVEL = 0.05
TARGET = "copy"
"""The family that held-out losses are of, where rows are drawn at random."""
PLUGIN = '''"""Rows at random, under another name: a strategy that does nothing."""

from dataflex.core.registry import register_selector
from dataflex.train.selector.base_selector import Selector


@register_selector("renamed")
class Renamed(Selector):
    """Draws rows at random, apart from those that random draws."""

    def select(self, model, step_id, num_samples, **kwargs):
        """Returns rows of a permutation that is drawn at each update."""
        return self.generator(kwargs["context"].update).permutation(len(self.dataset))[:num_samples]
'''


def compared(folder: Path, seeds: int, device: str) -> list[str]:
    """Runs the comparison, cut twice; returns lines for people."""
    space = folder / "space"
    create(space)
    (space / "renamed.py").write_text(PLUGIN, encoding="utf-8")
    base = yaml.safe_load((space / "select_less.yaml").read_text(encoding="utf-8"))
    key, _, value = use_cpu(device).partition("=")
    (space / "base.yaml").write_text(yaml.safe_dump(base | {key: yaml.safe_load(value)}), encoding="utf-8")
    renamed = {"component_name": "renamed", "plugins": ["renamed.py"]}
    content = {
        "base": "base.yaml",
        "arms": {"less": {}, "loss": {"component_name": "loss"}, "renamed": renamed},
        "seeds": list(range(1, seeds + 1)),
        "output_dir": str(folder / "compared"),
        "level": LEVEL,
    }
    file = space / "mine.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    last = content["seeds"][-1]
    cuts = [("less", 1, signal.SIGKILL), ("renamed", last, signal.SIGINT)]
    lines = [f"{arm}, seed {seed}: {signal.Signals(number).name}, exit code {_cut(file, folder, arm, seed, number)}"
             for arm, seed, number in cuts]  # fmt: skip
    code, seconds = _ended(_start(file))
    lines.append(f"taken up a last time: exit code {code}, {seconds:.0f} s")
    for arm, seed, _ in cuts:
        one = folder / "compared" / arm / f"seed-{seed}"
        log = one.with_suffix(".log").read_text(encoding="utf-8", errors="replace")
        starts = [line for line in log.splitlines() if line.startswith("=== dataflex-cli compare starts")]
        again = _in_one_go(one, folder / f"again-{arm}")
        lines.append(f"{arm}, seed {seed}: {len(starts)} starts, eval_loss {_loss(one)!r}; in one go {again!r}")
    table = (folder / "compared" / "comparison.md").read_text(encoding="utf-8")
    file.write_text(yaml.safe_dump(content | {"arms": {"less": {}}}, sort_keys=False), encoding="utf-8")
    lines.append(f"less alone, with the same runs: exit code {_ended(_start(file))[0]}")
    alone = json.loads((folder / "compared" / "comparison.json").read_text(encoding="utf-8"))
    return [*lines, *alone["says"], "", table]


def _start(file: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "dataflex", "compare", str(file)]
    return subprocess.Popen(command, stdout=sys.stderr, stderr=sys.stderr)


def _ended(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    began = time.perf_counter()
    return process.wait(), time.perf_counter() - began


def _cut(file: Path, folder: Path, arm: str, seed: int, number: int) -> int:
    """Sends a signal to the comparison once a run of it has a checkpoint and is not over; returns its exit code."""
    process = _start(file)
    checkpoint = folder / "compared" / arm / f"seed-{seed}" / "checkpoint-30" / "dataflex_complete.json"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(number)
    return _ended(process)[0]


def _in_one_go(one: Path, folder: Path) -> float:
    """Trains a run once more, without a stop; returns its loss."""
    command = [sys.executable, "-m", "dataflex", "train", str(one.with_suffix(".yaml")), f"output_dir={folder}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return _loss(folder)


def _loss(folder: Path) -> float:
    found: dict[str, Any] = json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
    return float(found["eval_loss"])


def lucky(folder: Path, repetitions: int, seeds: int, base_steps: int) -> list[str]:
    """Compares a strategy that does nothing with random rows, again and again; returns lines for people."""
    (folder / "renamed.py").write_text(PLUGIN, encoding="utf-8")
    load_plugin_files([str(folder / "renamed.py")])
    shared = world()
    base_model(shared, folder / "base", base_steps)
    found = []
    for number in range(repetitions):
        differences = np.array([_difference(shared, folder, number * seeds + seed) for seed in range(seeds)])
        p, interval = float(paired_p(differences)), t_interval(differences, LEVEL)
        found.append((differences, p))
        print(f"repetition {number + 1}: {differences.round(4)}, p {p:.3f}, {interval}", file=sys.stderr)
    verdicts = [("undecided" if p > LEVEL else "better" if d.mean() < 0 else "worse") for d, p in found]
    same = np.mean([abs(np.sign(d).sum()) == seeds for d, _ in found])
    every = np.concatenate([d for d, _ in found])
    return [
        f"renamed against random, {repetitions} times with {seeds} seeds each, level {LEVEL:g}: "
        + ", ".join(f"{word} {verdicts.count(word)}" for word in ("better", "worse", "undecided")),
        f"all seeds on one side, as a percentile bootstrap needs: {same:.0%}; differences {every.mean():+.4f} ± "
        f"{every.std(ddof=1):.4f}; at most {_most(repetitions)} times better is luck at this level (99 %)",
    ]


def _difference(shared: World, folder: Path, seed: int) -> float:
    rows = pool(shared, TARGET, seed)
    losses = [
        run(name, {}, rows, {TARGET: rows.target}, folder / "base", folder / f"{name}-{seed}", seed).loss
        for name in ("renamed", "random")
    ]
    return losses[0] - losses[1]


def _most(repetitions: int) -> int:
    """Returns how often a true null is called better at most, with a chance of 99 %: each time LEVEL at most."""
    chances = [math.comb(repetitions, k) * LEVEL**k * (1 - LEVEL) ** (repetitions - k) for k in range(repetitions + 1)]
    return next(k for k in range(repetitions + 1) if sum(chances[: k + 1]) >= 0.99)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"parts, separated by ';' ({'; '.join(PARTS)})")
    parser.add_argument("--seeds", type=at_least(2), default=3)
    parser.add_argument("--repetitions", type=at_least(1), default=20)
    parser.add_argument("--base-steps", type=at_least(1), default=600, help="steps that the base model of luck has")
    add_threads(parser)
    add_device(parser)
    options = parser.parse_args(argv)
    parts = chosen(parser, options.only, PARTS)
    quieten(options.threads)
    os.environ["HF_HUB_OFFLINE"] = "1"
    print(machine(options.device))
    with tempfile.TemporaryDirectory() as temporary:
        if "runs" in parts:
            print("\n".join(compared(Path(temporary), options.seeds, options.device)))
        if "luck" in parts:
            print("\n".join(lucky(Path(temporary), options.repetitions, options.seeds, options.base_steps)))


if __name__ == "__main__":
    main()
