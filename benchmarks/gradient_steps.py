"""What it costs to measure the gradients of the sources in a step: against the step of a mixer that does not.

    python -m benchmarks.gradient_steps [--repeats 12] [--threads 1] [--device cpu] [--vocabulary 4096]

As :mod:`benchmarks.weighter_steps` does it: all trainers live in this process and train the same model on the same
micro-batch, in turn, and compared are paired ratios of one round. A step is forward, backward and what is measured,
without the optimizer; so the ratios are upper bounds on those of whole steps, and on those of runs that measure every
N-th step alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.kinds import MIXER
from dataflex.testing import TokenRows, pad_collate, tiny_training_args
from dataflex.train.trainer import MixTrainer, trainer_class
from transformers import Trainer

from benchmarks.common import Took, add_device, add_threads, at_least, machine, quieten, small_model, timed
from benchmarks.weighter_steps import OF_SOURCE, sources

PLAIN = "odm, losses alone"
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    PLAIN: ("odm", {}),
    "odm, entropy": ("odm", {"reward": "entropy"}),
    "odm, gradient_norm": ("odm", {"reward": "gradient_norm"}),
    "doge": ("doge", {}),
    "pike": ("pike", {}),
    "doge, factor_dim 64": ("doge", {"factor_dim": 64}),
    "doge, layers all": ("doge", {"layers": "all"}),
    "doge, whole gradients": ("doge", {"proj_dim": None, "factor_dim": None}),
}


def prepared(trainer: Any) -> Any:
    """Returns a function that runs the trainer's training step on its first batch and measures it, run once already."""
    args, objective = trainer.args, trainer.training_objective
    trainer.create_optimizer_and_scheduler(num_training_steps=args.max_steps)
    trainer.state.max_steps = args.max_steps
    trainer.model_wrapped = trainer.model
    batches, tokens = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, args.device)

    def step() -> None:
        objective.begin_step(batches)
        trainer.batch_rows.micro_batch = -1  # the same micro-batch of the same step, again and again
        trainer.training_step(trainer.model, dict(batches[0]), tokens)
        objective.step_done()
        trainer.model.zero_grad(set_to_none=True)

    step()
    return step


def steps(vocabulary: int, device: str, rows: int, folder: Path) -> dict[str, Any]:
    """Returns name -> one step, the plain one first."""
    arguments = {"max_steps": 1000, "per_device_train_batch_size": rows, "use_cpu": device == "cpu", "seed": 1}
    found: dict[str, Any] = {}
    for name, (component, params) in RUNS.items():
        spec = RunSpec(
            DataflexArguments(
                train_type="dynamic_mix", component_name=component, warmup_step=500, update_step=500, update_times=1
            ),
            ComponentSpec(MIXER, component, component, params),
        )
        trainer = trainer_class(MixTrainer, Trainer)(
            model=small_model(device, vocabulary),
            args=tiny_training_args(folder / component, **arguments),
            train_dataset=sources(vocabulary),
            data_collator=pad_collate,
            eval_dataset=TokenRows(8, vocab_size=vocabulary, lengths=96),
            dataflex=spec,
        )
        found[name] = prepared(trainer)
    return found


def report(took: dict[str, list[Took]]) -> str:
    """Returns a Markdown table of paired ratios."""
    lines = ["| step | median ms | paired ratio by wall | paired ratio by CPU |", "| --- | --- | --- | --- |"]
    for name, times in took.items():
        pairs = list(zip(times, took[PLAIN], strict=True))
        wall = statistics.median(ours.wall / plain.wall for ours, plain in pairs)
        cpu = statistics.median(ours.cpu / plain.cpu for ours, plain in pairs)
        lines.append(f"| {name} | {1000 * statistics.median(t.wall for t in times):.1f} | {wall:.3f} | {cpu:.3f} |")
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
    quieten(options.threads)
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
