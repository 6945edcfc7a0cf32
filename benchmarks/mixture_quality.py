"""What a mixture is worth on held-out rows of each source, at equal steps: mixers against fixed shares, paired by seed.

    python -m benchmarks.mixture_quality --seeds 3 --threads 1
    python -m benchmarks.mixture_quality --data web=web.jsonl --data tasks=alpaca.json --data articles=wiki.jsonl

Every run trains the same small model from the same random weights on the same domains, for the same number of steps
and with the real trainer. DoReMi is run whole: a run on fixed shares is its reference model, the proxy draws evenly,
and the main model is trained on the proxy's averaged weights. A method is compared with equal shares, and with
shares by size, of the same seed; the seed decides on the initial weights and on the order of the rows.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.kinds import MIXER
from dataflex.testing import pad_collate, tiny_model, tiny_training_args
from dataflex.train.trainer import MixTrainer, trainer_class
from transformers import PrinterCallback, Trainer

from benchmarks.common import add_device, add_threads, at_least, chosen, machine, quieten
from benchmarks.mixture_data import Domains, domains, file_documents, library_documents
from benchmarks.selection_quality import spread, test_loss

BATCH, LENGTH, VOCABULARY, RATE = 8, 64, 512, 4e-3
"""Rows of a step, tokens of a row, tokens of the tokenizer, and the peak of the learning rate (cosine)."""

UNIFORM, SIZE = "uniform", "by size"

SOONER = {"start_step": 200, "skip_steps": 100, "fit_every": 100, "subsample": 1, "smoothing_window": 11}
"""ado's lengths in steps, a tenth of its defaults, which are for runs of tens of thousands of steps."""


@dataclass(frozen=True)
class Method:
    """How a model is trained.

    Attributes:
        mixer: The component.
        params: Its parameters.
        rule: Where the initial shares come from: ``uniform``, or ``stratified`` for the sizes.
        update_step: Steps between two updates; 1 in the papers of mixers that learn.
        reference: The fixed shares that DoReMi's reference model is trained on.
        objective: The shares of the loss, where they are not those of the rows: ``uniform``, or ``stratified``.
    """

    mixer: str
    params: Mapping[str, Any]
    rule: str = "stratified"
    update_step: int = 1
    reference: str = SIZE
    objective: str | None = None


FIXED = 100
"""Steps between two updates where an update changes nothing."""

METHODS = {
    UNIFORM: Method("static", {}, "uniform", FIXED),
    SIZE: Method("static", {}, update_step=FIXED),
    "temperature": Method("temperature", {}, update_step=FIXED),
    "odm": Method("odm", {}),
    "odm, code": Method("odm", {"variant": "code"}),
    "loss": Method("loss", {}, update_step=10),
    "loss, T 4": Method("loss", {"temperature": 4.0}, update_step=10),
    "rows even, loss by size": Method("static", {}, "uniform", FIXED, objective="stratified"),
    "rows by size, loss even": Method("static", {}, "stratified", FIXED, objective="uniform"),
    "odm, eval_loss": Method("odm", {"reward": "eval_loss", "eval_rows": 16}),
    "odm, entropy": Method("odm", {"reward": "entropy"}),
    "odm, gradient_norm": Method("odm", {"reward": "gradient_norm"}),
    "ado": Method("ado", SOONER),
    "doge": Method("doge", {}, "uniform"),
    "doge, loss_weights": Method("doge", {"use": "loss_weights"}, "uniform", FIXED),
    "pike": Method("pike", {}, "uniform", 20),
    "pike, tau 3": Method("pike", {"tau": 3.0}, "uniform", 20),
    "pike, each step": Method("pike", {}, "uniform"),
    "doremi": Method("doremi", {}, "uniform", FIXED),
    "doremi, eta 0.1": Method("doremi", {"eta": 0.1}, "uniform", FIXED),
    "doremi, even reference": Method("doremi", {}, "uniform", FIXED, UNIFORM),
}
"""The fixed shares come first: they train DoReMi's reference models. A method of the mixer ``doremi`` is its proxy, as
one of ``doge`` with loss_weights is, and the main model is trained after it."""

PROXIES = {"doremi": "doremi_weights.json", "doge": "doge_weights.json"}
"""Mixer -> where its proxy writes the shares of the main model."""

HELD_OUT = 64
"""Rows of each domain that a reward of held-out rows is measured on; no run trains on them."""


