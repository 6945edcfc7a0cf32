"""What the runs of `dataflex-cli init` are worth: each of its files beside its own baseline, over several seeds.

    python -m benchmarks.first_run --seeds 3 --threads 1 [--device cuda]
    python -m benchmarks.first_run --only select_random select_less

A seed decides on the workspace (its tasks, its text, the model's first weights) and on the run (the order of the rows).
Every file is trained as it stands; the runs of stage pt, which evaluate nothing, on the held-out text besides. What
`select_random` and `select_less` end with is also tested on sorting tasks that no selector has looked at, as the README
of the workspace does.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from dataflex.cli.main import run
from dataflex.run.outcome import outcome
from dataflex.workspace.build import create
from dataflex.workspace.configs import RUNS

from benchmarks.common import add_device, add_threads, at_least, machine, quieten, use_cpu

QUIET = ("plot_loss=false", "disable_tqdm=true", "save_steps=1000")
ON_TEXT = ("do_eval=true", "eval_dataset=pretrain_eval", "per_device_eval_batch_size=32")
TESTED = ("select_random", "select_less")
BASELINES = {
    "select_less": "select_random",
    "select_less, tested": "select_random, tested",
    "select_loss": "static_sft",
    "weight_loss": "static_sft",
    "mix_static": "static_pt",
    "mix_random": "static_pt",
}


def trained(root: Path, name: str, seed: int, device: str, *overrides: str, file: str = "") -> float:
    """Returns the loss that a run ends with."""
    out = root / "saves" / name.replace(", ", "_")
    command = ["train", str(root / f"{file or name}.yaml"), f"seed={seed}", f"output_dir={out}", *QUIET]
    if run([*command, use_cpu(device), *overrides]) != 0:
        raise SystemExit(f"{name} of seed {seed} failed")
    return outcome(out).losses["eval_loss"]


def of_seed(root: Path, seed: int, device: str, only: Sequence[str]) -> dict[str, float]:
    """Returns run -> loss, for the files that are asked for of a workspace of that seed."""
    create(root, seed=seed)
    losses = {}
    for name in only:
        stage = RUNS[name]
        began = time.perf_counter()
        losses[name] = trained(root, name, seed, device, *(ON_TEXT if stage == "pt" else ()))
        print(f"seed {seed}  {name:<16} {losses[name]:.3f}  {time.perf_counter() - began:.1f} s", file=sys.stderr)
    for name in filter(only.__contains__, TESTED):
        model = f"adapter_name_or_path={root / 'saves' / name}"
        test = ("do_train=false", "eval_dataset=sorting_test", model)
        losses[f"{name}, tested"] = trained(root, f"{name}, tested", seed, device, *test, file="static_sft")
    return losses


def table(found: Sequence[dict[str, float]]) -> str:
    """Returns a Markdown table: the loss of each run, and its difference to the baseline of the same seed."""
    lines = ["| run | loss, each seed | median | baseline | difference, each seed | median |", "| --- " * 6 + "|"]
    for name in found[0]:
        losses = [of[name] for of in found]
        base = BASELINES.get(name) if BASELINES.get(name) in found[0] else None
        gains = [] if base is None else [of[name] - of[base] for of in found]
        cells = [name, _each(losses, ".3f"), f"{statistics.median(losses):.3f}", base or ""]
        cells += [_each(gains, "+.3f"), f"{statistics.median(gains):+.3f}" if gains else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _each(values: Sequence[float], how: str) -> str:
    return ", ".join(format(value, how) for value in values)


def main() -> None:
    """Trains, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=at_least(1), default=3)
    add_threads(parser)
    add_device(parser)
    parser.add_argument("--only", nargs="+", choices=list(RUNS), default=list(RUNS))
    options = parser.parse_args()
    quieten(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        seeds = range(1, options.seeds + 1)
        found = [of_seed(Path(folder) / str(seed), seed, options.device, options.only) for seed in seeds]
    print(machine(options.device))
    print(table(found))


if __name__ == "__main__":
    main()
