"""What dynamic training costs: time against the static run, and time and space of a checkpoint's plan.

    python -m benchmarks.overhead [--repeats 5] [--steps 60] [--batch 32] [--device cuda]

Runs of LLaMA-Factory in this one process, static and dynamic in turn with the same data, batch size and steps, so that
both see the same machine. Compared is the training loop, without imports, tokenisation and model loading, by wall time
and by the CPU time of the process, which other work on the machine disturbs less. The first round warms up and is not
counted. An update takes place every tenth of the run, so all runs have whole tenths of the steps that were asked for.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers
from dataflex.cli.main import run
from dataflex.core.permutation import RowOrder
from dataflex.planning.mixture import MixtureManager
from dataflex.run.state import load_state, save_state
from dataflex.workspace.build import create
from tqdm import tqdm

from benchmarks.common import add_device, at_least, chosen, machine, use_cpu

BATCH = "per_device_train_batch_size={batch}"
COMMON = ["do_eval=false", "plot_loss=false", "save_strategy='no'", "disable_tqdm=true", "logging_steps=1000"]
SCHEDULE = ["max_steps=-1", "warmup_step={tenth}", "update_step={tenth}", "update_times=9"]
UPDATES = ["component_name=random", *SCHEDULE]
WEIGHTED = ["train_type=dynamic_weight", "component_name=loss"]
NEUTRAL = [
    "selector=random", "mixer=static", "mixture_sample_rule=stratified", "order.component=shuffle",
    "order.over=stretch", "weighter.component=loss", "weighter.params.strategy=uniform", "weighter.from=0",
]  # fmt: skip
"""Four parts that change nothing but which rows are drawn."""
RUNS = {
    "static": [],
    "select random": ["train_type=dynamic_select", *UPDATES],
    "mix random": ["train_type=dynamic_mix", "mixture_sample_rule=uniform", *UPDATES],
    "weight uniform": [*WEIGHTED, "components_cfg_file={flat}"],
    "weight loss": WEIGHTED,
    "four neutral parts": ["train_type=dynamic", *SCHEDULE, *NEUTRAL],
}
"""What is added to the static run. It pre-trains on rows of equal length, so that every batch is as much work."""


def loop_seconds(name: str, folder: Path, words: dict[str, object]) -> tuple[float, float]:
    """Returns the wall and the CPU seconds of one run's training loop."""
    taken: list[tuple[float, float]] = []
    loop = transformers.Trainer._inner_training_loop

    def timed(*args: object, **kwargs: object) -> object:
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            return loop(*args, **kwargs)
        finally:
            if words["device"] == "cuda":
                torch.cuda.synchronize()
            taken.append((time.perf_counter() - wall, time.process_time() - cpu))

    overrides = [word.format(**words) for word in ["max_steps={steps}", BATCH, *RUNS[name]]]
    where = use_cpu(str(words["device"]))
    out = Path(tempfile.mkdtemp(dir=folder))
    silent = io.StringIO()
    watched = patch.object(transformers.Trainer, "_inner_training_loop", timed)
    with watched, contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        code = run(["train", str(folder / "w" / "static_pt.yaml"), *COMMON, *overrides, where, f"output_dir={out}"])
    if code:
        raise SystemExit(f"{name} failed:\n{silent.getvalue()[-2000:]}")
    (seconds,) = taken
    return seconds


def compare(names: list[str], repeats: int, steps: int, batch: int, device: str) -> None:
    """Prints a table of the runs, each beside the static one, which is the first of them."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            create(folder / "w")
        flat = folder / "flat.yaml"
        flat.write_text("weighters: {loss: {params: {strategy: uniform}}}")
        tenth = steps // 10
        words = {"steps": 10 * tenth, "tenth": tenth, "flat": flat, "batch": batch, "device": device}
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for turn in tqdm(range(repeats + 1), desc="rounds"):
            for name in names:
                taken = loop_seconds(name, folder, words)
                if turn:
                    seconds[name].append(taken)
    print("\n| run | median s | min-max s | paired ratio | median CPU s | paired ratio by CPU |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, values in seconds.items():
        walls, cpus = zip(*values, strict=True)
        ratios = [np.divide(taken, static) for taken, static in zip(values, seconds["static"], strict=True)]
        wall, cpu = np.median(ratios, axis=0)
        spread = f"{min(walls):.2f}-{max(walls):.2f}"
        medians = statistics.median(walls), statistics.median(cpus)
        print(f"| {name} | {medians[0]:.2f} | {spread} | {wall:.3f} | {medians[1]:.2f} | {cpu:.3f} |")


def planning() -> None:
    """Prints what planning and checkpointing a segment of 100,000 rows costs, whatever the size of the dataset."""
    count = 100_000
    print(f"\n{'rows':>12} {'order ms':>9} {'mixture ms':>11} {'save ms':>8} {'load ms':>8} {'MB':>6}")
    for rows in (10**6, 10**8):
        manager = MixtureManager(["large", "small"], [rows, 10], [0.9, 0.1], seed=1)
        order = RowOrder(rows, 1)
        samples: dict[str, list[float]] = {"order": [], "mixture": [], "save": [], "load": []}
        with tempfile.TemporaryDirectory() as folder:
            for turn in range(7):
                marks = [time.perf_counter()]
                order.take(rows // 2 + turn * count, count)
                marks.append(time.perf_counter())
                planned = manager.plan(count)
                marks.append(time.perf_counter())
                save_state(folder, {"segment_rows": planned, "mixture": manager.state_dict()})
                marks.append(time.perf_counter())
                load_state(folder)
                marks.append(time.perf_counter())
                for name, part in zip(samples, np.diff(marks), strict=True):
                    samples[name].append(part * 1000)
            size = sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e6
        order_ms, mixture_ms, save_ms, load_ms = (statistics.median(values) for values in samples.values())
        print(f"{rows:12,} {order_ms:9.1f} {mixture_ms:11.1f} {save_ms:8.1f} {load_ms:8.1f} {size:6.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=at_least(1), default=5)
    parser.add_argument("--steps", type=at_least(10), default=60)
    parser.add_argument("--batch", type=at_least(1), default=32)
    parser.add_argument("--only", help=f"runs, separated by ';' ({'; '.join(RUNS)}); static is always among them")
    add_device(parser)
    options = parser.parse_args()
    names = list(dict.fromkeys(["static", *chosen(parser, options.only, RUNS)]))
    print(machine(options.device))
    if options.only is None:
        planning()
    compare(names, options.repeats, options.steps, options.batch, options.device)


if __name__ == "__main__":
    main()
