"""A forecast as tables for a person, and as plain values for a program."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dataflex.config.summary import in_words
from dataflex.forecast import passes_price as price
from dataflex.forecast.advice import Advice
from dataflex.forecast.data_size import Rows
from dataflex.forecast.forecast import MOST, Forecast, PlannedSegment

_SHOWN = (7, 3)  # segments at the beginning, and at the end
_UNITS = ("B", "kB", "MB", "GB", "TB")


def page(found: Forecast, advised: Advice | None) -> str:
    """Returns the forecast as text. Its last line says what deciding takes."""
    blocks = [_head(found), _segments(found), _passes(found), _sources(found), _needs(found), _assumed(found)]
    return "\n".join([*("\n".join(block) + "\n" for block in blocks if block), verdict(found, advised)]) + "\n"


def verdict(found: Forecast, advised: Advice | None) -> str:
    """Returns the last line: the share of the compute that deciding takes, and what would lower it."""
    if found.unknown:
        who = " and ".join(found.unknown)
        least = f"; what is known takes about {_percent(found.share)}" if found.deciding_flops else ""
        return f"what {who} costs is not known: the class has no cost(){least}"
    if found.uncounted:
        least = f"deciding will take more than {_percent(found.share)} of the compute; how much"
        known = least if found.deciding_flops else "what deciding takes"
        rows = f"the rows of {' and '.join(found.uncounted)} are not counted here"
        return f"{known} is not known: {rows} -> say how many with --rows N, or set max_samples"
    if not found.deciding_flops:
        return "deciding takes nothing worth counting of the compute"
    line = f"deciding will take about {_percent(found.share)} of the compute"
    return line if advised is None else f"{line}; `{advised.says}` would make it {_percent(advised.share)}"


def plain(found: Forecast, advised: Advice | None) -> dict[str, Any]:
    """Returns the forecast as JSON has it; FLOPs are those that training would do in the same time."""
    data = found.facts.data
    size = found.facts.model.size
    return {
        "does": in_words(found.spec) if found.spec.arguments.dynamic else "trains as LLaMA-Factory does",
        "steps": found.schedule.total,
        "updates": found.schedule.updates,
        "batch": found.batch,
        "ranks": found.facts.ranks,
        "rows": found.rows,
        "tokens": found.tokens,
        "share": found.share,
        "training_flops": found.training_flops,
        "deciding_flops": found.deciding_flops,
        "passes": {
            kind: {"rows": each.rows, "tokens": each.tokens, "flops": each.flops, "as_training": each.equivalent}
            for kind, each in found.passes.items()
        },
        "parts": dict(found.parts),
        "unknown": list(found.unknown),
        "uncounted": list(found.uncounted),
        "segments": [_plain_segment(segment) for segment in found.segments],
        "sources": [
            {
                "name": source.name, "rows": source.count, "tokens_a_row": source.mean, "labels": source.labels,
                "share": found.shares[source.name], "repeats": found.repeats(source), "known_from": source.how,
            }
            for source in data.sources
        ],
        "evaluated": [{"name": rows.name, "rows": rows.count, "tokens_a_row": rows.mean} for rows in data.evaluated],
        "updates_missed": found.updates_missed(),
        "bytes": {
            "device": found.cost.device_bytes, "host": found.cost.host_bytes, "checkpoint": found.cost.state_bytes,
            "cache": found.cost.cache_bytes, "selections": found.selection_bytes,
        },
        "model": None if size is None else {"weights": size.weights, "trainable": size.trainable},
        "notes": list(found.notes),
        "assumed": [line.strip() for line in _assumed(found)[1:]],
        "advice": None if advised is None else {"says": advised.says, "share": advised.share},
        "says": verdict(found, advised),
    }  # fmt: skip


def _plain_segment(segment: PlannedSegment) -> dict[str, Any]:
    return {
        "step": segment.start, "steps": segment.steps, "rows": segment.rows, "tokens": segment.tokens,
        "update": segment.update, "training_flops": segment.training.equivalent,
        "deciding_flops": segment.deciding_flops,
    }  # fmt: skip


def _head(found: Forecast) -> list[str]:
    does = in_words(found.spec) if found.spec.arguments.dynamic else "trains as LLaMA-Factory does, nothing is decided"
    ranks = "" if found.facts.ranks == 1 else f" over {found.facts.ranks} processes"
    updates = {0: "no update", 1: "1 update"}.get(found.schedule.updates, f"{found.schedule.updates:,} updates")
    return [
        does,
        f"{found.schedule.total:,} steps of {found.batch:,} rows{ranks}: {found.rows:,.0f} rows, about "
        f"{found.tokens:,.0f} tokens; {updates}",
    ]


def _segments(found: Forecast) -> list[str]:
    every, (first, last) = list(found.segments), _SHOWN
    rows: list[list[str]] = [["step", "steps", "rows", "tokens", "update", "deciding", "training", "share"]]
    for number, segment in enumerate(every):
        if len(every) > first + last + 1 and first <= number < len(every) - last:
            if number == first:
                rows.append(["...", "", "", "", "", "", "", ""])
            continue
        whole = segment.deciding_flops + segment.training.equivalent
        rows.append(
            [
                f"{segment.start:,}", f"{segment.steps:,}", f"{segment.rows:,.0f}", f"{segment.tokens:,.0f}",
                "-" if segment.update is None else f"{segment.update:,}", _flops(segment.deciding_flops),
                _flops(segment.training.equivalent), _percent(segment.deciding_flops / whole if whole else 0.0),
            ]
        )  # fmt: skip
    more = [f"  only the first {MOST:,} updates are looked at"] if found.schedule.updates > MOST else []
    return ["segments (deciding and training in FLOPs that training does in the time)", *_table(rows), *more]


def _passes(found: Forecast) -> list[str]:
    if not found.passes:
        return []
    rows = [["pass", "rows", "tokens", "FLOPs", "as training", "share of the run"]]
    whole = found.training_flops + found.deciding_flops
    for kind, each in found.passes.items():
        rows.append(
            [
                kind, f"{each.rows:,.0f}" if each.rows else "-", f"{each.tokens:,.0f}" if each.tokens else "-",
                _flops(each.flops), _flops(each.equivalent), _percent(each.equivalent / whole),
            ]
        )  # fmt: skip
    rows.append(["training", f"{found.rows:,.0f}", f"{found.tokens:,.0f}", "", _flops(found.training_flops), ""])
    parts = [f"  {place}: {_percent(flops / whole)} of the run" for place, flops in found.parts.items() if flops]
    return ["what is computed in the whole run", *_table(rows, words=1), *(parts if len(parts) > 1 else [])]


def _sources(found: Forecast) -> list[str]:
    rows = [["source", "rows", "tokens a row", "share", "repeats", "known from"]]
    for source in found.facts.data.sources:
        repeats = found.repeats(source)
        rows.append(
            [
                source.name, _count(source), f"{source.mean:,.0f}", _percent(found.shares[source.name]),
                "not known" if repeats is None else f"{repeats:,.2f}", source.how,
            ]
        )  # fmt: skip
    lines = ["rows (repeats: how often a row is expected to come)", *_table(rows, words=1, left=(5,))]
    for part in found.facts.data.evaluated:
        lines.append(f"  evaluation: {part.name}: {_count(part)} rows of {part.mean:,.0f} tokens, {part.how}")
    missed, updates = found.updates_missed(), found.schedule.updates
    if missed is not None:
        every = "the one update" if updates == 1 else f"all {updates:,} updates"
        lines.append(f"  left out: at random a row misses {missed:,.1f} of {updates:,}; an unwanted one {every}")
    if found.spec.mixer is not None:
        lines.append("  shares are those that the run begins with; the mixer moves them")
    return lines


def _needs(found: Forecast) -> list[str]:
    cost = found.cost
    return [
        "memory and disk that the strategy needs, beyond training",
        f"  memory: {_bytes(cost.device_bytes)} on each device, {_bytes(cost.host_bytes)} beside it",
        f"  disk: {_bytes(cost.state_bytes)} in each checkpoint, {_bytes(found.selection_bytes)} of record, up to "
        f"{_bytes(cost.cache_bytes)} of cache",
        *(f"  {note}" for note in found.notes),
    ]


def _assumed(found: Forecast) -> list[str]:
    facts, size, rates = found.facts, found.facts.model.size, found.facts.rates
    lines = [
        f"the model has {size.weights:,} weights, {size.trainable:,} are trained"
        if size is not None
        else f"{facts.model.why}; shares are by tokens alone, FLOPs are for a model of one weight",
        f"training does {rates.speed / 1e12:,.3g} TFLOP a second on {rates.device} (--tflops says otherwise)",
        f"a FLOP takes, next to one of training: {price.FORWARD:g} in a forward pass, {price.ROW_GRADIENTS:g} for "
        f"gradients of rows,",
        f"  {price.GENERATED:g} where tokens are generated, {price.PRODUCTS:g} in a search; to read or write a number "
        f"takes as long as {rates.touched:g}",
        f"counting n-grams takes {1e6 * price.NGRAM_ROW:g} microseconds a row and {1e9 * price.NGRAM_TOKEN:g} "
        "nanoseconds a token",
    ]
    if found.spec.llamafactory.get("disable_gradient_checkpointing") is not True:
        lines.append("training computes each layer twice (gradient checkpointing)")
    if facts.given_rows:
        lines.append("the train dataset has as many rows as --rows says")
    return ["assumed", *(f"  {line}" for line in lines)]


def _count(part: Rows) -> str:
    return "not known" if part.count is None else f"{part.count:,.0f}"


def _table(rows: Sequence[Sequence[str]], words: int = 0, left: Sequence[int] = ()) -> Iterator[str]:
    """Yields lines of columns: the first ``words`` and those of ``left`` flush left, numbers flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(width) if number < words or number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  " + "  ".join(cells).rstrip()


def _percent(share: float) -> str:
    percent = 100 * share
    if 0 < percent < 0.1:
        return "under 0.1 %"
    return f"{percent:.1f} %" if percent < 9.95 and round(percent, 1) != round(percent) else f"{percent:.0f} %"


def _flops(value: float) -> str:
    return f"{value:.2e}" if value else "-"


def _bytes(value: float) -> str:
    for unit in _UNITS[:-1]:
        if value < 1000:
            return f"{value:,.0f} {unit}" if value >= 10 or unit == "B" else f"{value:,.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} {_UNITS[-1]}"
