"""What a weighted step costs: steps of each weighter against the plain step, in pairs.

    python -m benchmarks.weighter_steps [--repeats 12] [--threads 1] [--device cpu] [--vocabulary 4096]

All trainers live in this process and train the same model on the same micro-batch, in turn: one plain step, then one of
each weighter, again and again, so that a slow moment of the machine hits all alike. Compared are paired ratios: a
weighter's step over the plain step of the same round. A step is forward, backward and what the weighter does, without
the optimizer, which is the same for all; so the ratios are upper bounds on those of whole steps.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.kinds import WEIGHTER
from dataflex.testing import TokenRows, pad_collate, tiny_training_args
from dataflex.train.trainer import WeightTrainer, trainer_class
from transformers import Trainer

from benchmarks.common import Took, add_device, add_threads, at_least, machine, small_model, timed

RUNS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "loss, uniform": ("loss", {"strategy": "uniform"}, {}),
    "loss": ("loss", {}, {}),
    "focal": ("focal", {}, {}),
    "trim": ("trim", {}, {}),
    "column": ("column", {"file": "{folder}/weights.npy"}, {}),
    "dataset": ("dataset", {}, {}),
    "token_column": ("token_column", {"column": "token_weights"}, {}),
    "rho_tokens": ("rho_tokens", {"reference_model": "{folder}/reference"}, {}),
    "rho_tokens, cached: false": ("rho_tokens", {"reference_model": "{folder}/reference", "cached": False}, {}),
    "adapt": ("adapt", {"refresh": 1_000_000}, {}),
    "joint_update_aware": ("joint_update_aware", {"refresh": 1_000_000}, {}),
    "balancer": ("balancer", {}, {}),
    "loss, without logits": ("loss", {}, {"weight_logits": "chunked"}),
}
PATHS = ("file", "reference_model")
OF_SOURCE = 16  # rows of each of the two sources
TIMES_10 = ("adapt", "balancer")  # their bound is 1.10, that of the others 1.03


def sources(vocabulary: int) -> dict[str, datasets.Dataset]:
    """Returns two sources of rows of 96 to 128 tokens, a third of them prompt, with a weight for each token."""
    found = {}
    for seed, name in enumerate("ab"):
        rows = TokenRows(OF_SOURCE, vocab_size=vocabulary, lengths=range(96, 129), prompt=32, seed=seed)
        weighed = [rows[i] | {"token_weights": [1.0] * len(rows[i]["input_ids"])} for i in range(OF_SOURCE)]
        found[name] = datasets.Dataset.from_list(weighed)
    return found


def prepared(trainer: Any) -> Any:
    """Returns a function that runs the trainer's training step on its first batch, and one step before it is timed."""
    args = trainer.args
    trainer.create_optimizer_and_scheduler(num_training_steps=args.max_steps)
    trainer.state.max_steps = args.max_steps
    trainer.model_wrapped = trainer.model
    loader = trainer.get_train_dataloader()
    batches, tokens = trainer.get_batch_samples(iter(loader), 1, args.device)

    def step() -> None:
        if isinstance(trainer, WeightTrainer):
            trainer.batch_rows.micro_batch = -1  # the same micro-batch of the same step, again and again
            if trainer.components.weighter.weighs_tokens:  # what it looks up for a step belongs to the step
                trainer.training_objective.begin_step(batches)
        trainer.training_step(trainer.model, dict(batches[0]), tokens)
        trainer.model.zero_grad(set_to_none=True)

    step()
    return step


def steps(vocabulary: int, device: str, rows: int, folder: Path) -> dict[str, Any]:
    """Returns name -> one step, the plain one first."""
    arguments = {"max_steps": 1000, "per_device_train_batch_size": rows, "use_cpu": device == "cpu", "seed": 1}
    data = sources(vocabulary)
    common = {"data_collator": pad_collate, "eval_dataset": TokenRows(8, vocab_size=vocabulary, lengths=96)}
    found: dict[str, Any] = {}
    shared = small_model(device, vocabulary)
    np.save(folder / "weights.npy", np.linspace(0.5, 1.5, sum(len(source) for source in data.values())))
    small_model(device, vocabulary).save_pretrained(folder / "reference")
    mixed = [row for source in data.values() for row in source.remove_columns("token_weights")]
    plain = Trainer(shared, tiny_training_args(folder, **arguments), train_dataset=mixed, **common)
    found["plain"] = prepared(plain)
    for name, (component, written, keys) in RUNS.items():
        params = {key: value.format(folder=folder) if key in PATHS else value for key, value in written.items()}
        spec = RunSpec(
            DataflexArguments(train_type="dynamic_weight", component_name=component, **keys),
            ComponentSpec(WEIGHTER, component, component, params),
        )
        weighted = trainer_class(WeightTrainer, Trainer)(
            model=small_model(device, vocabulary),
            args=tiny_training_args(folder, **arguments),
            train_dataset=data,
            dataflex=spec,
            **common,
        )
        found[name] = prepared(weighted)
    return found


def report(took: dict[str, list[Took]]) -> str:
    """Returns a Markdown table of paired ratios."""
    lines = [
        "| step | median ms | paired ratio by wall | paired ratio by CPU | bound |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, times in took.items():
        pairs = list(zip(times, took["plain"], strict=True))
        wall = statistics.median(ours.wall / plain.wall for ours, plain in pairs)
        cpu = statistics.median(ours.cpu / plain.cpu for ours, plain in pairs)
        bound = "" if name == "plain" else "1.10" if name in TIMES_10 else "1.03"
        lines.append(
            f"| {name} | {1000 * statistics.median(t.wall for t in times):.1f} | {wall:.3f} | {cpu:.3f} | {bound} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=at_least(1), default=12)
    add_threads(parser, default=1)
    add_device(parser)
    parser.add_argument("--vocabulary", type=at_least(8), default=4096)
    parser.add_argument("--rows", type=at_least(1), default=8, help=f"rows of a step, at most {2 * OF_SOURCE}")
    options = parser.parse_args()
    if options.rows > 2 * OF_SOURCE:
        parser.error(f"argument --rows: found {options.rows}, allowed: at most {2 * OF_SOURCE}, all rows there are")
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        runs = steps(options.vocabulary, options.device, options.rows, Path(folder))
        took: dict[str, list[Took]] = {name: [] for name in runs}
        for number in range(options.repeats):
            for name, run in runs.items():
                took[name].append(timed(run, options.device))
            print(f"round {number + 1}/{options.repeats}", file=sys.stderr)
    print(f"{machine(options.device)}, vocabulary {options.vocabulary}, {options.rows} rows per step\n")
    print(report(took))


if __name__ == "__main__":
    main()
