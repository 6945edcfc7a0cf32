"""What selectors find where the right answer is known, and what training on it is worth, against random rows.

    python -m benchmarks.selection_quality --seeds 5
    python -m benchmarks.selection_quality --target sort --only "less, adam; near"
    python -m benchmarks.selection_quality --target "copy; sort; reverse" --only "icons; greats"

Ten families of tasks, three answers of ten wrong; one family is the target, and a few of its rows are the evaluation
set. Of several target families each has an evaluation set of its own, and the target loss is the mean of theirs. Every
run starts from the same small model, which has begun to learn all families from other rows, and goes through the real
trainer: a warm-up on random rows, then some updates. Counted are, among the rows of all updates, those of the target
family and those whose answer is right; the finished model is measured on held-out rows. The rows that are selected
from, the order of the warm-up and what is drawn differ by seed; a method is compared with ``random`` of the same seed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from numpy.typing import NDArray
from transformers import PrinterCallback, Qwen2ForCausalLM, Trainer

from benchmarks.common import add_device, add_threads, at_least, chosen, machine, quieten
from benchmarks.quality_data import Pool, World, base_model, pool, train, world

BATCH, WARMUP, SEGMENT, UPDATES, RATE = 8, 20, 8, 3, 1e-3
"""Rows of a step, steps of the warm-up, steps of an update (64 rows), updates, and the constant learning rate."""

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", {}),
    "less, adam": ("less", {"gradient_type": "adam"}),
    "less, sgd": ("less", {"gradient_type": "sgd"}),
    "less, candidates": ("less", {"candidates": 300}),
    "less, quota": ("less", {"candidates": 300, "mode": "quota"}),
    "icons": ("icons", {"candidates": 300}),
    "icons, a fifth": ("icons", {"candidates": 300, "vote_share": 0.2}),
    "icons, mean": ("icons", {"candidates": 300, "combine": "mean"}),
    "greats": ("greats", {}),
    "greats, ratio 8": ("greats", {"ratio": 8}),
    "greats, 2 target rows": ("greats", {"eval_rows": 2}),
    "greats, normalised": ("greats", {"normalize": True}),
    "greats, normalised, ratio 8": ("greats", {"normalize": True, "ratio": 8}),
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
    "infobatch": ("infobatch", {}),
    "ifd": ("ifd", {}),
    "ifd, perplexities": ("ifd", {"ratio": "perplexity"}),
    "perplexity, low": ("perplexity", {"band": "low"}),
    "perplexity, medium": ("perplexity", {"band": "medium"}),
    "perplexity, high": ("perplexity", {"band": "high"}),
    "dsir": ("dsir", {}),
    "dsir, smoothing 1": ("dsir", {"smoothing": 1.0}),
    "dsir, smoothing 1, per_ngram, topk": ("dsir", {"smoothing": 1.0, "per_ngram": True, "mode": "topk"}),
    "dsir, tokens, smoothing 1": ("dsir", {"features": "tokens", "smoothing": 1.0}),
}
LONGER = {f"random, {times} times the steps": times for times in (2, 3, 5, 10)}
"""Random rows for as many times the steps behind the warm-up: what a method is worth at equal compute."""
METHODS |= dict.fromkeys(LONGER, ("random", {}))
READ_TEXT = ("dsir",)
"""Components that read the text of rows; runs with others are given no tokenizer."""


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
        seconds: CPU time of the run, from the construction of its trainer to its end.
    """

    target: float
    target_clean: float
    clean: float
    distinct: float
    target_loss: float
    loss: float
    seconds: float


def run(
    name: str,
    params: Mapping[str, Any],
    rows: Pool,
    targets: Mapping[str, Any],
    base: Path,
    folder: Path,
    seed: int,
    tokenizer: Any = None,
    times: int = 1,
) -> Outcome:
    """Trains the base model with a selector that aims at ``targets``, family by family; returns what came of it."""
    began = time.process_time()
    chosen, model = trained(name, params, rows, base, folder, seed, tokenizer, targets, times)
    seconds = time.process_time() - began
    losses = {name: test_loss(model, held_out) for name, held_out in rows.test.items()}
    return Outcome(
        target=float(rows.in_target[chosen].mean()),
        target_clean=float((rows.in_target & rows.clean)[chosen].mean()),
        clean=float(rows.clean[chosen].mean()),
        distinct=len(np.unique(chosen)) / len(chosen),
        target_loss=float(np.mean([losses[family] for family in targets])),
        loss=float(np.mean(list(losses.values()))),
        seconds=seconds,
    )


