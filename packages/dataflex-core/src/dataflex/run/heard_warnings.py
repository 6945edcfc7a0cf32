"""The warnings of a run, for its record: each text once, with how often it came.

What users see does not change. Handlers are added beside those that the loggers have, never to a logger of which Python
itself would write the records for want of a handler, and what ``warnings.warn`` says is shown as before.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from dataflex.utils.secret_values import masked, scrubbed

LOGGERS = ("dataflex", "transformers", "llamafactory")
"""The loggers that are listened to. Those of libraries have handlers of their own as soon as they write."""
MOST = 100
CHARACTERS = 1000
"""Of a text, at most."""


class HeardWarnings:
    """Counts warnings by their text."""

    def __init__(self) -> None:
        self._times: dict[str, int] = {}

    def forget(self) -> None:
        """Begins anew."""
        self._times = {}

    def join(self, before: Sequence[Mapping[str, Any]]) -> None:
        """Puts what earlier starts of the same run have heard before what was heard since.

        Args:
            before: What :meth:`lines` returned then.
        """
        heard, self._times = self._times, {str(line.get("text")): _count(line.get("times")) for line in before}
        for text, times in heard.items():
            self._times[text] = self._times.get(text, 0) + times

    def add(self, text: str) -> None:
        """Counts a text, unless there are :data:`MOST` others already."""
        text = str(masked(scrubbed(text.strip())))[:CHARACTERS]
        if text in self._times or len(self._times) < MOST:
            self._times[text] = self._times.get(text, 0) + 1

    def lines(self) -> list[dict[str, Any]]:
        """Returns the texts in the order in which they first came: ``{"text", "times"}``."""
        return [{"text": text, "times": times} for text, times in self._times.items()]

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside of it, warnings are heard."""
        handler = _Handler(self)
        loggers = [logging.getLogger(name) for name in LOGGERS]
        for each in loggers:
            each.addHandler(handler)
        shown = warnings.showwarning

        def show(message: Any, category: Any, *args: Any, **kwargs: Any) -> None:
            if handler.listens:
                self.add(f"{category.__name__}: {message}")
            shown(message, category, *args, **kwargs)

        warnings.showwarning = show
        try:
            yield
        finally:
            handler.listens = False  # also where somebody has put a function of theirs around ours meanwhile
            if warnings.showwarning is show:
                warnings.showwarning = shown
            for each in loggers:
                each.removeHandler(handler)


class _Handler(logging.Handler):
    def __init__(self, heard: HeardWarnings) -> None:
        super().__init__(logging.WARNING)
        self._heard, self.listens = heard, True

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # its arguments do not fit its text: the handlers of the logger say so
            return
        self._heard.add(text)


def _count(found: Any) -> int:
    return found if isinstance(found, int) else 1
