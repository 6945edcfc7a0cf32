"""Timing, a description of the machine, and the small model and rows that the benchmarks share."""

from __future__ import annotations

import argparse
import inspect
import json
import logging
import os
import pkgutil
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers
from dataflex.testing import tiny_tokenizer
from dataflex.testing.devices import VARIABLE
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.utils.logging import disable_progress_bar

DEVICES = ("cpu", "cuda")
PROMPT = "### Instruction:\n{instruction}\n\n### Response:\n"
VOCABULARY = 4096


def machine(device: str) -> str:
    """Returns the machine and the versions, without names that identify it."""
    what = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} CPU cores ({platform.machine()})"
    count = torch.get_num_threads()
    threads = "" if device == "cuda" else f", {count} thread" + "s" * (count > 1)
    return f"{what}{threads}, torch {torch.__version__}, transformers {transformers.__version__}"


def at_least(least: int) -> Callable[[str], int]:
    """Returns a type for arguments that are whole numbers from ``least`` on."""

    def whole_number(text: str) -> int:
        try:
            found = int(text)
        except ValueError:
            found = least - 1
        if found < least:
            raise argparse.ArgumentTypeError(f"found {text!r}, allowed: a whole number, at least {least}")
        return found

    return whole_number


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds ``--device``: where the models compute. The fixture kit's models, batches and arguments follow it."""
    parser.add_argument("--device", default="cpu", type=_device, metavar="{cpu,cuda}", help="default: cpu")


def add_threads(parser: argparse.ArgumentParser, default: int | None = None) -> None:
    """Adds ``--threads``."""
    told = "torch's" if default is None else str(default)
    parser.add_argument("--threads", type=at_least(1), default=default, help=f"CPU threads; default: {told}")


def add_rows(parser: argparse.ArgumentParser) -> None:
    """Adds the rows that are measured on, the model, and token budgets to try."""
    told = "alpaca-format JSON; default: the standard library's docstrings"
    parser.add_argument("--data", type=Path, nargs="+", default=[], help=told)
    parser.add_argument("--rows", type=at_least(1), default=999)
    parser.add_argument("--cutoff", type=at_least(2), default=256, help="tokens per row")
    parser.add_argument("--model", type=Path, help="folder of a saved chat model; default: 5 million random weights")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of --model")
    told = "token budgets to try beside the default"
    parser.add_argument("--budgets", type=at_least(1), nargs="*", default=[], help=told)


def chosen(
    parser: argparse.ArgumentParser, only: str | None, methods: Mapping[str, object], option: str = "--only"
) -> list[str]:
    """Returns the methods that ``option`` names, separated by ``;``; all without it. Ends where one is not known."""
    names = list(methods) if only is None else [part.strip() for part in only.split(";")]
    for name in names:
        if name not in methods:
            parser.error(f"argument {option}: found {name!r}, allowed: {'; '.join(methods)}")
    return names


def use_cpu(device: str) -> str:
    """Returns the key of a run of LLaMA-Factory that has it compute on the device."""
    return f"use_cpu={str(device == 'cpu').lower()}"


def _device(text: str) -> str:
    if text not in DEVICES:
        raise argparse.ArgumentTypeError(f"found {text!r}, allowed: {', '.join(DEVICES)}")
    if text == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError(f"torch {torch.__version__} sees no CUDA device -> use cpu")
    os.environ[VARIABLE] = "1" if text == "cuda" else "0"
    return text


def quieten(threads: int | None) -> None:
    """Sets the number of CPU threads, where one is given, and of logs and bars leaves what a benchmark prints."""
    if threads:
        torch.set_num_threads(threads)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    logging.getLogger("dataflex").setLevel(logging.WARNING)
    disable_progress_bar()


@dataclass(frozen=True)
class Took:
    """What one call took.

    Attributes:
        wall: Seconds on the clock.
        cpu: Seconds of all threads of the process; steadier where others use the machine, with ``--threads 1``.
    """

    wall: float
    cpu: float

    def measure(self, device: str) -> float:
        """Returns the steadier of the two: CPU seconds, of a GPU those on the clock."""
        return self.wall if device == "cuda" else self.cpu


def timed(run: Callable[[], object], device: str) -> Took:
    """Returns what one call took, waiting for the GPU."""
    if device == "cuda":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return Took(time.perf_counter() - wall, time.process_time() - cpu)


