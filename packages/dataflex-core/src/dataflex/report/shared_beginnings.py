"""What the texts of a source begin with alike, as a system prompt does: a list of rows shows what comes after it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

_MOST_LINES = 20
_SHARE = 0.8  # of the texts must begin alike
_LEAST = 4  # texts: fewer say nothing of the others


def beginnings(texts: Sequence[str | None], groups: Iterable[Hashable]) -> list[int]:
    """Returns how many characters of each text are a beginning that most texts of its group share, in whole lines.

    Args:
        texts: The texts; None for none.
        groups: What each belongs to, such as its source.
    """
    of: dict[Hashable, list[int]] = {}
    for place, group in enumerate(groups):
        if texts[place]:
            of.setdefault(group, []).append(place)
    found = [0] * len(texts)
    for places in of.values():
        shared = _shared([texts[place] or "" for place in places])
        for place in places:
            found[place] = len(shared) if shared and (texts[place] or "").startswith(shared) else 0
    return found


def _shared(texts: Sequence[str]) -> str:
    if len(texts) < _LEAST:
        return ""
    shared, left = "", list(texts)
    for _ in range(_MOST_LINES):
        following = [text[len(shared) :].partition("\n") for text in left]
        counted = Counter(line for line, newline, rest in following if newline and rest.strip())
        line, count = counted.most_common(1)[0] if counted else ("", 0)
        if count < _SHARE * len(texts):
            break
        shared += f"{line}\n"
        left = [text for text in left if text.startswith(shared)]
    return shared
