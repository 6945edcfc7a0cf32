"""Every combination of selecting, mixing, ordering and weighting, on sft and pt, by the record of the run."""

from __future__ import annotations

import zlib
from pathlib import Path

import axes_run
import numpy as np
import pytest
import yaml
from axes_run import (
    BATCH,
    BY_CONTENT,
    COMBINATIONS,
    EVERY,
    FILTER_ALONE,
    INTERVAL,
    KEEP,
    OURS,
    SHARES,
    STARTS,
    STEPS,
    WARMUP,
    WEIGHS_FROM,
    configuration,
    divided,
    watched,
)
from dataflex.core.context import UpdateContext
from dataflex.core.decision_hash import decision_hash
from dataflex.rows.lengths import row_lengths

pytestmark = pytest.mark.llamafactory

FILTERED = [names for names in COMBINATIONS if "select" in names]
RUNS = [("sft", names, "ours") for names in COMBINATIONS]
RUNS += [("pt", names, "by content") for names in COMBINATIONS]
RUNS += [("sft", names, "filter alone") for names in FILTERED]
SETS = {"ours": OURS, "by content": BY_CONTENT, "filter alone": FILTER_ALONE}


@pytest.fixture(scope="module")
def made(workspace):
    (workspace / "by_content.py").write_text(axes_run.PLUGIN)
    return workspace


def by(names, which, stage):
    """Where the order's scores come from: the selector where one chooses, else the loss or the length."""
    if "select" in names and which != "filter alone":
        return {"by": "selector"}
    return {"by": "length"} if stage == "sft" else {"by": "loss", "over": "stretch"}


@pytest.fixture
def run_axes(made, train, tmp_path, monkeypatch):
    def run_axes_(stage, names, which, *more):
        axes = dict(SETS[which])
        axes["order"] = axes["order"] | by(names, which, stage)
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(configuration(made, stage, names, axes)))
        with monkeypatch.context() as patched:
            record = watched(patched, tmp_path / "run")
            assert train(str(file), *more) == 0
        return record

    return run_axes_


@pytest.mark.parametrize(
    ("stage", "names", "which"), RUNS, ids=lambda each: each if isinstance(each, str) else "+".join(each)
)
def test_the_record_is_what_the_axes_say(run_axes, stage, names, which):
    record = run_axes(stage, names, which)
    assert record.seen.trainer.state.global_step == STEPS
    assert all(np.isfinite(record.seen.losses))
    for name, check in CHECKS.items():
        if name in names:
            check(record, names, which, stage)
    lines_are_there(record, names, which)


def lines_are_there(record, names, which):
    """One line for each update and each axis that takes part in it, in the order in which they act."""
    kinds = [kind for kind in ("filter", "mix", "select", "order") if acts(kind, names, which)]
    expected = [
        (step, update, kind) for update, step in enumerate(STARTS) for kind in kinds if update % every(kind, which) == 0
    ]
    found = [line for line in record.lines() if "update" in line]
    assert [(line["step"], line["update"], line["kind"]) for line in found] == expected
    weighed = [line["step"] for line in record.lines("weight")]
    assert weighed == (list(range(WEIGHS_FROM, STEPS)) if "weight" in names else [])
    for line in found:
        rows = record.segments[line["step"]]["indices"]
        assert len(rows) == INTERVAL * BATCH
        if line["kind"] != "filter":
            assert line["num_samples"] == len(rows)
            assert line["distinct"] == len(np.unique(rows))
        if line["kind"] in ("mix", "order"):
            assert line["decision_hash"] == decision_hash(rows)
    if names != ("weight",):
        assert list(record.segments) == [0, *STARTS]
    assert sum(len(each["indices"]) for each in record.segments.values()) == STEPS * BATCH
    alone = len(record.seen.trainer.spec.axes) == 1
    groups = {"dataflex" if alone else f"dataflex/{kind}" for kind in kinds}
    logged = {key for entry in record.seen.trainer.state.log_history for key in entry}
    assert {f"{group}/seconds" for group in groups} <= logged


