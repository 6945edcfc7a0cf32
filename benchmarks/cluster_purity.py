"""Whether ``mixture_by: cluster:K`` finds the sources of rows whose families are known.

    python -m benchmarks.cluster_purity --seeds 5

The rows are those of the benchmark of selectors: ten families of tasks, 200 rows of each. They are grouped by hashed
n-grams and by the hidden states of a small model that has been trained on such rows. Purity is the share of rows whose
family is the commonest of their group; with groups drawn at random it is near that of chance, which stands beside it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from accelerate import Accelerator
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import RunSpec
from dataflex.testing import pad_collate
from dataflex.trainer.clustered_rows import clustered_sources
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from benchmarks.common import add_device, add_threads, at_least, machine, quieten
from benchmarks.quality_data import base_model, pool, world
from benchmarks.selection_quality import spread

GROUPS = (10, 20, 40)
EMBEDDINGS = ("ngrams", "model")
BASE_STEPS = 300
"""Optimizer steps of the model whose hidden states are taken."""


def purity(codes_N: NDArray[np.int64], families: Sequence[str]) -> float:
    """Returns the share of rows whose family is the commonest one of their group."""
    groups: dict[int, Counter[str]] = {}
    for code, family in zip(codes_N.tolist(), families, strict=True):
        groups.setdefault(code, Counter())[family] += 1
    return sum(max(found.values()) for found in groups.values()) / len(families)


def grouped(rows: list[Any], count: int, embedding: str, model: Any, seed: int, folder: Path) -> NDArray[np.int64]:
    """Returns the group of each row, as a run forms them."""
    keys = DataflexArguments("dynamic_mix", mixture_by=f"cluster:{count}", mixture_embedding=embedding)
    host: Any = SimpleNamespace(
        spec=RunSpec(keys),
        accelerator=Accelerator(cpu=model is None or model.device.type == "cpu"),
        seed=seed,
        model=model,
        output_dir=str(folder),
        args=SimpleNamespace(resume_from_checkpoint=None),
        processing_class=None,
        scoring_collator=pad_collate,
    )
    return clustered_sources(host, rows).codes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=at_least(1), default=5)
    parser.add_argument("--only", choices=EMBEDDINGS, help="one of what rows are alike by; default: both")
    add_threads(parser)
    add_device(parser)
    options = parser.parse_args()
    quieten(options.threads)
    shared = world()
    with tempfile.TemporaryDirectory() as temporary:
        wanted = (options.only,) if options.only else EMBEDDINGS
        model: Any = None
        if "model" in wanted:
            base_model(shared, Path(temporary, "model"), BASE_STEPS)
            model = AutoModelForCausalLM.from_pretrained(Path(temporary, "model")).to(options.device)
        pools = [pool(shared, None, seed) for seed in range(options.seeds)]
        families = len(set(pools[0].families))
        print(f"{machine(options.device)}; {options.seeds} seeds, {len(pools[0].rows)} rows of {families} families")
        print("| rows are alike by | groups | purity | of random groups | seconds |")
        print("| --- | --- | --- | --- | --- |")
        for embedding in wanted:
            for count in GROUPS:
                found, chance, seconds = [], [], []
                for seed, own in enumerate(pools):
                    began = time.perf_counter()
                    codes_N = grouped(own.rows, count, embedding, model, seed, Path(temporary, "none"))
                    seconds.append(time.perf_counter() - began)
                    found.append(purity(codes_N, own.families))
                    chance.append(purity(np.random.default_rng(seed).permutation(codes_N), own.families))
                print(
                    f"| {embedding} | {count} | {spread(found, 3)} | {spread(chance, 3)} | {np.mean(seconds):.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
