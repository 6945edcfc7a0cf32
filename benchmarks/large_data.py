"""Selectors and mixers over millions of rows: time and memory of an update, without a model.

    python -m benchmarks.large_data [--rows 10000000] [--only less random] [--batch 512]

The rows stand in an Arrow file that is mapped into memory, made on the spot: four tokens each. What a model would give
(losses, scores by gradients, derivatives, vectors, loads of experts) is drawn at random, for the rows that the
component asks for; all else is the component's own path. Every installed selector and mixer is walked; those that
cannot be made without something that a benchmark has not are listed with the reason.

The peak is that of NumPy, Python and Arrow, beyond what was there when the component was made; torch's tensors and
pages of the mapped file are not in it. "first" is what is done once (labels, embeddings, a file read), with the peak
being traced, which slows Python down; "update" is the time of the second update and the peak of the third. Seconds are
those of the CPU, of which one thread is used.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from dataflex.core.context import UpdateContext
from dataflex.core.errors import ConfigError
from dataflex.core.kinds import MIXER, SELECTOR, Kind
from dataflex.core.registry import names
from dataflex.discovery.component_classes import find
from dataflex.discovery.construct import construct
from dataflex.planning.mixture import MixtureManager
from dataflex.rows.lengths import row_lengths
from dataflex.scoring.gradients.overlaps import RowProducts
from dataflex.scoring.passes.fingerprint import dataset_digest
from dataflex.testing import TokenRows, pad_collate, tiny_tokenizer

from benchmarks.common import at_least, machine, quieten

TOKENS = 4
WIDTH = 8  # of the vectors that stand for embeddings
PIECE = 1_000_000
PARAMS: dict[str, dict[str, Any]] = {
    "cluster_less": {"clusters": 16},  # the default, a cluster for 64 rows, is for less data
    "tsds": {"neighbours": 500, "kde_neighbours": 100},
    "ifd": {"most": None},
    "rho_loss": {"column": "number"},
    "dsir": {"features": "tokens"},
    "schedule": {"points": [{"at": 0, "proportions": {"a": 0.5, "b": 0.5}}]},
}
READS_TEXT = "dsir"
"""Walked a second time with the words of decoded tokens."""
NOT_WALKED = {
    "doremi": "needs a reference model",
    "coincide": "needs the hidden states of a model",
    "reward_spread": "needs the rewards of prompts",
    "doge": "needs a trainer",
}
"""Components that cannot be walked without a model or a trainer, with why."""
SCORED = ("less", "icons", "nice", "zeroth")
"""Selectors that draw candidates; walked a second time with all rows."""


def rows_on_disk(folder: Path, count: int) -> datasets.Dataset:
    """Returns ``count`` rows in a file that is mapped into memory: tokens, labels and a number."""
    path, generator = folder / "rows.arrow", np.random.default_rng(0)
    kind = pa.list_(pa.int32())
    schema = pa.schema([("input_ids", kind), ("labels", kind), ("number", pa.float32())])
    offsets = np.arange(0, PIECE * TOKENS + 1, TOKENS, dtype=np.int32)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for start in range(0, count, PIECE):
            own = min(PIECE, count - start)
            ids = generator.integers(3, 128, own * TOKENS, dtype=np.int32)
            labels = np.where(np.arange(len(ids)) % TOKENS, ids, -100).astype(np.int32)
            lists = [pa.ListArray.from_arrays(offsets[: own + 1], values) for values in (ids, labels)]
            writer.write_batch(pa.record_batch([*lists, pa.array(generator.random(own, np.float32))], schema=schema))
    return datasets.Dataset.from_file(str(path))


@contextlib.contextmanager
def without_model() -> Iterator[None]:
    """Puts random numbers in the place of what a model would give."""
    generator = np.random.default_rng(1)

    def losses(model: Any, dataset: Any, *, indices: Any = None, **kwargs: Any) -> Any:
        return generator.random(len(dataset) if indices is None else len(indices), np.float32)

    def derivatives(model: Any, rows: Any, *, directions: int, **kwargs: Any) -> Iterator[Any]:
        return (generator.standard_normal(len(rows.rows())) for _ in range(directions))

    @contextlib.contextmanager
    def scoring(self: Any, model: Any) -> Iterator[Callable[[Any], Any]]:
        yield lambda rows: generator.random((len(rows), len(self._targets)), np.float32)

    @contextlib.contextmanager
    def products(self: Any, model: Any, context: Any, number: int) -> Iterator[Callable[[Any], RowProducts]]:
        def made(rows: Any) -> RowProducts:
            vectors = generator.standard_normal((len(rows), WIDTH))
            return RowProducts(vectors.sum(axis=1), np.linalg.norm(vectors, axis=1), [vectors @ vectors.T])

        yield made

    def embed(self: Any, model: Any, dataset: Any, rows: Any, desc: str, everywhere: bool = True) -> Any:
        vectors = generator.standard_normal((len(rows), WIDTH), np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def loads(self: Any, model: Any, update: int) -> Any:
        found = generator.random((len(self.mixture_manager.names), 1, 8))
        return found / found.sum(axis=-1, keepdims=True)

    def targets(self: Any, *args: Any) -> Any:
        return {0: None}

    replaced = {
        "dataflex_selectors.parts.row_losses": {"per_sample_losses": losses},
        "dataflex_selectors.ifd": {"per_sample_losses": losses},
        "dataflex_selectors.rho_loss": {"per_sample_losses": losses},
        "dataflex_selectors.zeroth": {"directional_derivatives": derivatives},
        "dataflex_selectors.parts.gradient_scores.GradientScores": {"scoring": scoring},
        "dataflex_selectors.greats.GreatsSelector": {"scoring": products},
        "dataflex.scoring.embedder.Embedder": {"embed": embed},
        "dataflex_selectors.nice.goal.PolicyGoal": {"targets": targets},
        "dataflex_mixers.dynamic_moe.DynamicMoeMixer": {"loads": loads},
    }
    with contextlib.ExitStack() as stack:
        for place, values in replaced.items():
            owner = _found(place)
            for name, value in values.items():
                stack.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, value)
        yield


def _found(place: str) -> Any:
    module, _, name = place.rpartition(".")
    return getattr(importlib.import_module(module), name) if name[0].isupper() else importlib.import_module(place)


def measured(do: Callable[[], Any]) -> tuple[float, float]:
    """Returns the CPU seconds that ``do`` takes and its peak of memory in MB."""
    pool = pa.default_memory_pool()
    tracemalloc.start()
    arrow, started = pool.bytes_allocated(), time.process_time()
    try:
        do()
        seconds = time.process_time() - started
        return seconds, (tracemalloc.get_traced_memory()[1] + pool.bytes_allocated() - arrow) / 1e6
    finally:
        tracemalloc.stop()


def runtime(rows: datasets.Dataset, folder: Path) -> dict[str, Any]:
    """Returns what a trainer would give a component."""
    held_out = TokenRows(16, seed=9)
    manager = MixtureManager(["a", "b"], [len(rows), len(rows)], [0.5, 0.5], seed=1)
    return {
        "dataset": rows,
        "eval_dataset": held_out,
        "mixer_eval_dataset": {"a": held_out, "b": held_out},
        "mixture_manager": manager,
        "accelerator": None,
        "data_collator": pad_collate,
        "output_dir": str(folder),
        "cache_dir": str(folder / "cache"),
        "tokenizer": tiny_tokenizer(),
        "seed": 1,
    }


class Seen:
    """Stands for the losses that training has seen."""

    def __init__(self, rows: datasets.Dataset) -> None:
        self.size = len(rows)

    def are_of(self, dataset: Any) -> bool:
        """Returns whether these are those of a dataset."""
        return len(dataset) == self.size

    def of(self, name: str, rows_S: Any = None, **how: Any) -> Any:
        """Returns a random loss for each row: (N,)."""
        return np.random.default_rng(2).random(self.size)


def walked(kind: Kind, name: str, params: dict[str, Any], given: dict[str, Any], batch: int) -> str:
    """Returns the cells of a component's line."""
    if name in NOT_WALKED:
        return f"- | - | - | - | {NOT_WALKED[name]}"
    component: list[Any] = []

    def first() -> None:
        made = construct(find(kind, name), PARAMS.get(name, {}) | params, given)
        made.bind(name, 1)
        component.append(made)
        update(0)

    def update(number: int) -> None:
        seen = Seen(given["dataset"]) if component[0].takes_seen else None
        context = UpdateContext(number, 10, number, 10, 1e-3, None, scores=seen)
        if kind is SELECTOR:
            component[0].select(model=None, step_id=number, num_samples=batch, context=context)
            return
        if component[0].observes:
            component[0].observe(number, np.array([1.0, 2.0]), np.array([100, 100]))
        given["mixture_manager"].set_proportions(component[0].mix(model=None, step_id=number, context=context))
        given["mixture_manager"].plan(batch)

    try:
        once = measured(first)
        started = time.process_time()
        update(1)
        seconds = time.process_time() - started
        _, peak = measured(lambda: update(2))
    except ConfigError as error:
        return f"- | - | - | - | {str(error).splitlines()[-1].partition(' -> ')[0].strip(' -')}"
    return f"{once[0]:.2f} | {once[1]:.0f} | {seconds:.3f} | {peak:.1f} | "


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=at_least(1), default=10_000_000)
    parser.add_argument("--batch", type=at_least(1), default=512, help="rows that an update asks for")
    parser.add_argument("--only", nargs="*", help="names of components, and 'core'")
    given = parser.parse_args()
    if given.rows < 10 * given.batch:
        parser.error(
            f"argument --rows: found {given.rows}, needed: 10 times --batch {given.batch}, the most candidates"
        )
    quieten(1)
    print(f"{machine('cpu')}; {given.rows} rows, {given.batch} an update")
    with tempfile.TemporaryDirectory() as folder, without_model():
        rows = rows_on_disk(Path(folder), given.rows)
        np.save(Path(folder) / "scores.npy", np.random.default_rng(2).random(given.rows))
        PARAMS["scores"] = {"file": str(Path(folder) / "scores.npy")}
        vectors = np.random.default_rng(3).standard_normal((given.rows, WIDTH), np.float32)
        np.save(Path(folder) / "vectors.npy", vectors)
        PARAMS["semdedup"] = {"vectors": str(Path(folder) / "vectors.npy")}
        objects = runtime(rows, Path(folder))
        print("| component | first, CPU s | MB | update, CPU s | MB | |")
        print("| --- | --- | --- | --- | --- | --- |")
        if not given.only or "core" in given.only:
            for what, do in (("lengths of all rows", row_lengths), ("fingerprint of all rows", dataset_digest)):
                seconds, peak = measured(lambda do=do: do(rows))
                print(f"| {what} | {seconds:.2f} | {peak:.0f} | - | - | |", flush=True)
        for kind in (SELECTOR, MIXER):
            for name in names(kind):
                if given.only and name not in given.only:
                    continue
                print(f"| {kind.name} {name} | {walked(kind, name, {}, objects, given.batch)} |", flush=True)
                if name in SCORED:
                    few = walked(kind, name, {"candidates": 10 * given.batch}, objects, given.batch)
                    print(f"| {kind.name} {name}, candidates: {10 * given.batch} | {few} |", flush=True)
                if name == READS_TEXT:
                    words = walked(kind, name, {"features": "words"}, objects, given.batch)
                    print(f"| {kind.name} {name}, words | {words} |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