def acts(kind, names, which):
    axis = "select" if kind == "filter" else kind
    return axis in names and (kind != "select" or which != "filter alone")


def every(kind, which):
    return EVERY if kind == "filter" or (kind == "mix" and which == "filter alone") else 1


def selects(record, names, which, stage):
    """The filter keeps its share, the segment is of it, and the chosen rows are the selector's."""
    size = len(record.rows)
    kept = int(KEEP * size + 0.5)
    for line in record.lines("filter"):
        mask = record.pool(line["step"])
        assert (line["keep"], line["of"], line["num_samples"], mask.sum()) == (KEEP, size, kept, kept)
        assert line["decision_hash"] == decision_hash(np.flatnonzero(mask))
        if which != "ours":
            assert mask.nonzero()[0].tolist() == sorted(best(record, range(size), kept, salt=salt(which, 0)))
    for step in STARTS:
        arrays = record.segments[step]
        assert record.pool(step)[arrays["indices"]].all()
        assert ("scores" in arrays) == (which != "filter alone")
        for first, size in record.sources:
            mine = np.flatnonzero((arrays["indices"] >= first) & (arrays["indices"] < first + size))
            pool = first + np.flatnonzero(record.pool(step)[first : first + size])
            rows = arrays["indices"][mine]
            counts = np.bincount(rows, minlength=len(record.rows))[pool]
            whole = which != "filter alone"  # a selector begins anew at each update, a pass goes on
            assert counts.max() - counts.min() <= (1 if whole else 2)
            if which == "by content":
                again, rest = divmod(len(rows), len(pool))
                assert sorted(rows) == sorted([*np.repeat(pool, again), *best(record, pool, rest, salt=2)])
                np.testing.assert_array_equal(arrays["scores"][mine], [content(record, row, 2) for row in rows])


def salt(which, number):
    return SETS[which]["selector"]["params"]["salt"] if which == "filter alone" else number + 1


def content(record, row, salt):
    digest = np.asarray([salt, *record.rows[int(row)]["input_ids"]], dtype=np.int64)
    return zlib.crc32(digest.tobytes()) / 2**32


def best(record, rows, count, salt):
    return sorted((int(row) for row in rows), key=lambda row: (-content(record, row, salt), row))[:count]


