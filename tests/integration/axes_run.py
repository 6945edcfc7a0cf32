"""Composed runs through LLaMA-Factory, and what their record says: for the tests of every combination of axes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from dataflex.planning.pool import Pool
from dataflex.run.record import read_trace
from dataflex.scoring.named_scores import NamedScores
from feature_run import Watched, watch
from numpy.typing import NDArray

AXES = ("select", "mix", "order", "weight")
COMBINATIONS = [names for size in range(1, 5) for names in itertools.combinations(AXES, size)]
WARMUP, INTERVAL, UPDATES, BATCH = 2, 3, 3, 4
STEPS = WARMUP + INTERVAL * UPDATES
STARTS = range(WARMUP, STEPS, INTERVAL)
KEEP, EVERY, WEIGHS_FROM = 0.5, 2, 4
SHARES = (0.7, 0.3)
DATASETS = {"sft": ("instructions", "instructions_eval"), "pt": ("code", "prose")}

PLUGIN = '''
"""Selectors whose choice can be told from a row alone."""
import zlib
import numpy as np
from dataflex.core.registry import register_selector
from dataflex.train.selector.base_selector import Selection, Selector

@register_selector("by_content")
class ByContent(Selector):
    """The rows with the highest digests of their tokens, the highest first."""

    draws = False

    def __init__(self, salt=0, **run):
        super().__init__(**run)
        self.salt = salt

    def select(self, model, step_id, num_samples, **kwargs):
        scores = np.array([content_score(self.dataset[i], self.salt) for i in range(len(self.dataset))])
        best = np.argsort(-scores, kind="stable")[:num_samples]
        return Selection(best, scores[best])

@register_selector("prunes")
class Prunes(Selector):
    """The first rows, those with an even number at half of their weight, the others at twice of it."""

    weighs, draws = True, False

    def select(self, model, step_id, num_samples, **kwargs):
        rows = np.arange(num_samples)
        return Selection(rows, weights=np.where(rows % 2, 2.0, 0.5))

def content_score(row, salt):
    return zlib.crc32(np.asarray([salt, *row["input_ids"]], dtype=np.int64).tobytes()) / 2**32
'''
OURS: Mapping[str, Any] = {
    "selector": [{"component": "loss", "keep": KEEP, "every": EVERY}, "loss"],
    "mixer": "odm",
    "order": {"component": "saw", "params": {"window": 3}},
    "weighter": {"component": "loss", "from": WEIGHS_FROM},
}
BY_CONTENT: Mapping[str, Any] = OURS | {
    "selector": [
        {"component": "by_content", "keep": KEEP, "every": EVERY, "params": {"salt": 1}},
        {"component": "by_content", "params": {"salt": 2}},
    ],
    "mixer": "random",
    "order": {"component": "stair", "params": {"window": 3, "ascending": False}},
}
FILTER_ALONE: Mapping[str, Any] = OURS | {
    "selector": BY_CONTENT["selector"][0],
    "mixer": {"component": "odm", "every": 2},
}
KEYS = dict(zip(AXES, ("selector", "mixer", "order", "weighter"), strict=True))


def configuration(workspace: Path, stage: str, names: tuple[str, ...], axes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the run of some axes on a stage, as its YAML has it."""
    base = {"sft": "select_loss", "pt": "mix_random"}[stage]
    keys = yaml.safe_load((workspace / f"{base}.yaml").read_text(encoding="utf-8"))
    for key in ("component_name", "update_times", "mixture_sample_rule", "init_mixture_proportions", "eval_dataset"):
        keys.pop(key, None)
    mixes = {"mixture_sample_rule": "mixture", "init_mixture_proportions": list(SHARES)} if "mix" in names else {}
    return (
        keys
        | {"train_type": "dynamic", "dataset": ",".join(DATASETS[stage]), "do_eval": False}
        | {"plugins": [str(workspace / "by_content.py")], **mixes, **{KEYS[name]: axes[KEYS[name]] for name in names}}
        | ({"train_step": STEPS} if names == ("weight",) else schedule())
    )


def schedule() -> dict[str, int]:
    """Returns when the runs update."""
    return {"warmup_step": WARMUP, "update_step": INTERVAL, "update_times": UPDATES}


@dataclass
class Record:
    """What a composed run has left, and what it takes to read it.

    Attributes:
        seen: The run.
        kept: Step -> (N,) bool, the rows that the filters keep from there on.
        losses: Step -> row -> its loss, as the order by loss was given them.
    """

    seen: Watched
    kept: dict[int, NDArray[np.bool_]] = field(default_factory=dict)
    losses: dict[int, dict[int, float]] = field(default_factory=dict)

    def lines(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Returns the lines of the trace of a kind; None for all."""
        return [line for line in read_trace(self.seen.out) if kind in (None, line["kind"])]

    @property
    def segments(self) -> dict[int, dict[str, Any]]:
        """Step -> the arrays of the segment that begins there."""
        files = sorted((self.seen.out / "dataflex_selections").iterdir())
        return {int(file.stem.removeprefix("step_")): dict(np.load(file)) for file in files}

    @property
    def rows(self) -> Any:
        """The train dataset."""
        return self.seen.trainer.train_dataset

    @property
    def sources(self) -> list[tuple[int, int]]:
        """First row and number of rows of each source."""
        sizes = self.rows.sizes if hasattr(self.rows, "sizes") else [len(self.rows)]
        return [(int(sum(sizes[:k])), int(size)) for k, size in enumerate(sizes)]

    def pool(self, step: int) -> NDArray[np.bool_]:
        """Returns which rows may be trained on in the segment that begins after so many steps."""
        before = [start for start in self.kept if start <= step]
        return self.kept[max(before)] if before else np.ones(len(self.rows), dtype=np.bool_)


def watched(monkeypatch: pytest.MonkeyPatch, out: Path) -> Record:
    """Returns the record of the run that is made next, with what its filters keep."""
    record, keep, of = Record(watch(monkeypatch, out)), Pool.keep, NamedScores.of

    def keep_(pool: Pool, number: int, rows: NDArray[np.int64], who: str) -> None:
        keep(pool, number, rows, who)
        record.kept[record.seen.trainer.state.global_step] = pool.mask.copy()

    def of_(scores: NamedScores, name: str, rows: Any = None, **how: Any) -> NDArray[np.float64]:
        found = of(scores, name, rows, **how)
        if name == "loss" and rows is not None:
            step = record.seen.trainer.state.global_step
            record.losses[step] = dict(zip(rows.tolist(), found.tolist(), strict=True))
        return found

    monkeypatch.setattr(Pool, "keep", keep_)
    monkeypatch.setattr(NamedScores, "of", of_)
    return record


def divided(shares: Any, total: int, owed: Any) -> list[int]:
    """Returns rows of each source, by largest remainder; what rounding took is owed, and ``owed`` is changed."""
    counts = [int(share * total) for share in shares]
    order = sorted(range(len(shares)), key=lambda k: -(shares[k] * total - counts[k] + owed[k]))
    for k in order[: total - sum(counts)]:
        counts[k] += 1
    for k, share in enumerate(shares):
        owed[k] += share * total - counts[k]
    return counts