def interleaved(runs: Mapping[str, Callable[[], object]], repeats: int, device: str) -> dict[str, list[Took]]:
    """Returns what each run took, ``repeats`` times; one of each per round: a slow moment hits all alike."""
    took: dict[str, list[Took]] = {name: [] for name in runs}
    for number in range(repeats):
        for name, run in runs.items():
            took[name].append(timed(run, device))
            wall, cpu = took[name][-1].wall, took[name][-1].cpu
            print(f"round {number + 1}/{repeats}  {name:<48} {wall:8.2f} s, CPU {cpu:8.2f} s", file=sys.stderr)
    return took


def median(took: Sequence[Took]) -> Took:
    """Returns the medians."""
    return Took(statistics.median(t.wall for t in took), statistics.median(t.cpu for t in took))


def table(took: Mapping[str, Sequence[Took]], rows: int, reference: Took) -> str:
    """Returns a Markdown table: medians, spread, rows/s, and the ratio of rows/s to those of a reference run."""
    lines = [
        "| run | median s | min-max s | rows/s | ratio | median CPU s | ratio by CPU |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, times in took.items():
        mid, walls = median(times), [t.wall for t in times]
        lines.append(
            f"| {name} | {mid.wall:.2f} | {min(walls):.2f}-{max(walls):.2f} | {rows / mid.wall:.1f} "
            f"| {reference.wall / mid.wall:.2f} | {mid.cpu:.2f} | {reference.cpu / mid.cpu:.2f} |"
        )
    return "\n".join(lines)


def small_model(device: str, vocabulary: int = VOCABULARY) -> Qwen2ForCausalLM:
    """Returns a Qwen2 with random weights: hidden 256, 4 layers; 5 million parameters with a vocabulary of 4096."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        pad_token_id=0,
    )
    return Qwen2ForCausalLM(config).to(device)


def real_model(path: Path, dtype: torch.dtype, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Returns a model that was saved in a folder, and its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).to(device), tokenizer


def examples(paths: Sequence[Path], count: int) -> list[tuple[str, str]]:
    """Returns ``count`` pairs of instruction and answer: from alpaca-format JSON, or the standard library's docs.

    Of several files as many rows each, in turn.
    """
    if not paths:
        found = list(_docstrings(count))
    else:
        files = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        records = [record for row in zip(*files, strict=False) for record in row]
        found = [("\n".join(filter(None, (r["instruction"], r.get("input", "")))), r["output"]) for r in records]
    if len(found) < count:
        raise SystemExit(f"{count} rows asked for, {len(found)} found")
    return found[:count]


def tokenised(pairs: Sequence[tuple[str, str]], cutoff: int) -> tuple[list[dict[str, Any]], PreTrainedTokenizerFast]:
    """Returns rows cut at ``cutoff`` tokens, the prompt's labels masked, and the tokenizer trained on their text."""
    texts = [(PROMPT.format(instruction=instruction), answer) for instruction, answer in pairs]
    tokenizer = tiny_tokenizer((part for text in texts for part in text), vocab_size=VOCABULARY)
    return [_row(tokenizer, prompt, answer, cutoff) for prompt, answer in texts], tokenizer


def chats(pairs: Sequence[tuple[str, str]], cutoff: int, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Returns rows as :func:`tokenised`, in the chat format of a model that has one."""
    rows = []
    for instruction, answer in pairs:
        turn = [{"role": "user", "content": instruction}]
        prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        rows.append(_row(tokenizer, prompt, answer, cutoff))
    return rows


def _row(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, cutoff: int) -> dict[str, Any]:
    head = tokenizer(prompt, add_special_tokens=False)["input_ids"][: cutoff // 2]  # as LLaMA-Factory, both survive
    answered = tokenizer(answer, add_special_tokens=False)["input_ids"]
    tail = [*answered, tokenizer.eos_token_id][: cutoff - len(head)]
    tokens = head + tail
    return {"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": [-100] * len(head) + tail}


def _docstrings(count: int) -> Iterator[tuple[str, str]]:
    """Yields a name of the standard library and its docstring, at most ``count``, in an order that never changes."""
    modules = sorted(m.name for m in pkgutil.iter_modules([str(Path(inspect.__file__).parent)]) if m.name[0].islower())
    seen: set[str] = set()
    for module in (m for m in modules if m not in {"antigravity", "idlelib", "this", "test"}):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                members = inspect.getmembers(import_module(module))
        except ImportError:  # modules of another operating system
            continue
        for name, member in members:
            doc = inspect.getdoc(member) if inspect.isclass(member) or inspect.isroutine(member) else None
            if doc and len(doc) > 80 and doc not in seen:
                seen.add(doc)
                yield f"What does {module}.{name} do?", doc
                if len(seen) == count:
                    return
