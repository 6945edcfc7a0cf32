"""Signs of life of what may take long: a bar on a terminal, a log line now and then elsewhere.

A log file has no place for a bar, so there a long pass writes lines:

    less: step 50: 300 rows, 61,440 tokens in 24 batches              once it runs for 5 seconds
    less: step 50: 120 of 300 rows, 4.1 rows/s, 44 s left             at most one a minute
    less: step 50: 300 rows in 1 min 13 s, 4.1 rows/s                at the end

What is over in 5 seconds writes nothing, so that the log of a tiny run stays what it was. Only time decides, never a
number of rows. Where one pass runs inside of another, the innermost that has been running for 5 seconds speaks, and all
of them together write at most 6 lines a minute. A thread looks once a second, as one batch, or a call into a library,
may take many minutes; there is one only where lines are written. Lines come from rank 0 and go to the logger at level
INFO; where nobody listens to that, nothing is done.

A bar is shown where stderr is a terminal, unless ``disable_tqdm`` or transformers' own switches say no; then lines come
there too. tqdm is imported only to draw one.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from dataflex.utils.logging import is_rank_0, logger

T = TypeVar("T")
QUIET = 5.0
"""Seconds that a pass runs before it writes its first line."""
EVERY = 60.0
"""Least seconds from a line to the next one of what still runs."""
MOST = 6
"""Most lines in :data:`EVERY` seconds: passes of some seconds, one after the other, would else write two each."""
LOOK = 1.0
"""Seconds from a look of the thread to the next one."""
clock: Callable[[], float] = time.monotonic
"""What time it is, in seconds. Tests set another one."""
_without_bars = 0  # how many blocks of without_bars() are open


class Progress:
    """A pass that may take long. A context manager; :meth:`done` is called inside. Makes no collective call.

    Args:
        who: Who is doing what, as a line begins.
        total: How many units there are, those ``before`` included; None where nobody knows.
        unit: What is counted, in the plural.
        before: Units that an earlier run has done.
        about: More about the whole, for the first line.
        work: What is to be done, in a measure to which time is proportional, such as tokens; None: ``total``.
        shown: Whether there is a bar or a line at all; a pass of every rank is shown by rank 0 anyway.
        bar: Seconds after which a terminal has a bar; None for none. What had no bar before has none for what is short.
        watched: Whether the thread looks, besides the calls of :meth:`done`. Not for what is short many times over.
    """

    def __init__(
        self,
        who: str,
        total: int | None = None,
        unit: str = "rows",
        *,
        before: int = 0,
        about: str = "",
        work: float | None = None,
        shown: bool = True,
        bar: float | None = QUIET,
        watched: bool = True,
    ) -> None:
        self.who, self.total, self.unit, self.about = who, total, unit, about
        self._before = self._count = before
        self._work = (None if total is None else float(total - before)) if work is None else work
        self._worked = 0.0
        self._shown, self._bar_after, self._watched = shown and is_rank_0(), bar, watched
        self._bar: Any = None
        self._voice: _Voice | None = None
        self.began = 0.0
        self.spoke = False

    def __enter__(self) -> Progress:
        if not self._shown:
            return self
        if bars_are_shown():
            if self._bar_after is not None:
                given = {"total": self.total, "initial": self._before, "unit": f" {self.unit}"}
                self._bar = _bar(desc=self.who, delay=self._bar_after, **given)
        elif logger.isEnabledFor(logging.INFO):
            self.began = clock()
            self._voice = _voice()
            self._voice.enter(self, self._watched)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._voice is not None:
            self._voice.leave(self, kind is not None and not issubclass(kind, GeneratorExit))

    def done(self, count: int = 1, work: float | None = None) -> None:
        """Notes that more units are done.

        Args:
            count: How many.
            work: How much that was, in the measure of ``work``; None: ``count``.
        """
        self._count += count
        self._worked += count if work is None else work
        if self._bar is not None:
            self._bar.update(count)
        elif self._voice is not None:
            self._voice.look()

    def first_line(self, now: float) -> str:
        """Returns what is said after :data:`QUIET` seconds."""
        if self.total is None:
            return self.line(now)
        return f"{self.who}: {self.total - self._before:,} {self.unit}{', ' if self.about else ''}{self.about}"

    def line(self, now: float) -> str:
        """Returns how far it is."""
        running = f"running for {duration(now - self.began)}"
        if self.total is None:
            return f"{self.who}: {running}{self._pace(now)}"
        text = f"{self.who}: {self._count:,} of {self.total:,} {self.unit}"
        if self._count == self._before or self._work is None or not self._worked:
            return f"{text}, {running}"
        left = max(0.0, self._work - self._worked) / self._worked * (now - self.began)
        return f"{text}{self._pace(now)}, {duration(left)} left"

    def last_line(self, now: float, stopped: bool) -> str:
        """Returns what is said at the end."""
        took = duration(now - self.began)
        if stopped:
            of = "" if self.total is None else f" at {self._count:,} of {self.total:,} {self.unit}"
            return f"{self.who}: stopped{of} after {took}"
        count = self._count - self._before
        return f"{self.who}: {f'{count:,} {self.unit}' if count else 'done'} in {took}{self._pace(now)}"

    def _pace(self, now: float) -> str:
        count, seconds = self._count - self._before, now - self.began
        return f", {_number(count / seconds)} {self.unit}/s" if count and seconds > 0 else ""


def tracked(
    items: Iterable[T],
    who: str,
    total: int | None = None,
    unit: str = "rows",
    *,
    size: Callable[[T], int] | None = None,
    bar: float | None = QUIET,
) -> Iterator[T]:
    """Yields the items; an item is done when the next one is asked for.

    For items that are the work themselves. Where the body of the loop is, it belongs into a :class:`Progress`: an error
    there would leave this one open for as long as its traceback lives.

    Args:
        items: What is gone through.
        who: See :class:`Progress`.
        total: See :class:`Progress`.
        unit: See :class:`Progress`.
        size: How many units an item is; None: 1.
        bar: See :class:`Progress`.
    """
    with Progress(who, total, unit, bar=bar) as progress:
        for item in items:
            yield item
            progress.done(1 if size is None else size(item))


def bars_are_shown() -> bool:
    """Returns whether a pass has a bar: stderr is a terminal, and neither the run nor transformers hides them."""
    if _without_bars or not is_terminal():
        return False
    from transformers.utils import logging as hf_logging

    return bool(hf_logging.is_progress_bar_enabled())


def is_terminal() -> bool:
    """Returns whether stderr is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


