"""What a checked configuration becomes: plain values that every rank, launcher and trainer can be given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dataflex.config.arguments import DataflexArguments
from dataflex.core.kinds import Kind


@dataclass(frozen=True)
class ComponentSpec:
    """A component as it was asked for.

    Attributes:
        kind: Selector, mixer or weighter.
        preset: The entry of ``components.yaml`` (the ``component_name`` of the run).
        name: The component behind it.
        params: Constructor parameters: the package's defaults overridden by the user's file.
    """

    kind: Kind
    preset: str
    name: str
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunSpec:
    """A whole run.

    Attributes:
        arguments: dataflex's own keys.
        component: The component, or None for ``static`` and for ``static_mix``.
        llamafactory: Every other key, exactly as the user wrote it.
        epochs: ``num_train_epochs`` where the user wrote it, else None.
    """

    arguments: DataflexArguments
    component: ComponentSpec | None = None
    llamafactory: Mapping[str, Any] = field(default_factory=dict)
    epochs: float | None = None
