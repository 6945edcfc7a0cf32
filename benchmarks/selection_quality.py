"""What selectors find where the right answer is known, and what training on it is worth, against random rows.

    python -m benchmarks.selection_quality --seeds 5
    python -m benchmarks.selection_quality --target sort --only "less, adam; near"

Ten families of tasks, three answers of ten wrong; one family is the target, and a few of its rows are the evaluation
set. Every run starts from the same small model, which has begun to learn all families from other rows, and goes through
the real trainer: a warm-up on random rows, then some updates. Counted are, among the rows of all updates, those of the
target family and those whose answer is right; the finished model is measured on held-out rows. The rows that are
selected from, the order of the warm-up and what is drawn differ by seed; a method is compared with ``random`` of the
same seed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.kinds import SELECTOR
from dataflex.scoring import per_sample_losses
from dataflex.testing import pad_collate, tiny_training_args
from dataflex.train.trainer import SelectTrainer, trainer_class
from dataflex.workspace.tasks import FAMILIES
from transformers import PrinterCallback, Qwen2ForCausalLM, Trainer

from benchmarks.common import add_device, add_threads, at_least, chosen, machine, quieten
from benchmarks.quality_data import Pool, World, base_model, pool, train, world

BATCH, WARMUP, SEGMENT, UPDATES, RATE = 8, 20, 8, 3, 1e-3
"""Rows of a step, steps of the warm-up, steps of an update (64 rows), updates, and the constant learning rate."""

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", {}),
    "less, adam": ("less", {"gradient_type": "adam"}),
    "less, sgd": ("less", {"gradient_type": "sgd"}),
    "cluster_less, even": ("cluster_less", {"clusters": 60}),
    "cluster_less, ucb": ("cluster_less", {"clusters": 60, "budget": "ucb"}),
    "zeroth": ("zeroth", {"directions": 8, "candidates": 400}),
    "near": ("near", {}),
    "coincide": ("coincide", {}),
    "coincide, T 0.1": ("coincide", {"temperature": 0.1}),
    "coincide, opendcai": ("coincide", {"variant": "opendcai"}),
    "tsds": ("tsds", {"replacement": False}),
    "loss, low": ("loss", {"focus": "low"}),
    "loss, high": ("loss", {"focus": "high"}),
    "delta_loss": ("delta_loss", {}),
    "rho_loss": ("rho_loss", {}),
}


@dataclass(frozen=True)
class Outcome:
    """What one run found and learnt.

    Attributes:
        target: Share of the selected rows that are of the target family.
        target_clean: Share that are of the target family and right.
        clean: Share that are right.
        distinct: Different rows among those of all updates, as a share.
        target_loss: Mean loss of the trained model on held-out rows of the target family.
        loss: The same over all families.
    """

    target: float
    target_clean: float
    clean: float
    distinct: float
    target_loss: float
    loss: float


def run(name: str, params: Mapping[str, Any], rows: Pool, family: str, base: Path, folder: Path, seed: int) -> Outcome:
    """Trains the base model with a selector and returns what came of it."""
    arguments = DataflexArguments(
        train_type="dynamic_select",
        component_name=name,
        warmup_step=WARMUP,
        update_step=SEGMENT,
        update_times=UPDATES,
    )
    trainer = trainer_class(SelectTrainer, Trainer)(
        model=Qwen2ForCausalLM.from_pretrained(base),
        args=tiny_training_args(
            folder,
            max_steps=-1,
            per_device_train_batch_size=BATCH,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            logging_steps=1000,
            seed=seed,
        ),
        train_dataset=rows.rows,
        eval_dataset=rows.target,
        data_collator=pad_collate,
        dataflex=RunSpec(arguments, ComponentSpec(SELECTOR, name, name, params)),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    files = sorted((folder / "dataflex_selections").glob("step_*.npz"))[1:]  # the first is the warm-up
    assert len(files) == UPDATES, f"{len(files)} selections in {folder}"
    chosen = np.concatenate([np.load(file)["indices"] for file in files])
    losses = {name: test_loss(trainer.model, held_out) for name, held_out in rows.test.items()}
    return Outcome(
        target=float(rows.in_target[chosen].mean()),
        target_clean=float((rows.in_target & rows.clean)[chosen].mean()),
        clean=float(rows.clean[chosen].mean()),
        distinct=len(np.unique(chosen)) / len(chosen),
        target_loss=losses[family],
        loss=float(np.mean(list(losses.values()))),
    )


def test_loss(model: torch.nn.Module, rows: Sequence[Any]) -> float:
    """Returns the mean over the rows of their mean token losses."""
    return float(per_sample_losses(model, rows, collator=pad_collate, progress=False).mean())


def irreducible(rows: Pool, base: Path, folder: Path) -> Path:
    """Trains the base model on held-out rows and writes its losses on the rows to select from, for rho_loss."""
    folder.mkdir()
    model = Qwen2ForCausalLM.from_pretrained(base)
    train(model, rows.reference, folder, 150, batch=16, rate=RATE)
    file = folder / "irreducible.npy"
    np.save(file, per_sample_losses(model, rows.rows, collator=pad_collate, progress=False))
    return file


def one_seed(
    names: Sequence[str], family: str, shared: World, base: Path, folder: Path, seed: int
) -> dict[str, Outcome]:
    """Returns method -> outcome, all on the same rows."""
    rows = pool(shared, family, seed)
    found = {}
    for number, name in enumerate(names):
        component, params = METHODS[name]
        if component == "rho_loss":
            params = {**params, "file": str(irreducible(rows, base, folder / "reference"))}
        began = time.perf_counter()
        found[name] = run(component, params, rows, family, base, folder / str(number), seed)
        print(f"seed {seed}  {name:<20} {time.perf_counter() - began:6.1f} s  {found[name]}", file=sys.stderr)
    return found


def spread(values: Sequence[float], digits: int = 2, sign: str = "") -> str:
    """Returns mean +- standard deviation."""
    return f"{np.mean(values):{sign}.{digits}f} ± {np.std(values, ddof=1) if len(values) > 1 else 0.0:.{digits}f}"


def table(outcomes: Sequence[Mapping[str, Outcome]]) -> str:
    """Returns a Markdown table with a row for each method; losses are differences to ``random`` of the same seed."""
    lines = [
        "| method | target family | target family and right | right | different rows "
        "| target loss - random's | seeds it is lower in | loss of all families - random's |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in outcomes[0]:
        found = [seed[name] for seed in outcomes]
        target = [seed[name].target_loss - seed["random"].target_loss for seed in outcomes]
        every = [seed[name].loss - seed["random"].loss for seed in outcomes]
        cells = [
            name,
            spread([o.target for o in found]),
            spread([o.target_clean for o in found]),
            spread([o.clean for o in found]),
            spread([o.distinct for o in found]),
            spread(target, 3, "+"),
            f"{sum(d < 0 for d in target)} of {len(target)}",
            spread(every, 3, "+"),
        ]
        if name == "random":
            cells[5:] = [
                f"({spread([o.target_loss for o in found], 3)})", "-", f"({spread([o.loss for o in found], 3)})"
            ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=at_least(1), default=5)
    parser.add_argument("--target", default="copy", choices=list(FAMILIES))
    parser.add_argument("--only", help=f"methods, separated by ';' ({'; '.join(METHODS)}); random is always among them")
    parser.add_argument("--base-steps", type=at_least(1), default=3000, help="steps that the base model is trained for")
    parser.add_argument("--base", type=Path, help="folder to keep the base model in, or to take it from")
    add_threads(parser)
    add_device(parser)
    options = parser.parse_args()
    names = list(dict.fromkeys(["random", *chosen(parser, options.only, METHODS)]))
    quieten(options.threads)

    shared = world()
    with tempfile.TemporaryDirectory() as temporary:
        base = options.base or Path(temporary, "base")
        if not (base / "config.json").exists():
            base_model(shared, base, options.base_steps)
        outcomes = [
            one_seed(names, options.target, shared, base, Path(temporary, str(seed)), seed)
            for seed in range(options.seeds)
        ]
    rows = pool(shared, options.target, 0)
    print(
        f"{machine(options.device)}; target family: {options.target}; {options.seeds} seeds, mean ± standard deviation"
    )
    print(
        f"{len(rows.rows)} rows, {rows.in_target.mean():.0%} of them of the target family, {rows.clean.mean():.0%} "
        f"right; {UPDATES} updates of {SEGMENT * BATCH} rows each, {len(rows.target)} target rows\n"
    )
    print(table(outcomes))


if __name__ == "__main__":
    main()
