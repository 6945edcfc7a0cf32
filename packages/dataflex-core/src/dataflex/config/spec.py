"""What a checked configuration becomes: plain values that every rank, launcher and trainer can be given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dataflex.config.arguments import EPOCHS, DataflexArguments
from dataflex.core.kinds import Kind
from dataflex.core.schedule import Steps


@dataclass(frozen=True)
class ComponentSpec:
    """A component as it was asked for.

    Attributes:
        kind: Selector, mixer, order or weighter.
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
        trains: Whether rows are trained on. Scoring asks for no rows, so that there may be fewer than a run asks for.
    """

    arguments: DataflexArguments
    component: ComponentSpec | None = None
    llamafactory: Mapping[str, Any] = field(default_factory=dict)
    epochs: float | None = None
    trains: bool = True

    def steps(self, max_steps: int = 0, epochs: float = EPOCHS) -> Steps:
        """Returns what is said about the number of steps and updates.

        Args:
            max_steps: That of the training arguments, another name for ``train_step``; 0 or less for none.
            epochs: ``num_train_epochs`` of the training arguments, in force where the user wrote none.
        """
        keys = replace(self.arguments, train_step=self.arguments.train_step or max(max_steps, 0))
        return keys.steps(self.epochs, epochs)
