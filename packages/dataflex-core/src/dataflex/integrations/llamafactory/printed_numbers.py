"""What transformers prints of the numbers that are logged: those of an update are left out, as our log line says it.

They are a dictionary of up to a hundred numbers at each update, between lines for people. Trackers, the record and
``trainer_state.json`` have them all the same, and what weights were is printed with the loss.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from transformers import PrinterCallback, ProgressCallback

from dataflex.run.tracked_numbers import PREFIX


def replacements() -> list[tuple[Any, str, Any]]:
    """Returns (class, name, stand-in) of what prints."""
    return [(kind, "on_log", _without_updates(kind.on_log)) for kind in (ProgressCallback, PrinterCallback)]


def _without_updates(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def on_log(self: Any, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> Any:
        if isinstance(logs, Mapping) and of_update(logs):
            return None
        return original(self, args, state, control, logs=logs, **kwargs)

    return on_log


def of_update(logs: Mapping[str, Any]) -> bool:
    """Returns whether the numbers are those of an update alone; the trainer adds the epoch to each line."""
    names = set(logs) - {"epoch"}
    return bool(names) and all(name.startswith(f"{PREFIX}/") for name in names)
