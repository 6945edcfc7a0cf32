"""Numbers as a person reads them: counts, shares, durations, losses, points in time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any


def count(number: int, noun: str = "", plural: str = "") -> str:
    """Returns ``1,200 rows``, ``1 row``; the number alone without a noun."""
    shown = f"{number:,}"
    return f"{shown} {noun if number == 1 else plural or noun + 's'}" if noun else shown


def percent(share: float) -> str:
    """Returns ``14 %``; shares near an end with a digit more, so that something is never nothing, nor all."""
    if share == 0:
        return "0 %"
    if share < 0.0005:
        return "under 0.1 %"
    if share < 0.095:
        return f"{100 * share:.1f} %"
    if 0.9995 < share < 1:
        return "over 99.9 %"
    return f"{100 * share:.1f} %" if 0.995 < share < 1 else f"{100 * share:.0f} %"


def duration(seconds: float) -> str:
    """Returns ``3.4 s``, ``12 min 3 s``, ``5 h 2 min``."""
    if 0 < seconds < 0.05:
        return "under 0.1 s"
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def loss(value: float) -> str:
    """Returns a loss with the digits that a person compares."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"


def figure(value: float) -> str:
    """Returns a score or a weight with three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def listing(names: Sequence[str]) -> str:
    """Returns ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def when(said: Any) -> str:
    """Returns a point in time of the record to the minute, in the zone that it was written in."""
    try:
        at = datetime.fromisoformat(str(said))
    except ValueError:
        return str(said)
    return f"{at:%Y-%m-%d %H:%M}" + (" UTC" if at.tzinfo is not None and not at.utcoffset() else "")
