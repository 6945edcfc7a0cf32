"""Resuming on several ranks without a GPU.

There, accelerate calls the devices ``cpu:0``, ``cpu:1``, ... and ``transformers`` asks ``torch.load`` to put the
optimizer's state on one of them; torch knows only ``cpu`` and refuses. All of them are the same memory.
"""

from __future__ import annotations

import functools
from typing import Any

import torch


@functools.cache
def allow_numbered_cpus() -> None:
    """Teaches ``torch.load`` that ``cpu:N`` is the CPU. For the rest of the process; nothing else changes."""
    torch.serialization.register_package(100, lambda storage: None, _on_cpu)


def _on_cpu(storage: Any, location: str) -> Any:
    return storage if location.startswith("cpu:") else None
