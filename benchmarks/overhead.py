"""What dynamic training costs: wall time against the static run, and time and space of a checkpoint's plan.

    python -m benchmarks.overhead [--repeats 5] [--steps 60]

Runs of LLaMA-Factory in this one process, static and dynamic in turn with the same data, batch size and steps, so that
both see the same machine. Compared is the ``train_runtime`` that LLaMA-Factory reports: the training loop, without
imports, tokenisation and model loading. The first round warms up and is not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from dataflex.cli.main import run
from dataflex.data.mixture import MixtureManager
from dataflex.data.order import RowOrder
from dataflex.run.state import load_state, save_state
from dataflex.workspace import create

from benchmarks.common import machine

COMMON = ["do_eval=false", "plot_loss=false", "save_strategy='no'", "disable_tqdm=true", "logging_steps=1000"]
RUNS = {
    "static": ["static_sft.yaml", "max_steps={steps}"],
    "select random": ["select_random.yaml", "warmup_step={tenth}", "update_step={tenth}", "update_times=9"],
    "weight uniform": ["weight_loss.yaml", "components_cfg_file={flat}", "warmup_step=0", "train_step={steps}"],
    "weight loss": ["weight_loss.yaml", "warmup_step=0", "train_step={steps}"],
}


def runtime(name: str, folder: Path, words: dict[str, object]) -> float:
    """Returns the seconds of one run's training loop."""
    file, *overrides = [word.format(**words) for word in RUNS[name]]
    out = Path(tempfile.mkdtemp(dir=folder))
    silent = io.StringIO()
    with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        code = run(["train", str(folder / "w" / file), *COMMON, *overrides, f"output_dir={out}"])
    if code:
        raise SystemExit(f"{name} failed:\n{silent.getvalue()[-2000:]}")
    return float(json.loads((out / "train_results.json").read_text())["train_runtime"])


def compare(repeats: int, steps: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            create(folder / "w")
        flat = folder / "flat.yaml"
        flat.write_text("weighters: {loss: {params: {strategy: uniform}}}")
        words = {"steps": steps, "tenth": steps // 10, "flat": flat}
        seconds: dict[str, list[float]] = {name: [] for name in RUNS}
        for turn in range(repeats + 1):
            for name in RUNS:
                taken = runtime(name, folder, words)
                if turn:
                    seconds[name].append(taken)
        print(f"\n{'run':16} {'median s':>9} {'min':>7} {'max':>7} {'ratio of medians':>17} {'paired ratio':>13}")
        for name, values in seconds.items():
            ratio = statistics.median(values) / statistics.median(seconds["static"])
            paired = statistics.median(a / b for a, b in zip(values, seconds["static"], strict=True))
            spread = f"{min(values):7.2f} {max(values):7.2f}"
            print(f"{name:16} {statistics.median(values):9.2f} {spread} {ratio:17.3f} {paired:13.3f}")


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
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    print(machine("cpu"))
    planning()
    compare(options.repeats, options.steps)


if __name__ == "__main__":
    main()