@contextmanager
def without_bars(hidden: bool = True) -> Iterator[None]:
    """Has passes write lines on a terminal too.

    Args:
        hidden: Whether it does, such as ``disable_tqdm`` of the training arguments.
    """
    global _without_bars
    _without_bars += hidden
    try:
        yield
    finally:
        _without_bars -= hidden


def duration(seconds: float) -> str:
    """Returns a time as a person says it: ``44 s``, ``3 min 20 s``, ``1 h 5 min``."""
    whole = round(max(0.0, seconds))
    if whole < 3600:
        parts = ((whole // 60, "min"), (whole % 60, "s"))
    else:
        minutes = round(whole / 60)
        parts = ((minutes // 60, "h"), (minutes % 60, "min"))
    return " ".join(f"{count:,} {unit}" for count, unit in parts if count) or "0 s"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 9.95 else f"{value:.2g}"


def _bar(**kwargs: Any) -> Any:
    from transformers.utils import logging as hf_logging

    return hf_logging.tqdm(**kwargs)


class _Voice:
    """The passes of a thread that run, one inside of the other, of which one speaks at a time."""

    def __init__(self) -> None:
        self._running: list[Progress] = []
        self._lines: deque[float] = deque(maxlen=MOST)  # when the last ones were written
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def enter(self, progress: Progress, watched: bool) -> None:
        """Takes in a pass that begins; starts the thread where that is to look."""
        with self._lock:
            self._running.append(progress)
        if watched and self._thread is None:
            self._over = threading.Event()
            self._thread = threading.Thread(target=self._watch, args=(self._over,), name="dataflex-life", daemon=True)
            self._thread.start()

    def leave(self, progress: Progress, stopped: bool) -> None:
        """Lets go of a pass that ends."""
        with self._lock:
            if progress in self._running:  # what is inside of it, and was left by an error, is over as well
                del self._running[self._running.index(progress) :]
            over = not self._running
            now = clock()
            if progress.spoke and (self._may_speak(now) or over):
                self._say(progress.last_line(now, stopped), now)
        if over and self._thread is not None:
            self._over.set()
            self._thread.join()
            self._thread = None

    def look(self) -> None:
        """Writes a line where one is due."""
        with self._lock:
            now = clock()
            for progress in reversed(self._running):
                if now - progress.began < QUIET:
                    continue
                if not progress.spoke:
                    if self._may_speak(now):
                        progress.spoke = True
                        self._say(progress.first_line(now), now)
                elif not self._lines or now - self._lines[-1] >= EVERY:
                    self._say(progress.line(now), now)
                return

    def _may_speak(self, now: float) -> bool:
        return len(self._lines) < MOST or now - self._lines[0] >= EVERY

    def _say(self, text: str, now: float) -> None:
        self._lines.append(now)
        logger.info("%s", text)

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(LOOK):
            self.look()


class _Mine(threading.local):
    """The voice of each thread."""

    def __init__(self) -> None:
        self.voice = _Voice()


_mine = _Mine()


def _voice() -> _Voice:
    return _mine.voice


def _forget() -> None:
    """Starts anew in a process that was forked: the thread is not there, and may have held the lock."""
    global _mine
    _mine = _Mine()


os.register_at_fork(after_in_child=_forget)
