"""The page of a long run: time, memory and size of ``dataflex-cli report``.

    python -m benchmarks.report [--rows 1000000] [--updates 1000] [--sources 30] [--segment 10240] [--folder DIR]

A folder as a run leaves it is made up: a mixed run with a selector that gives scores, `--updates` updates, each of
which plans `--segment` rows, texts of 5,000 rows, 64 explained rows at every tenth update, losses by source, and losses
at every fifth step. Then the command is run in a process of its own, whose wall time, processor time and peak resident
memory are measured, imports and all. A page above 5,000,000 bytes, 15 s or 2 GB end the benchmark with exit code 1.
Linux only: the peak is read from /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import at_least

BATCH = 64
# ru_maxrss of a child begins with what its parent has: the child reads its own peak
_COMMAND = """
import sys
from dataflex.cli.main import run
code = run(sys.argv[1:])
print(open("/proc/self/status").read())
sys.exit(code)
"""
BYTES, SECONDS, MEMORY = 5_000_000, 15.0, 2e9


def main() -> int:
    """Makes the folder, runs the command, prints a line. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=at_least(1000), default=1_000_000)
    parser.add_argument("--updates", type=at_least(1), default=1000)
    parser.add_argument("--sources", type=at_least(2), default=30)
    parser.add_argument("--segment", type=at_least(64), default=10_240, help="rows that an update plans")
    parser.add_argument("--folder", help="where to make the folder; a temporary one where it is not given")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary) / "run"
        made_up(folder, args.rows, args.updates, args.sources, args.segment)
        seconds, processor, peak, size = measured(folder)
    print("| rows | updates | sources | rows of an update | s | processor, s | peak, MB | page, MB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    shape = f"{args.rows:,} | {args.updates:,} | {args.sources} | {args.segment:,}"
    print(f"| {shape} | {seconds:.1f} | {processor:.1f} | {peak / 1e6:,.0f} | {size / 1e6:.2f} |")
    return int(size > BYTES or seconds > SECONDS or peak > MEMORY)


def measured(folder: Path) -> tuple[float, float, float, int]:
    """Returns the seconds, those of the processor, the peak of resident bytes and the bytes of the page."""
    page = folder.parent / "page.html"
    command = [sys.executable, "-c", _COMMAND, "report", str(folder), "--out", str(page)]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    said = process.stdout.read() if process.stdout is not None else ""
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"dataflex-cli report ended with {os.waitstatus_to_exitcode(status)}")
    peak = 1024 * float(said.rpartition("VmHWM:")[2].split()[0])
    return seconds, usage.ru_utime + usage.ru_stime, peak, page.stat().st_size


def made_up(folder: Path, rows: int, updates: int, sources: int, segment: int) -> None:
    """Writes the folder of a run that mixes and selects."""
    (folder / "dataflex_selections").mkdir(parents=True)
    random = np.random.default_rng(0)
    names = [f"source_{place}" for place in range(sources)]
    size = rows // sources
    steps = segment // BATCH
    worth = random.normal(size=rows)
    with open(folder / "dataflex_trace.jsonl", "w") as trace, open(folder / "dataflex_segments.jsonl", "w") as segments:
        for update in range(updates):
            step = (update + 1) * steps
            shares = random.dirichlet(np.full(sources, 5.0))
            counts = random.multinomial(segment, shares)
            chosen = np.concatenate([place * size + random.integers(size, size=n) for place, n in enumerate(counts)])
            chosen = chosen[random.permutation(len(chosen))]
            scores = worth[chosen] + random.normal(size=len(chosen))
            file = f"step_{step:08d}.npz"
            np.savez(folder / "dataflex_selections" / file, indices=chosen, scores=scores)
            common = {"step": step, "update": update, "num_samples": segment, "distinct": segment, "seconds": 1.5}
            proportions = dict(zip(names, shares.tolist(), strict=True))
            by_source = {name: {"loss": float(3 - update / updates), "tokens": 999} for name in names}
            lines = (
                common | {"kind": "mix", "component": "mixer", "proportions": proportions},
                common | {"kind": "select", "component": "selector", "scores": _summary(scores),
                          "candidates": _summary(worth[:20000])},
                {"step": step, "kind": "loss", "steps": steps, "sources": by_source},
            )  # fmt: skip
            trace.writelines(json.dumps(line) + "\n" for line in lines)
            realised = {name: {"rows": int(n), "tokens": int(n) * 100} for name, n in zip(names, counts, strict=True)}
            line = {"step": step, "file": file, "steps": steps, "rows": segment, "update": update, "sources": realised}
            segments.write(json.dumps(line) + "\n")
    np.savez(folder / "dataflex_last_scores.npz", scores=worth.astype(np.float32), step=updates * steps)
    _texts(folder, random, rows, names, updates, steps)
    total = (updates + 1) * steps
    with open(folder / "dataflex_metrics.jsonl", "w") as metrics:
        for step in range(0, total, 5):
            metrics.write(json.dumps({"step": step, "loss": 3 - step / total, "eval_loss": 3 - step / total}) + "\n")
    about = {
        "version": 1, "run": "0" * 16, "does": "made up", "train_type": "dynamic", "status": "finished", "step": total,
        "total_steps": total, "updates": updates, "batch": BATCH, "rows": size * sources,
        "sources": [{"name": name, "first": place * size, "rows": size} for place, name in enumerate(names)],
        "parts": [{"kind": "mix", "component": "mixer"}, {"kind": "select", "component": "selector"}],
        "seconds": {"training": 9e4, "deciding": 1.5 * updates},
    }  # fmt: skip
    (folder / "dataflex_run.json").write_text(json.dumps(about))


def _summary(scores: np.ndarray) -> dict[str, object]:
    counts, edges = np.histogram(scores, bins=20)
    parts = dict(
        zip(("min", "q1", "median", "q3", "max"), np.percentile(scores, (0, 25, 50, 75, 100)).tolist(), strict=True)
    )
    return parts | {"mean": float(scores.mean()), "histogram": {"edges": edges.tolist(), "counts": counts.tolist()}}


def _texts(folder: Path, random: np.random.Generator, rows: int, names: list[str], updates: int, steps: int) -> None:
    size = rows // len(names)
    with open(folder / "dataflex_rows.jsonl", "w") as texts, open(folder / "dataflex_why.jsonl", "w") as why:
        for row in random.choice(size * len(names), 5000, replace=False).tolist():
            words = " ".join(map(str, random.integers(10**6, size=280)))[:2000]
            line = {"row": row, "source": names[row // size], "text": words, "cut": True, "tokens": 500}
            texts.write(json.dumps(line) + "\n")
        for target in range(256):
            texts.write(
                json.dumps({"set": "eval", "target": target, "text": f"target {target} " * 20, "cut": False}) + "\n"
            )
        for update in range(0, updates, 10):
            for row in random.integers(size * len(names), size=64).tolist():
                targets = [{"set": "eval", "target": int(t), "share": 0.2} for t in random.integers(256, size=3)]
                line = {"step": update * steps, "update": update, "component": "selector", "row": row, "score": 1.0}
                why.write(json.dumps(line | {"seconds": 2.0, "targets": targets}) + "\n")


if __name__ == "__main__":
    sys.exit(main())