@dataclass(frozen=True)
class Outcome:
    """What came of one run.

    Attributes:
        losses: Domain -> mean token loss of the trained model on held-out rows.
        final: Domain -> the share in force at the end; for the proxy, its last weight.
        drawn: Domain -> the share of all rows of the run; for the proxy, its average weight.
    """

    losses: dict[str, float]
    final: dict[str, float]
    drawn: dict[str, float]

    @property
    def mean(self) -> float:
        """The mean loss over the domains."""
        return float(np.mean(list(self.losses.values())))

    @property
    def worst(self) -> float:
        """The loss of the domain with the largest."""
        return max(self.losses.values())

    def excess(self, reference: Outcome) -> float:
        """Returns how far the loss lies above the reference's in the domain where it is farthest."""
        return max(loss - reference.losses[name] for name, loss in self.losses.items())


@dataclass(frozen=True)
class Setting:
    """What the runs share.

    Attributes:
        data: The rows.
        steps: Optimizer steps of a run.
        hidden: Width of the model.
        layers: Its layers.
    """

    data: Domains
    steps: int
    hidden: int = 96
    layers: int = 2


def run(method: Method, setting: Setting, folder: Path, seed: int) -> tuple[Outcome, Any]:
    """Trains a model and returns what came of it, and the model."""
    data, names = setting.data, list(setting.data.train)
    warmup = setting.steps // 100  # as in the paper of odm
    sizes = tuple(len(rows) if method.objective == "stratified" else 1 for rows in data.train.values())
    arguments = DataflexArguments(
        train_type="dynamic_mix",
        component_name=method.mixer,
        mixture_sample_rule=method.rule,
        warmup_step=warmup,
        update_step=method.update_step,
        train_step=setting.steps,
        objective_proportions=sizes if method.objective else None,
    )
    trainer = trainer_class(MixTrainer, Trainer)(
        model=tiny_model(data.vocabulary, hidden=setting.hidden, layers=setting.layers, seed=seed, kind="qwen2"),
        args=tiny_training_args(
            folder,
            max_steps=setting.steps,
            per_device_train_batch_size=BATCH,
            learning_rate=RATE,
            lr_scheduler_type="cosine",
            warmup_steps=20,
            logging_steps=setting.steps,
            seed=seed,
        ),
        train_dataset={name: rows[:-HELD_OUT] for name, rows in data.train.items()},
        mixer_eval_dataset={name: rows[-HELD_OUT:] for name, rows in data.train.items()},
        data_collator=pad_collate,
        dataflex=RunSpec(arguments, ComponentSpec(MIXER, method.mixer, method.mixer, method.params)),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    manager = trainer.mixture_manager
    rows = manager.seen()["rows_seen"]
    outcome = Outcome(
        losses={name: test_loss(trainer.model, held_out) for name, held_out in data.test.items()},
        final=dict(zip(names, manager.proportions.tolist(), strict=True)),
        drawn={name: rows[name] / sum(rows.values()) for name in names},
    )
    return outcome, trainer.model


def by_proxy(proxy: Method, setting: Setting, reference: Path, folder: Path, seed: int) -> tuple[Outcome, Outcome]:
    """Trains the proxy, and the main model on its averaged weights; returns both outcomes."""
    names = list(setting.data.train)
    if proxy.mixer == "doremi":
        proxy = replace(proxy, params={**proxy.params, "reference_model": str(reference)})
    found, _ = run(proxy, setting, folder / "proxy", seed)
    written = json.loads((folder / "proxy" / PROXIES[proxy.mixer]).read_text(encoding="utf-8"))
    average, last = [written["proportions"][name] for name in names], written["last"]
    found = replace(found, final=last, drawn=dict(zip(names, average, strict=True)))
    main_model = Method("static", {"proportions": average}, update_step=FIXED)
    return found, run(main_model, setting, folder / "main", seed)[0]


def one_seed(names: Sequence[str], setting: Setting, folder: Path, seed: int) -> dict[str, Outcome]:
    """Returns method -> outcome."""
    found: dict[str, Outcome] = {}
    for number, name in enumerate(names):
        began = time.perf_counter()
        method, own = METHODS[name], folder / str(number)
        if method.mixer == "doremi" or method.params.get("use") == "loss_weights":
            found[f"{name}: proxy"], found[name] = by_proxy(method, setting, folder / method.reference, own, seed)
        else:
            found[name], model = run(method, setting, own, seed)
            if name in (UNIFORM, SIZE):
                model.save_pretrained(folder / name)
        took = time.perf_counter() - began
        print(f"seed {seed}  {name:<22} {took:6.1f} s  {found[name]}", file=sys.stderr, flush=True)
    return found


def loss_table(outcomes: Sequence[Mapping[str, Outcome]], names: Sequence[str]) -> str:
    """Returns a Markdown table of held-out losses, in nats per token, and of shares in per cent."""
    head = ["method", *(f"loss {name}" for name in names), "mean", "worst", "rows drawn, %", "shares at the end, %"]
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |"]
    for method in outcomes[0]:
        found = [seed[method] for seed in outcomes]
        cells = [spread([o.losses[name] for o in found], 3) for name in names]
        cells += [spread([o.mean for o in found], 3), spread([o.worst for o in found], 3)]
        cells += [_shares([o.drawn for o in found], names), _shares([o.final for o in found], names)]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def objective_table(outcomes: Sequence[Mapping[str, Outcome]], sizes: Mapping[str, int]) -> str:
    """Returns a Markdown table of the held-out loss by two objectives: the sizes of the domains, and even shares."""
    lines = ["| method | loss by size | - by size's | even loss | - uniform's |", "| --- | --- | --- | --- | --- |"]
    total = sum(sizes.values())

    def by_size(outcome: Outcome) -> float:
        return sum(outcome.losses[name] * size / total for name, size in sizes.items())

    for method in outcomes[0]:
        cells = []
        for measure, base in ((by_size, SIZE), (lambda o: o.mean, UNIFORM)):
            found = [measure(seed[method]) for seed in outcomes]
            gaps = [value - measure(seed[base]) for value, seed in zip(found, outcomes, strict=True)]
            lower = f"{spread(gaps, 3, '+')} ({sum(gap < 0 for gap in gaps)} of {len(gaps)})"
            cells += [spread(found, 3), "-" if method == base else lower]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def difference_table(outcomes: Sequence[Mapping[str, Outcome]]) -> str:
    """Returns a Markdown table of differences of losses to fixed shares of the same seed, and how many are below 0."""
    lines = [
        "| method | worst - uniform's | mean - uniform's | worst - by size's | mean - by size's "
        "| largest excess over by size |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    measures: list[Callable[[Outcome], float]] = [lambda o: o.worst, lambda o: o.mean]
    for method in outcomes[0]:
        cells = []
        for base in (UNIFORM, SIZE):
            for measure in measures:
                gaps = [measure(seed[method]) - measure(seed[base]) for seed in outcomes]
                lower = f"{spread(gaps, 3, '+')} ({sum(gap < 0 for gap in gaps)} of {len(gaps)})"
                cells.append("-" if method == base else lower)
        excesses = [seed[method].excess(seed[SIZE]) for seed in outcomes]
        cells.append("-" if method == SIZE else spread(excesses, 3, "+"))
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _shares(shares: Sequence[Mapping[str, float]], names: Sequence[str]) -> str:
    return " / ".join(f"{100 * np.mean([found[name] for found in shares]):.0f}" for name in names)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=at_least(1), default=3)
    parser.add_argument("--steps", type=at_least(1), default=600, help="optimizer steps of each run")
    parser.add_argument(
        "--only", help=f"methods, separated by ';' ({'; '.join(METHODS)}); fixed shares are always among them"
    )
    parser.add_argument(
        "--data", action="append", metavar="NAME=FILE", help="a domain: .json, .jsonl or text; give it once for each"
    )
    add_threads(parser)
    add_device(parser)
    options = parser.parse_args()
    options.only = chosen(parser, options.only, METHODS)
    for given in options.data or ():
        name, _, file = given.partition("=")
        if not name or not Path(file).is_file():
            parser.error(f"argument --data: found {given!r}, allowed: NAME=FILE, with a file that is there")
    return options


def main() -> None:
    options = _arguments()
    quieten(options.threads)
    names = list(dict.fromkeys([UNIFORM, SIZE, *options.only]))
    files = [given.partition("=") for given in options.data or ()]
    documents = {name: file_documents(Path(file)) for name, _, file in files} or library_documents()
    setting = Setting(domains(documents, LENGTH, VOCABULARY), options.steps)

    with tempfile.TemporaryDirectory() as temporary:
        outcomes = [one_seed(names, setting, Path(temporary, str(seed)), seed) for seed in range(options.seeds)]
    rows = ", ".join(f"{name} {len(found)}" for name, found in setting.data.train.items())
    print(f"{machine(options.device)}; {options.seeds} seeds, mean ± standard deviation")
    print(f"{rows} rows of {LENGTH} tokens; {options.steps} steps of {BATCH} rows\n")
    print(loss_table(outcomes, list(documents)))
    print()
    print(difference_table(outcomes))
    print()
    print(objective_table(outcomes, {name: len(found) for name, found in setting.data.train.items()}))


if __name__ == "__main__":
    main()
