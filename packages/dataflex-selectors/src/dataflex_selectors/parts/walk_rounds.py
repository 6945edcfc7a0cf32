"""When rows are ranked, and how many, by selectors that rank rows once for several updates and go on from there."""

from __future__ import annotations

import functools


@functools.lru_cache(maxsize=16)
def ranking_turns(
    size: int, count: int, turns: int, *, moves: bool, changes: bool, seen: bool, refresh: int
) -> dict[int, int]:
    """Returns the turns at which rows are ranked, and how many each of them ranks, if no row is left out.

    Args:
        size: Rows that can be taken.
        count: Rows that a turn asks for, at most ``size``.
        turns: How often rows are asked for.
        moves: Whether vectors move with training.
        changes: Whether scores do.
        seen: Whether rows that were given are left out until all have come.
        refresh: Turns after which vectors that move are too old.
    """
    found, ahead, taken, last = {}, 0, 0, -1
    for turn in range(turns):
        if ahead < count or is_stale(last, turn, moves=moves, changes=changes, refresh=refresh):
            left, last = size - taken, turn
            ahead = min(
                worth_ranking(count, turns - turn, moves=moves, changes=changes, seen=seen, refresh=refresh), left
            )
            if left < count:  # the last of this round, then the first of the next one
                ahead, taken = count, -left
            found[turn] = ahead
        if seen:
            ahead, taken = ahead - count, taken + count
    return found


def is_stale(last: int, turn: int, *, moves: bool, changes: bool, refresh: int) -> bool:
    """Returns whether what was ranked at the turn ``last`` is too old at ``turn``; -1 means that nothing was.

    What was ranked at a later turn is of an earlier training by the same trainer.
    """
    return last < 0 or (changes and turn != last) or (moves and not 0 <= turn - last < refresh)


def worth_ranking(count: int, turns: int, *, moves: bool, changes: bool, seen: bool, refresh: int) -> int:
    """Returns how many rows to rank: those of the turns until the next ranking."""
    if not seen or changes:
        return count
    return count * min(refresh, turns) if moves else count * turns
