"""Mixed precision as training has it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import Accelerator


def autocast(accelerator: Accelerator | None) -> AbstractContextManager[None]:
    """Returns the context in which a forward runs under the run's mixed precision; none without an accelerator."""
    return nullcontext() if accelerator is None else accelerator.autocast()
