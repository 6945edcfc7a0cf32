"""What `dataflex-cli plan` says deciding will take, against what the trace of the run says afterwards.

    python -m benchmarks.forecast [--repeats 3] [--only "loss; less"] [--threads 1] [--device cuda]

A Llama of 30 million random weights learns docstrings of the standard library through LLaMA-Factory, with LoRA and
whole. Each run is planned, trained, and its trace read: the seconds of its updates, of those of the training loop. The
same share by the time of all threads is less disturbed by other work on the machine, and means nothing on a GPU. The
table has the medians.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
import yaml
from dataflex import hookimpl
from dataflex.cli.main import run as command
from dataflex.config.check import check
from dataflex.config.load import read_config
from dataflex.core.files import TRACE
from dataflex.discovery.plugins import plugin_manager
from dataflex.forecast.forecast import forecast
from dataflex.testing import tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.common import VOCABULARY, add_device, add_threads, at_least, chosen, examples, machine, quieten

CUTOFF, TARGET = 192, 16
ROWS, MANY = 96, 12_000
SCHEDULE = {"train_type": "dynamic_select", "warmup_step": 2, "update_step": 5, "update_times": 2}
WHOLE = {"finetuning_type": "full"}


def strategy(name: str, rows: int = ROWS, keys: Mapping[str, Any] | None = None, **params: Any) -> dict[str, Any]:
    """Returns what a run adds to the common keys."""
    data = "rows" if rows == ROWS else "many_rows"
    return {**SCHEDULE, "component_name": name, "component": params, "dataset": data, **(keys or {})}


RUNS: dict[str, dict[str, Any]] = {
    "loss": strategy("loss"),
    "loss, whole model": strategy("loss", keys=WHOLE),
    "less": strategy("less"),
    "less, whole model": strategy("less", keys=WHOLE),
    "near by n-grams": strategy("near", MANY, exclude_seen=False),
    "near by the model": strategy("near", embedding="model"),
    "cluster_less by n-grams": strategy("cluster_less", clusters=8),
    "cluster_less by the model": strategy("cluster_less", clusters=8, embedding="model"),
}


def prepared(folder: Path, device: str) -> dict[str, Any]:
    """Writes model and data, and returns the keys that all runs have."""
    pairs = examples([], 999)
    tokenizer = tiny_tokenizer((part for pair in pairs for part in pair), vocab_size=VOCABULARY)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=2048, tie_word_embeddings=False, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    with contextlib.redirect_stderr(io.StringIO()):
        LlamaForCausalLM(config).save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
    rows = [{"instruction": question, "input": "", "output": answer} for question, answer in pairs]
    files = {
        "rows": rows[:ROWS],
        "target": rows[ROWS : ROWS + TARGET],
        "many_rows": [{**rows[n % 999], "input": str(n)} for n in range(MANY)],
    }
    info = {name: {"file_name": f"{name}.json"} for name in files}
    for name, values in {**files, "dataset_info": info}.items():
        (folder / f"{name}.json").write_text(json.dumps(values), encoding="utf-8")
    return {
        "model_name_or_path": str(folder / "model"), "stage": "sft", "do_train": True, "finetuning_type": "lora",
        "template": "default", "cutoff_len": CUTOFF, "dataset_dir": str(folder), "eval_dataset": "target",
        "do_eval": False, "per_device_train_batch_size": 4, "learning_rate": 1e-4, "seed": 7, "save_strategy": "no",
        "report_to": "none", "disable_tqdm": True, "logging_steps": 1000, "use_cpu": device == "cpu",
        "overwrite_cache": True, "preprocessing_num_workers": 1, "dataloader_num_workers": 0, "eval_strategy": "no",
    }  # fmt: skip


def planned(file: Path) -> tuple[float, float]:
    """Returns the share that the forecast gives deciding, and the seconds that it took to make it."""
    begin = time.perf_counter()
    share = forecast(check(read_config(str(file), []), file.parent)).share
    return share, time.perf_counter() - begin


class Meter:
    """Seconds of all threads in updates, and in the whole training loop: other work on the machine disturbs them less.

    Attributes:
        deciding: Those of the updates.
        whole: Those of the loop.
    """

    def __init__(self) -> None:
        self.deciding = self.whole = 0.0
        self._begin = 0.0

    @hookimpl
    def dataflex_before_update(self) -> None:
        """Begins to count."""
        self._begin = time.process_time()

    @hookimpl
    def dataflex_after_update(self) -> None:
        """Adds what the update took."""
        self.deciding += time.process_time() - self._begin

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Counts the runs that are made inside of it."""
        loop = transformers.Trainer._inner_training_loop

        def timed(*args: object, **kwargs: object) -> object:
            begin = time.process_time()
            try:
                return loop(*args, **kwargs)
            finally:
                self.whole += time.process_time() - begin

        plugin_manager().register(self)
        try:
            with patch.object(transformers.Trainer, "_inner_training_loop", timed):
                yield
        finally:
            plugin_manager().unregister(self)


def trained(file: Path, out: Path) -> tuple[float, float]:
    """Trains; returns the share of the updates by the clock, from the trace, and by the seconds of all threads."""
    silent, meter = io.StringIO(), Meter()
    with meter.counting(), contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        code = command(["train", str(file), f"output_dir={out}"])
    if code:
        raise SystemExit(f"{file.name} failed:\n{silent.getvalue()[-2000:]}")
    lines = [json.loads(line) for line in (out / TRACE).read_text(encoding="utf-8").splitlines()]
    whole = json.loads((out / "train_results.json").read_text(encoding="utf-8"))["train_runtime"]
    return sum(line["seconds"] for line in lines) / whole, meter.deciding / meter.whole


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=at_least(1), default=3)
    parser.add_argument("--only", help=f"some of: {'; '.join(RUNS)}")
    add_threads(parser, 1)
    add_device(parser)
    options = parser.parse_args()
    names = chosen(parser, options.only, RUNS)
    quieten(options.threads)
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        common = prepared(folder, options.device)
        for number in range(options.repeats):
            for name in names:
                out = folder / f"out-{number}-{names.index(name)}"
                file = folder / f"run-{names.index(name)}.yaml"
                file.write_text(yaml.safe_dump({**common, **RUNS[name], "output_dir": str(out)}), encoding="utf-8")
                share, seconds = planned(file)
                clock, threads = trained(file, out)
                found[name].append((share, clock, threads, seconds))
                print(f"{name}: planned {share:.4f}, by the trace {clock:.4f}, by CPU time {threads:.4f}", flush=True)
    print(f"\n{machine(options.device)}\n")
    print("| run | planned share | by the trace | planned / trace | by CPU time | planned / CPU time | plan took |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, rows in found.items():
        share, clock, threads, seconds = (statistics.median(column) for column in zip(*rows, strict=True))
        shares = f"{100 * share:.1f} % | {100 * clock:.1f} % | {share / clock:.2f} | {100 * threads:.1f} %"
        print(f"| {name} | {shares} | {share / threads:.2f} | {seconds:.2f} s |")


if __name__ == "__main__":
    main()