def mixes(record, names, which, stage):
    """Each segment has the rows of each source that the shares of the moment give it, exactly."""
    shares, owed, total = SHARES, [0.0, 0.0], np.zeros(2, dtype=int)
    lines = {line["step"]: line for line in record.lines("mix")}
    for step, arrays in record.segments.items():
        if step in lines:
            shares = list(lines[step]["proportions"].values())
        assert sum(shares) == pytest.approx(1)
        rows = arrays["indices"]
        counts = [int(((rows >= first) & (rows < first + size)).sum()) for first, size in record.sources]
        assert counts == divided(shares, len(rows), owed)
        total += counts
        if step in lines:
            assert list(lines[step]["rows_seen"].values()) == total.tolist()
    assert len(lines) == -(-len(STARTS) // every("mix", which))
    assert len({tuple(line["proportions"].values()) for line in lines.values()}) == len(lines), "the mixer moves them"


def orders(record, names, which, stage):
    """Segments come in the pattern: those of a stretch, or what is left of the pass of each source."""
    part = record.seen.trainer.spec.order
    if part.over == "run":
        orders_the_run(record)
        return
    for update, step in enumerate(STARTS):
        arrays = record.segments[step]
        scores = {
            "selector": lambda arrays=arrays: arrays["scores"],
            "loss": lambda step=step, arrays=arrays: np.array([record.losses[step][row] for row in arrays["indices"]]),
        }[part.by]()
        assert len(np.unique(scores)) == len(np.unique(arrays["indices"]))
        np.testing.assert_array_equal(scores, scores[arranged(record, scores, update)])  # whatever order they came in
        assert scores.tolist() not in (sorted(scores), sorted(scores)[::-1])


def arranged(record, scores, update):
    """Returns what the run's order makes of scores: a pattern tells them by their rank alone."""
    context = UpdateContext(
        step=0, update=update, updates=len(STARTS), total_steps=STEPS, learning_rate=0.0, optimizer=None
    )
    return record.seen.trainer.components.stages.order.arrange(scores, context=context)


def orders_the_run(record):
    lengths = row_lengths(record.rows).astype(float)
    for first, size in record.sources:
        seen, left, arrangements = set(), None, 1  # the first was drawn at random, for the warm-up
        for step, arrays in record.segments.items():
            own = [row for row in arrays["indices"].tolist() if first <= row < first + size]
            if step == 0:
                assert len(set(own)) == len(own)
                seen |= set(own)
                continue
            pool = {first + i for i in np.flatnonzero(record.pool(step)[first : first + size]).tolist()}
            left = None if left is None else [row for row in left if row in pool]
            expected = []
            while len(expected) < len(own):
                if not left:
                    if not pool - seen:
                        seen = set()
                    rest = np.array(sorted(pool - seen))
                    left = rest[arranged(record, lengths[rest], arrangements)].tolist()
                    arrangements += 1
                expected.append(left.pop(0))
                seen.add(expected[-1])
            assert own == expected, step


def weighs(record, names, which, stage):
    """The lines say of the weights of each step what they were."""
    sizes = [len(losses) for losses in record.seen.weighed]
    assert sum(sizes) == (STEPS - WEIGHS_FROM) * BATCH
    for line in record.lines("weight"):
        assert (line["component"], line["steps"], line["samples"]) == ("loss", 1, BATCH)
        assert line["min"] <= line["mean"] <= line["max"]
        assert line["min"] < line["max"]
        assert line["effective_share"] == pytest.approx(line["effective"] / BATCH)
        assert 1 <= line["effective"] < BATCH
        if "mix" in names:
            assert set(line["sources"]) <= set(record.rows.names)


CHECKS = {"select": selects, "mix": mixes, "order": orders, "weight": weighs}


TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial-plugin" / "src" / "dataflex_tutorial"
GUIDE = {
    "selector": "custom_first",
    "mixer": "custom_random",
    "order": {"component": "saw", "by": "length"},
    "weighter": {"component": "custom_uniform", "from": WARMUP},
}


@pytest.mark.parametrize("selector", ["custom_first", "prunes"])
def test_components_that_know_one_axis_run_together_unchanged(made, train, tmp_path, monkeypatch, selector):
    keys = configuration(made, "sft", axes_run.AXES, GUIDE | {"selector": selector})
    keys["plugins"] += [str(TUTORIAL / f"{kind}.py") for kind in ("selector", "mixer", "weighter", "hooks")]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(keys))
    with monkeypatch.context() as patched:
        record = watched(patched, tmp_path / "run")
        assert train(str(tmp_path / "run.yaml")) == 0
    mixes(record, axes_run.AXES, "ours", "sft")
    lengths = row_lengths(record.rows).astype(float)
    for update, step in enumerate(STARTS):
        arrays = record.segments[step]
        rows, first = arrays["indices"], record.sources[1][0]
        counts = [int((rows < first).sum()), int((rows >= first).sum())]
        assert sorted(rows) == [*range(counts[0]), *range(first, first + counts[1])]  # the first rows of each source
        assert lengths[rows].tolist() == lengths[rows][arranged(record, lengths[rows], update)].tolist()
        drawn = np.random.default_rng([record.seen.trainer.seed, step]).dirichlet(np.ones(2))
        assert record.lines("mix")[update]["proportions"] == pytest.approx(
            dict(zip(record.rows.names, drawn, strict=True))
        )
        assert ("weights" in arrays) == (selector == "prunes")
        if selector == "prunes":
            np.testing.assert_array_equal(np.sort(arrays["weights"]), np.sort(np.where(rows % 2, 2.0, 0.5)))
            np.testing.assert_array_equal(arrays["weights"], np.where(rows % 2, 2.0, 0.5))
    for line in record.lines("weight"):
        assert (line["mean"], line["min"], line["max"], line["samples"]) == (1, 1, 1, BATCH)
