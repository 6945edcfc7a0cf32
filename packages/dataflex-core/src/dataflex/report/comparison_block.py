"""The page of a comparison: whether an arm did better than the one it is held against, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataflex.report.record_lines import mapping, number, numbers, objects, whole
from dataflex.report.shown_run import Block, Section
from dataflex.report.thinned import plain

VERDICTS = ("better", "worse", "undecided")
_EQUAL = {
    "steps": "Every arm trained for the same steps.",
    "tokens": "Every arm trained on the same number of tokens.",
    "compute": "Every arm had the same compute: its updates are paid for with its steps.",
}


def comparison_section(comparison: Mapping[str, Any], arms: Mapping[str, int]) -> Section:
    """Returns the section of a comparison.

    Args:
        comparison: As ``dataflex-cli compare FILE`` hands it over and writes it.
        arms: Arm -> the number of its colour.
    """
    seeds = comparison.get("seeds")
    level = number(comparison.get("level"))
    lead = [_EQUAL.get(str(comparison.get("equal")), "")]
    if isinstance(seeds, list):
        count = f"{len(seeds)} seed" + ("s" if len(seeds) != 1 else "")
        at = f"; a verdict holds at the level {level:g} over all arms and metrics together" if level else ""
        lead.append(f"Each arm ran with {count}{at}.")
    blocks: list[Block] = []
    for name, metric in mapping(comparison.get("metrics")).items():
        found = mapping(metric)
        lower = found.get("lower_is_better") is not False
        blocks.append(_table(name, found, arms, lower, level))
        intervals = _intervals(name, found, arms, lower, level)
        if intervals is not None:
            blocks.append(intervals)
    blocks.append(_cost(comparison, arms))
    return Section("comparison", "Does it pay?", tuple(filter(None, lead)), tuple(blocks))


def _arms(metric: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, mapping(arm)) for name, arm in mapping(metric.get("arms")).items()]


def _table(name: str, metric: Mapping[str, Any], arms: Mapping[str, int], lower: bool, level: float | None) -> Block:
    rows = []
    for arm, found in _arms(metric):
        wins, seeds = whole(found.get("wins")), whole(found.get("seeds")) or len(numbers(found.get("values")))
        values = [number(found.get(key)) for key in ("mean", "std", "difference", "low", "high", "p")]
        more = plain([number(found.get(key)) for key in ("bootstrap_low", "bootstrap_high", "confidence")], 5)
        against = str(found.get("against") or "")
        won = f"{wins} of {seeds}" if wins is not None and against else ""
        verdict = str(found.get("verdict") or "")
        rows.append(
            [
                arm,
                *plain(values, 5),
                won,
                verdict if verdict in VERDICTS else "",
                str(found.get("says") or ""),
                against,
                *more,
            ]
        )
    return {
        "kind": "verdicts",
        "title": name,
        "says": "Lower is better." if lower else "Higher is better.",
        "tones": [arms.get(row[0], 7) for row in rows],
        "level": level,
        "rows": rows,
        "wide": True,
    }


def _intervals(
    name: str, metric: Mapping[str, Any], arms: Mapping[str, int], lower: bool, level: float | None
) -> Block | None:
    rows = [
        {
            "name": arm,
            "tone": arms.get(arm, 7),
            "difference": difference,
            "low": number(found.get("low")),
            "high": number(found.get("high")),
            "verdict": str(found.get("verdict") or ""),
            "against": str(found.get("against") or ""),
        }
        for arm, found in _arms(metric)
        if (difference := number(found.get("difference"))) is not None
    ]
    if not rows:
        return None
    against = sorted({row["against"] for row in rows if row["against"]})
    return {
        "kind": "intervals",
        "title": f"{name}: difference to {' and '.join(map(str, against)) or 'the control'}, seed by seed",
        "lower": lower,
        "level": level,
        "rows": rows,
        "wide": True,
    }


def _cost(comparison: Mapping[str, Any], arms: Mapping[str, int]) -> Block:
    def mean(values: Any) -> float | None:
        known = [value for value in numbers(values) if value is not None]
        return sum(known) / len(known) if known else None

    rows = []
    for arm in objects(comparison.get("arms")):
        costs = [mean(arm.get(key)) for key in ("steps", "tokens", "seconds", "compute")]
        rows.append([str(arm.get("name")), "yes" if arm.get("control") else "", *plain(costs, 5)])
    columns = [
        ["arm", "text"], ["control", "text"], ["steps", "count"], ["tokens", "count"], ["time", "seconds"],
        ["compute, FLOPs", "short"],
    ]  # fmt: skip
    return {"kind": "table", "title": "What each arm cost, in the mean of its seeds", "columns": columns, "rows": rows}
