"""Folders of runs of every kind, as `docs/outputs.md` describes them, made up: for the tests of the report.

Each function writes a folder and returns it. Numbers are drawn from a fixed seed, so that tests can count them again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

RUN = "0123456789abcdef"
BATCH = 16
WORDS = (
    "the", "model", "data", "loss", "step", "learns", "rows", "from", "a", "few", "many", "when", "which", "gives",
    "takes", "small", "large", "batch", "token",
)  # fmt: skip
HOSTILE = (
    "<script>window.hurt = 1</script>",
    "</script><script>window.hurt = 2</script>",
    "<!-- <script> --> <img src=x onerror='window.hurt = 3'>",
    "# Markdown **bold** [link](https://example.org/x) `code`",
    "\u202eright to left override\u202c and \u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd",
    "a nul \x00, a bell \x07, an escape \x1b[31m and a delete \x7f",
    "line \u2028 and paragraph \u2029 separators, and \ufffe",
    "x" * 100_000,
)


def dump(path: Path, *lines: Mapping[str, Any]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def summary(scores: np.ndarray) -> dict[str, Any]:
    counts, edges = np.histogram(scores, bins=20)
    names = ("min", "q1", "median", "q3", "max")
    quartiles = dict(zip(names, np.percentile(scores, (0, 25, 50, 75, 100)).tolist(), strict=True))
    return {
        "mean": float(scores.mean()),
        "std": float(scores.std()),
        **quartiles,
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


class Folder:
    """A folder that is written file by file."""

    def __init__(self, path: Path, rows: int | None, sources: Sequence[tuple[str, int | None]], steps: int) -> None:
        path.mkdir(parents=True)
        (path / "dataflex_selections").mkdir()
        self.path, self.rows, self.sources, self.steps = path, rows, sources, steps
        self.random = np.random.default_rng(7)
        self.trace: list[dict[str, Any]] = []
        self.segments: list[dict[str, Any]] = []
        firsts = np.cumsum([0, *(size or 0 for _, size in sources)])
        self.firsts = [place * 2**40 if size is None else int(firsts[place]) for place, (_, size) in enumerate(sources)]

    def source_of(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.firsts, rows, side="right") - 1

    def segment(self, step: int, rows: np.ndarray, update: int | None, **arrays: np.ndarray) -> None:
        file = f"step_{step:08d}.npz"
        np.savez(self.path / "dataflex_selections" / file, indices=rows.astype(np.int64), **arrays)
        places = self.source_of(rows)
        by_source = {
            name: {"rows": int((places == place).sum()), "tokens": int((places == place).sum()) * (40 + 25 * place)}
            for place, (name, _) in enumerate(self.sources)
        }
        tokens = sum(each["tokens"] for each in by_source.values())
        line = {"step": step, "file": file, "steps": len(rows) // BATCH, "rows": len(rows), "tokens": tokens}
        self.segments.append(line | {"distinct": len(np.unique(rows)), "update": update, "sources": by_source})

    def about(self, does: str, train_type: str, parts: Sequence[tuple[str, str]], **more: Any) -> None:
        step = more.get("step", self.steps)
        sources = [
            {"name": name, "first": first, "rows": size, "tokens": None}
            for (name, size), first in zip(self.sources, self.firsts, strict=True)
        ]
        updates = len({line["update"] for line in self.trace if line.get("update") is not None})
        dump(
            self.path / "dataflex_run.json",
            {
                "version": 1,
                "run": RUN,
                "does": does,
                "train_type": train_type,
                "status": "finished",
                "error": None,
                "starts": [{"step": 0, "at": "2026-11-28T12:00:00+00:00"}],
                "updated": "2026-11-28T12:34:00+00:00",
                "step": step,
                "total_steps": self.steps,
                "updates": updates,
                "batch": BATCH,
                "world_size": 1,
                "rows": self.rows,
                "sources": sources,
                "parts": [{"kind": kind, "component": name, "preset": name} for kind, name in parts],
                "seconds": {"training": 20.6, "deciding": 3.4, "saving": 0.5, "evaluating": 1.0},
                "tokens": 123456,
                "warnings": [{"text": "the learning rate is 0 at the first step", "times": 2}],
            }
            | more,
        )
        dump(self.path / "dataflex_trace.jsonl", *self.trace)
        dump(self.path / "dataflex_segments.jsonl", *self.segments)

    def metrics(
        self, until: int, names: Sequence[str] = ("eval_loss",), start: float = 2.31, end: float = 2.02
    ) -> None:
        lines: list[dict[str, Any]] = []
        for step in range(5, until + 1, 5):
            loss = end + (start + 0.4 - end) * np.exp(-3 * step / self.steps) + self.random.normal(0, 0.03)
            lines.append({"step": step, "seconds": step * 0.2, "loss": float(loss), "learning_rate": 1e-4})
        for step in range(0, until + 1, max(1, self.steps // 8)):
            part = step / self.steps
            lines.append(
                {"step": step}
                | {
                    name: round(start + (end - start) * (1 - (1 - part) ** 2) + 0.05 * place, 6)
                    for place, name in enumerate(names)
                }
            )
        dump(self.path / "dataflex_metrics.jsonl", *sorted(lines, key=lambda line: line["step"]))

    def texts(self, text: Callable[[int], str], source: Callable[[int], str] | None = None, every: int = 1) -> None:
        places = range(0, self.rows or 0, every)
        names = [name for name, _ in self.sources]
        where = source or (lambda row: names[int(self.source_of(np.array([row]))[0])])
        lines = [
            {"row": row, "source": where(row), "tokens": 45, "text": text(row), "cut": len(text(row)) >= 2000}
            for row in places
        ]
        targets = [
            {"set": "eval", "target": target, "tokens": 30, "text": self.target(target), "cut": False}
            for target in range(16)
        ]
        head = {"version": 1, "run": RUN, "rows": self.rows, "characters": 2000}
        dump(self.path / "dataflex_rows.jsonl", head, *lines, *targets)

    @staticmethod
    def target(number: int) -> str:
        return f"Question {number}: Ann has {number + 3} apples and gives 2 away. How many are left? #### {number + 1}"

    def sentence(self, row: int) -> str:
        words = np.random.default_rng(row).choice(WORDS, size=6 + row % 60)
        return f"Row {row}: " + " ".join(words) + "."

    def why(
        self, step: int, update: int, component: str, rows: Sequence[int], key: str = "score"
    ) -> list[dict[str, Any]]:
        shares = (0.41, 0.22, -0.05)
        return [
            {
                "step": step,
                "update": update,
                "component": component,
                "row": int(row),
                key: round(0.9 - 0.01 * place, 4),
                "seconds": 0.4,
                "targets": [
                    {"set": "eval", "target": (int(row) + i) % 16, "share": share} for i, share in enumerate(shares)
                ],
            }
            for place, row in enumerate(rows)
        ]

    def config(self, **keys: Any) -> None:
        content = (
            {
                "train_type": "dynamic_select",
                "warmup_step": 20,
                "update_step": 20,
                "model_name_or_path": "models/small",
                "dataset": ",".join(name for name, _ in self.sources),
                "learning_rate": 1e-4,
                "output_dir": str(self.path),
                "hub_token": "<secret from $DATAFLEX_SECRET_HUB_TOKEN>",
            }
            | keys
            | {
                "dataflex_run": {"id": RUN, "does": "made up", "finished": self.steps, "files": {}},
                "dataflex_versions": {"dataflex-core": "0.1.0", "torch": "2.11.0"},
            }
        )
        text = yaml.safe_dump(content, sort_keys=False, explicit_end=True)
        (self.path / "dataflex_config.yaml").write_text(text, encoding="utf-8")


def select_less(
    path: Path, status: str = "finished", until: int = 100, texts: Sequence[str] = (), **about: Any
) -> Path:
    """300 rows of one dataset, of which 60 are of another kind; less finds these. Updates at 20, 40, 60 and 80."""
    folder = Folder(path, 300, [("pool", 300)], 100)
    wanted = np.arange(300) % 5 == 0
    folder.segment(0, folder.random.permutation(300)[:300].repeat(2)[: 20 * BATCH], None)
    whys: list[dict[str, Any]] = []
    for update, step in enumerate(range(20, 100, 20)):
        if step > until:
            break
        scores = folder.random.normal(0.1, 0.08, 300) + wanted * (0.25 + 0.07 * update)
        best = np.argsort(-scores)[:60]
        rows = folder.random.permutation(np.resize(best, 20 * BATCH))
        folder.segment(step, rows, update, scores=scores[rows])
        folder.trace.append(
            {
                "step": step,
                "kind": "select",
                "component": "less",
                "update": update,
                "num_samples": len(rows),
                "distinct": 60,
                "seconds": 0.8 + 0.05 * update,
                "decision_hash": "00",
                "scores": summary(scores[rows]),
                "candidates": summary(scores),
                "explain_seconds": 0.1,
            }
        )
        order = np.argsort(-scores)
        whys += folder.why(step, update, "less", [*order[:8], *order[-8:]])
        last = {"scores": scores.astype(np.float32), "step": step, "run": RUN, "component": "less"}
        np.savez(folder.path / "dataflex_last_scores.npz", **last)
    dump(folder.path / "dataflex_why.jsonl", *whys)
    folder.metrics(until)
    shown = list(texts) + [folder.sentence(row) for row in range(len(texts), 300)]
    folder.texts(lambda row: shown[row], lambda row: "gsm8k" if wanted[row] else "alpaca")
    folder.config(component_name="less", update_times=4, train_type="dynamic_select")
    folder.about("rows by less", "dynamic_select", [("select", "less")], status=status, step=until, **about)
    return folder.path


def select_random(path: Path) -> Path:
    folder = Folder(path, 300, [("pool", 300)], 100)
    wanted = np.arange(300) % 5 == 0
    folder.segment(0, folder.random.permutation(300).repeat(2)[: 20 * BATCH], None)
    for update, step in enumerate(range(20, 100, 20)):
        rows = np.resize(folder.random.permutation(300)[:60], 20 * BATCH)
        folder.segment(step, rows, update)
        folder.trace.append(
            {
                "step": step,
                "kind": "select",
                "component": "random",
                "update": update,
                "num_samples": len(rows),
                "distinct": 60,
                "seconds": 0.002,
                "decision_hash": "00",
            }
        )
    folder.metrics(100, start=2.31, end=2.11)
    folder.texts(folder.sentence, lambda row: "gsm8k" if wanted[row] else "alpaca")
    folder.config(component_name="random", update_times=4)
    seconds = {"training": 20.1, "deciding": 0.01, "saving": 0.5, "evaluating": 1.0}
    folder.about("rows by random", "dynamic_select", [("select", "random")], seconds=seconds)
    return folder.path


def mix_odm(path: Path, sources: int = 3, updates: int = 12) -> Path:
    sizes = [
        (f"source_{place}" if sources > 3 else ("code", "docstrings", "prose")[place], 400 + 37 * place)
        for place in range(sources)
    ]
    step_of = 20
    folder = Folder(path, sum(size for _, size in sizes), sizes, step_of * (updates + 1))
    seen = dict.fromkeys((name for name, _ in sizes), 0)
    for number in range(updates + 1):
        step = number * step_of
        raw = np.array([1 + np.sin(0.35 * number + 2 * place) * 0.7 for place in range(sources)]) + 0.05
        shares = raw / raw.sum() if number else np.full(sources, 1 / sources)
        drawn = folder.random.choice(sources, size=step_of * BATCH, p=shares)
        rows = np.array([folder.firsts[place] + folder.random.integers(sizes[place][1]) for place in drawn])
        folder.segment(step, rows, number - 1 if number else None)
        for place, (name, _) in enumerate(sizes):
            seen[name] += int((drawn == place).sum())
        if number:
            proportions = {name: float(share) for (name, _), share in zip(sizes, shares, strict=True)}
            passes = {name: round(seen[name] / size, 6) for name, size in sizes}
            folder.trace.append(
                {
                    "step": step,
                    "kind": "mix",
                    "component": "odm",
                    "update": number - 1,
                    "num_samples": len(rows),
                    "distinct": len(np.unique(rows)),
                    "seconds": 0.01,
                    "decision_hash": "00",
                    "proportions": proportions,
                    "rows_seen": dict(seen),
                    "passes": passes,
                }
            )
        losses = {
            name: {"loss": 3 - 0.1 * number + 0.3 * place % 1.3, "tokens": 999} for place, (name, _) in enumerate(sizes)
        }
        folder.trace.append({"step": step + 19, "kind": "loss", "steps": 20, "sources": losses})
    folder.metrics(folder.steps, ["eval_loss", "eval_code_loss", "eval_prose_loss"])
    folder.texts(folder.sentence)
    proportions_ = [round(1 / sources, 6)] * sources
    folder.config(train_type="dynamic_mix", component_name="odm", init_mixture_proportions=proportions_)
    folder.about("shares by odm", "dynamic_mix", [("mix", "odm")])
    return folder.path


def weight_lines(folder: Folder, until: int, named: bool = True) -> None:
    for step in range(10, until + 1, 10):
        weights = folder.random.lognormal(0, 0.2 + step / 400, 160)
        counts, edges = np.histogram(weights, bins=20, range=(0, 4))
        line = {
            "step": step - 1,
            "kind": "weight",
            "component": "adapt",
            "steps": 10,
            "samples": 160,
            "mean": float(weights.mean()),
            "min": float(weights.min()),
            "max": float(weights.max()),
            "effective": float(weights.sum() ** 2 / (weights**2).sum()),
            "effective_share": float(weights.sum() ** 2 / (weights**2).sum() / 160),
            "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        }
        if named:
            rows = folder.random.permutation(200)[:10].tolist()
            line |= {
                "most": [[row, round(float(w), 4)] for row, w in zip(rows[:5], np.sort(weights)[::-1], strict=False)],
                "least": [[row, round(float(w), 4)] for row, w in zip(rows[5:], np.sort(weights), strict=False)],
                "sources": {name: 0.9 + 0.1 * place + step / 1000 for place, (name, _) in enumerate(folder.sources)},
            }
        folder.trace.append(line)


def weight_adapt(path: Path) -> Path:
    folder = Folder(path, 200, [("books", 120), ("web", 80)], 100)
    folder.segment(0, np.concatenate([folder.random.permutation(200) for _ in range(8)]), None)
    weight_lines(folder, 100)
    rows = [row for line in folder.trace for key in ("most", "least") for row, _ in line[key]]
    dump(folder.path / "dataflex_why.jsonl", *folder.why(100, 0, "adapt", rows[-10:], "weight"))
    folder.metrics(100)
    folder.texts(folder.sentence)
    folder.config(train_type="dynamic_weight", component_name="adapt")
    folder.about("weights by adapt", "dynamic_weight", [("weight", "adapt")])
    return folder.path


def dynamic_all(path: Path) -> Path:
    """A run with a filter, a mixer, a selector, an order and a weighter."""
    folder = Folder(path, 500, [("code", 300), ("prose", 200)], 100)
    folder.segment(0, folder.random.permutation(500)[: 20 * BATCH], None)
    whys: list[dict[str, Any]] = []
    for update, step in enumerate(range(20, 100, 20)):
        share = 0.6 - 0.1 * update
        common = {"step": step, "update": update, "num_samples": 320, "distinct": 320, "decision_hash": "00"}
        losses = folder.random.gamma(4, 0.5, 500)
        scores = folder.random.normal(0.2, 0.1, 500)
        count = int(320 * share)
        pools = [np.arange(300), 300 + np.arange(200)]
        picked = [
            pools[0][np.argsort(-scores[:300])[: min(count, 300)]],
            pools[1][np.argsort(-scores[300:])[: 320 - count]],
        ]
        rows = np.resize(np.concatenate(picked), 320)
        rows = rows[np.argsort(-scores[rows])]
        along = {
            "places": [place / 20 for place in range(20)],
            "scores": scores[rows].reshape(20, 16).mean(1).tolist(),
        }
        shares = {"code": share, "prose": 1 - share}
        folder.segment(step, rows, update, scores=scores[rows])
        folder.trace += [
            common
            | {
                "kind": "filter",
                "component": "loss",
                "seconds": 0.3,
                "keep": 0.8,
                "of": 500,
                "scores": summary(losses),
            },
            common | {"kind": "mix", "component": "odm", "seconds": 0.01, "proportions": shares},
            common
            | {
                "kind": "select",
                "component": "near",
                "seconds": 0.5,
                "scores": summary(scores[rows]),
                "candidates": summary(scores),
            },
            common | {"kind": "order", "component": "saw", "seconds": 0.01, "along": along},
        ]
        whys += folder.why(step, update, "near", np.argsort(-scores)[:8])
    weight_lines(folder, 100)
    folder.trace.sort(key=lambda line: line["step"])
    dump(folder.path / "dataflex_why.jsonl", *whys)
    folder.metrics(100)
    folder.texts(folder.sentence)
    folder.config(
        train_type="dynamic",
        selector=["loss", "near"],
        mixer="odm",
        order="saw",
        weighter="adapt",
        mixture_unit="tokens",
    )
    parts = [("filter", "loss"), ("mix", "odm"), ("select", "near"), ("order", "saw"), ("weight", "adapt")]
    folder.about("rows by near after loss, shares by odm, order saw, weights by adapt", "dynamic", parts)
    return folder.path


def killed(path: Path) -> Path:
    """Killed five steps after its third update: the file of that segment holds rows that were never trained on."""
    select_less(path, "running", 65)
    last = path / "dataflex_trace.jsonl"
    last.write_text(last.read_text("utf-8") + '{"step": 80, "ki', encoding="utf-8")
    return path


def failed(path: Path) -> Path:
    return select_less(path, "failed", 50, error="OutOfMemoryError: CUDA out of memory")


def resumed(path: Path) -> Path:
    starts = [{"step": 0, "at": "2026-11-28T12:00:00+00:00"}, {"step": 40, "at": "2026-11-28T13:00:00+00:00"}]
    return select_less(path, starts=starts)


def static(path: Path) -> Path:
    path.mkdir(parents=True)
    history = [{"step": step, "loss": 3 - step / 60} for step in range(10, 101, 10)]
    history.append({"step": 100, "eval_loss": 1.9})
    dump(path / "trainer_state.json", {"global_step": 100, "max_steps": 100, "log_history": history})
    dump(path / "all_results.json", {"eval_loss": 1.9, "train_runtime": 63.0})
    return path


def old(path: Path) -> Path:
    """A run from before these files: configuration, trace, selections and what transformers writes."""
    select_less(path)
    for name in ("run.json", "metrics.jsonl", "segments.jsonl", "rows.jsonl", "why.jsonl", "last_scores.npz"):
        (path / f"dataflex_{name}").unlink()
    lines = [json.loads(line) for line in (path / "dataflex_trace.jsonl").read_text("utf-8").splitlines()]
    for line in lines:
        line.pop("candidates")
        line.pop("explain_seconds")
        line["scores"] = {key: line["scores"][key] for key in ("mean", "std", "min", "median", "max")}
    dump(path / "dataflex_trace.jsonl", *lines)
    history = [{"step": step, "loss": 3 - step / 60} for step in range(10, 101, 10)]
    dump(path / "trainer_state.json", {"global_step": 100, "max_steps": 100, "log_history": history})
    dump(path / "all_results.json", {"train_runtime": 30.0})
    return path


def streams(path: Path) -> Path:
    folder = Folder(path, None, [("web", None), ("books", None)], 60)
    for number in range(3):
        rows = np.concatenate([np.arange(160) + 160 * number, 2**40 + np.arange(160) + 160 * number])
        folder.segment(20 * number, rows, number - 1 if number else None)
        if number:
            folder.trace.append(
                {
                    "step": 20 * number,
                    "kind": "mix",
                    "component": "odm",
                    "update": number - 1,
                    "num_samples": 320,
                    "distinct": 320,
                    "seconds": 0.01,
                    "decision_hash": "00",
                    "proportions": {"web": 0.5, "books": 0.5},
                    "rows_seen": {"web": 160 * (number + 1), "books": 160 * (number + 1)},
                }
            )
    folder.metrics(60)
    folder.config(train_type="dynamic_mix", component_name="odm", streaming=True)
    folder.about("shares by odm", "dynamic_mix", [("mix", "odm")])
    return folder.path


KINDS: dict[str, Callable[[Path], Path]] = {
    "select": select_less,
    "random": select_random,
    "mix": mix_odm,
    "weight": weight_adapt,
    "dynamic": dynamic_all,
    "killed": killed,
    "failed": failed,
    "resumed": resumed,
    "static": static,
    "old": old,
    "streams": streams,
}


def comparison(folders: Mapping[str, Sequence[Path]]) -> dict[str, Any]:
    """What `dataflex-cli compare FILE` hands to the report, of three arms."""
    arms = [
        {
            "name": name,
            "control": name != "less",
            "folders": [str(path) for path in paths],
            "steps": [100] * len(paths),
            "tokens": [51200] * len(paths),
            "seconds": [25.5] * len(paths),
            "compute": [1.2e12] * len(paths),
        }
        for name, paths in folders.items()
    ]
    less = {
        "values": [2.02, 2.03, 2.01],
        "mean": 2.02,
        "std": 0.01,
        "against": "random",
        "difference": -0.09,
        "low": -0.12,
        "high": -0.06,
        "p": 0.004,
        "wins": 3,
        "bootstrap_low": -0.1,
        "bootstrap_high": -0.08,
        "confidence": 0.975,
        "seeds": 3,
        "verdict": "better",
        "says": "less is better than random by 0.09",
    }
    other = {
        "values": [2.1, 2.12, 2.09],
        "mean": 2.103,
        "std": 0.015,
        "against": "random",
        "difference": -0.007,
        "low": -0.05,
        "high": 0.04,
        "p": 0.6,
        "wins": 2,
        "seeds": 3,
        "verdict": "undecided",
        "says": "cannot be told apart from random with 3 seeds; 9 would be needed for a difference of 0.02",
    }
    control = {"values": [2.11, 2.12, 2.1], "mean": 2.11, "std": 0.01, "seeds": 3}
    found = dict(zip(folders, (less, control, other), strict=False))
    return {
        "level": 0.05,
        "equal": "steps",
        "base": "run.yaml",
        "seeds": [1, 2, 3],
        "arms": arms,
        "metrics": {"eval_loss": {"lower_is_better": True, "arms": found}},
        "says": [
            "less is better than random: its eval loss is 0.09 lower (3 of 3 seeds).",
            "static cannot be told apart from random with 3 seeds; 9 would be needed for a difference of 0.02.",
        ],
    }