def trained(
    name: str,
    params: Mapping[str, Any],
    rows: Pool,
    base: Path,
    folder: Path,
    seed: int,
    tokenizer: Any = None,
    targets: Mapping[str, Any] | None = None,
    times: int = 1,
) -> tuple[NDArray[np.int64], torch.nn.Module]:
    """Trains the base model with a selector and returns the rows of all updates, and the model.

    ``targets`` are the evaluation sets, None for the one of the pool; each update has ``times`` as many steps.
    """
    targets = {"target": rows.target} if targets is None else targets
    arguments = DataflexArguments(
        train_type="dynamic_select",
        component_name=name,
        warmup_step=WARMUP,
        update_step=SEGMENT * times,
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
        eval_dataset=dict(targets) if len(targets) > 1 else next(iter(targets.values())),
        data_collator=pad_collate,
        processing_class=tokenizer,
        dataflex=RunSpec(arguments, ComponentSpec(SELECTOR, name, name, params)),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    files = sorted((folder / "dataflex_selections").glob("step_*.npz"))[1:]  # the first is the warm-up
    assert len(files) == UPDATES, f"{len(files)} selections in {folder}"
    return np.concatenate([np.load(file)["indices"] for file in files]), trainer.model


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


def aimed(shared: World, families: Sequence[str], seed: int) -> tuple[Pool, dict[str, Any]]:
    """Returns the rows of a seed, with all target families in ``in_target``, and the target rows of each family."""
    pools = {family: pool(shared, family, seed) for family in families}
    first = next(iter(pools.values()))
    in_target = np.array([family in families for family in first.families])
    return replace(first, in_target=in_target), {family: own.target for family, own in pools.items()}


def one_seed(
    names: Sequence[str], families: Sequence[str], shared: World, base: Path, folder: Path, seed: int
) -> dict[str, Outcome]:
    """Returns method -> outcome, all on the same rows."""
    rows, targets = aimed(shared, families, seed)
    found = {}
    for number, name in enumerate(names):
        component, params = METHODS[name]
        if component == "rho_loss":
            params = {**params, "file": str(irreducible(rows, base, folder / "reference"))}
        began = time.perf_counter()
        tokenizer = shared.tokenizer if component in READ_TEXT else None
        place, times = folder / str(number), LONGER.get(name, 1)
        found[name] = run(component, params, rows, targets, base, place, seed, tokenizer, times)
        print(f"seed {seed}  {name:<20} {time.perf_counter() - began:6.1f} s  {found[name]}", file=sys.stderr)
    return found


def spread(values: Sequence[float], digits: int = 2, sign: str = "") -> str:
    """Returns mean +- standard deviation."""
    return f"{np.mean(values):{sign}.{digits}f} ± {np.std(values, ddof=1) if len(values) > 1 else 0.0:.{digits}f}"


def table(outcomes: Sequence[Mapping[str, Outcome]]) -> str:
    """Returns a Markdown table with a row for each method; losses are differences to ``random`` of the same seed."""
    lines = [
        "| method | target family | target family and right | right | different rows "
        "| target loss - random's | seeds it is lower in | loss of all families - random's | CPU time / random's |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
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
            f"{np.median([seed[name].seconds / seed['random'].seconds for seed in outcomes]):.1f}",
        ]
        if name == "random":
            cells[5:8] = [
                f"({spread([o.target_loss for o in found], 3)})", "-", f"({spread([o.loss for o in found], 3)})"
            ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=at_least(1), default=5)
    parser.add_argument("--target", default="copy", help=f"families, separated by ';' ({'; '.join(FAMILIES)})")
    parser.add_argument("--only", help=f"methods, separated by ';' ({'; '.join(METHODS)}); random is always among them")
    parser.add_argument("--base-steps", type=at_least(1), default=3000, help="steps that the base model is trained for")
    parser.add_argument("--base", type=Path, help="folder to keep the base model in, or to take it from")
    add_threads(parser)
    add_device(parser)
    options = parser.parse_args()
    names = list(dict.fromkeys(["random", *chosen(parser, options.only, METHODS)]))
    families = chosen(parser, options.target, FAMILIES, "--target")
    quieten(options.threads)

    shared = world()
    with tempfile.TemporaryDirectory() as temporary:
        base = options.base or Path(temporary, "base")
        if not (base / "config.json").exists():
            base_model(shared, base, options.base_steps)
        outcomes = [
            one_seed(names, families, shared, base, Path(temporary, str(seed)), seed) for seed in range(options.seeds)
        ]
    rows, targets = aimed(shared, families, 0)
    print(f"{machine(options.device)}; target: {', '.join(families)}; {options.seeds} seeds, mean ± standard deviation")
    print(
        f"{len(rows.rows)} rows, {rows.in_target.mean():.0%} of them of the target family, {rows.clean.mean():.0%} "
        f"right; {UPDATES} updates of {SEGMENT * BATCH} rows each, {sum(map(len, targets.values()))} target rows\n"
    )
    print(table(outcomes))


if __name__ == "__main__":
    main()
