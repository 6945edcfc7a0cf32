"""The report of a run on a model that can speak: SmolLM2-135M-Instruct finds GSM8K among alpaca.

    python -m benchmarks.real_report --data FOLDER --work /tmp/report --threads 1

The rows are those of `real_model.py`'s case "kind": 300, a fifth of them GSM8K, and 16 other problems of GSM8K as the
target. Here they are two datasets, as a user has them, so that the record knows which row is of which. Two updates of
`less` choose 96 rows each; then `dataflex-cli report` writes the page whose picture is in the README.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import yaml
from dataflex.cli.main import run as command

from benchmarks.common import add_device, add_threads, at_least, quieten
from benchmarks.real_data import Part, Sizes, selection_part
from benchmarks.real_files import language_model
from benchmarks.real_model import CACHE
from benchmarks.real_runs import SEGMENT, WARMUP, Setting, keys

POOL, TARGET, HELD_OUT = 300, 16, 40


def two_datasets(part: Part) -> None:
    """Splits the pool of a part into the datasets ``gsm8k`` and ``alpaca``."""
    info = json.loads((part.folder / "dataset_info.json").read_text(encoding="utf-8"))
    pool = json.loads((part.folder / "pool.json").read_text(encoding="utf-8"))
    for name, wanted in (("gsm8k", True), ("alpaca", False)):
        rows = [row for row, of_kind in zip(pool, part.of_kind, strict=True) if of_kind is wanted]
        (part.folder / f"{name}.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
        info[name] = info["pool"] | {"file_name": f"{name}.json"}
    (part.folder / "dataset_info.json").write_text(json.dumps(info, indent=1), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Trains once and writes the report. Returns the exit code of the first command that failed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with dataset_info.json, as real_model.py's")
    parser.add_argument("--work", type=Path, required=True, help="folder for data, run and report")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder for the model; default: %(default)s")
    parser.add_argument("--component", default="less", help="the selector; default: %(default)s")
    parser.add_argument("--seed", type=at_least(0), default=1)
    add_device(parser)
    add_threads(parser)
    options = parser.parse_args(argv)
    quieten(options.threads)
    work = options.work.absolute()
    part = selection_part(
        "kind", options.data.absolute(), work / "data", Sizes(POOL, TARGET, 64, HELD_OUT), options.seed
    )
    two_datasets(part)
    model = language_model(options.cache).absolute()
    setting = Setting(model, "smollm2", options.device, bf16=True, cutoff=192, batch=8, rate=3e-4, rank=8)
    out = work / options.component
    config = keys(setting, part, out, options.seed) | {
        "dataset": "gsm8k,alpaca",
        "eval_dataset": "target",
        "do_eval": True,
        "eval_strategy": "steps",
        "eval_steps": SEGMENT // 2,
        "train_type": "dynamic_select",
        "component_name": options.component,
        "warmup_step": WARMUP,
        "update_step": SEGMENT,
        "update_times": 2,
    }
    file = work / f"{options.component}.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return command(["train", str(file)]) or command(["report", str(out)])


if __name__ == "__main__":
    raise SystemExit(main())
