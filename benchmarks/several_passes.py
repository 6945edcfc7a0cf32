"""Several passes over few rows: what leaving learnt rows out is worth, and weights by likeness to a target.

    python -m benchmarks.several_passes --seeds 5
    python -m benchmarks.several_passes --only "random; infobatch"

The rows, the model and the target are those of :mod:`benchmarks.selection_quality`; here a run goes over 320 of the
rows about four times, so that training has seen the loss of each. Selectors are compared with ``random``, weighters
with ``plain``, of the same seed, steps and batch.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.kinds import SELECTOR, WEIGHTER, Kind
from dataflex.testing import pad_collate, tiny_training_args
from dataflex.train.trainer import DynamicTrainer, trainer_class
from transformers import PrinterCallback, Qwen2ForCausalLM, Trainer

from benchmarks.common import add_device, add_threads, at_least, chosen, machine, quieten
from benchmarks.quality_data import Pool, base_model, pool, world
from benchmarks.selection_quality import spread, test_loss

BATCH, STEPS, UPDATE, ROWS, RATE = 8, 160, 20, 320, 1e-3
"""Rows of a step, steps, steps between two updates (half a pass), rows, and the constant learning rate."""

ARMS: dict[str, tuple[Kind, str, dict[str, Any]]] = {
    "random": (SELECTOR, "random", {}),
    "infobatch": (SELECTOR, "infobatch", {}),
    "infobatch, prune 0.8": (SELECTOR, "infobatch", {"prune": 0.8}),
    "loss, low": (SELECTOR, "loss", {"focus": "low"}),
    "plain": (WEIGHTER, "loss", {"strategy": "uniform"}),
    "adapt": (WEIGHTER, "adapt", {"normalise": True, "temperature": 0.1}),
    "joint_update_aware": (WEIGHTER, "joint_update_aware", {}),
    "joint_update_aware, align": (WEIGHTER, "joint_update_aware", {"objective": "align"}),
}
BASELINE = {SELECTOR: "random", WEIGHTER: "plain"}


def run(arm: str, rows: Pool, family: str, base: Path, folder: Path, seed: int) -> tuple[float, float, float]:
    """Returns the held-out loss of the target family, that of all families, and how often the rarest row was seen."""
    kind, name, params = ARMS[arm]
    selects = kind is SELECTOR
    updates = {"warmup_step": UPDATE, "update_step": UPDATE, "update_times": STEPS // UPDATE - 1}
    train_type = "dynamic_select" if selects else "dynamic_weight"
    arguments = DataflexArguments(train_type=train_type, component_name=name, **(updates if selects else {}))
    trainer = trainer_class(DynamicTrainer, Trainer)(
        model=Qwen2ForCausalLM.from_pretrained(base),
        args=tiny_training_args(
            folder,
            max_steps=-1 if selects else STEPS,
            per_device_train_batch_size=BATCH,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            logging_steps=1000,
            seed=seed,
        ),
        train_dataset=rows.rows[:ROWS],
        eval_dataset=rows.target,
        data_collator=pad_collate,
        dataflex=RunSpec(arguments, ComponentSpec(kind, name, name, params)),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    assert trainer.state.global_step == STEPS
    losses = {name: test_loss(trainer.model, held_out) for name, held_out in rows.test.items()}
    files = sorted((folder / "dataflex_selections").glob("step_*.npz"))
    taken = np.concatenate([np.load(file)["indices"] for file in files]) if files else np.arange(0)
    fewest = np.bincount(taken, minlength=ROWS).min() if len(taken) else 0
    return losses[family], float(np.mean(list(losses.values()))), float(fewest)


def table(found: Sequence[Mapping[str, tuple[float, float, float]]]) -> str:
    """Returns a Markdown table; losses are differences to the baseline of the same seed."""
    lines = [
        "| arm | target loss - baseline's | lower in | loss of all families - baseline's | lower in "
        "| times the rarest row was seen |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for arm in found[0]:
        first = BASELINE[ARMS[arm][0]]
        own = np.array([seed[arm] for seed in found])
        cells = [arm]
        if arm == first:
            target, every = (f"({spread(own[:, column].tolist(), 3)})" for column in (0, 1))
            cells += [target, "-", every, "-"]
        else:
            less = own - np.array([seed[first] for seed in found])
            for column in (0, 1):
                values = less[:, column].tolist()
                cells += [spread(values, 3, "+"), f"{sum(value < 0 for value in values)} of {len(values)}"]
        cells.append(spread(own[:, 2].tolist(), 1) if ARMS[arm][0] is SELECTOR else "-")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=at_least(1), default=5)
    parser.add_argument("--target", default="copy")
    parser.add_argument("--only", help=f"arms, separated by ';' ({'; '.join(ARMS)}); baselines are always among them")
    parser.add_argument("--base-steps", type=at_least(1), default=3000, help="steps that the base model is trained for")
    parser.add_argument("--base", type=Path, help="folder to keep the base model in, or to take it from")
    add_threads(parser)
    add_device(parser)
    options = parser.parse_args()
    wanted = chosen(parser, options.only, ARMS)
    names = [name for name in ARMS if name in {*wanted, *BASELINE.values()}]
    quieten(options.threads)
    shared = world()
    with tempfile.TemporaryDirectory() as temporary:
        base = options.base or Path(temporary, "base")
        if not (base / "config.json").exists():
            base_model(shared, base, options.base_steps)
        found = []
        for seed in range(options.seeds):
            rows = pool(shared, options.target, seed)
            of_seed = {}
            for number, name in enumerate(names):
                began = time.perf_counter()
                of_seed[name] = run(name, rows, options.target, base, Path(temporary, f"{seed}-{number}"), seed)
                print(f"seed {seed}  {name:<26} {time.perf_counter() - began:5.1f} s  {of_seed[name]}", file=sys.stderr)
            found.append(of_seed)
    print(
        f"{machine(options.device)}; target family: {options.target}; {options.seeds} seeds, mean ± standard deviation"
    )
    print(f"{ROWS} rows, {STEPS} steps of {BATCH}, an update every {UPDATE} steps\n")
    print(table(found))


if __name__ == "__main__":
    main()
