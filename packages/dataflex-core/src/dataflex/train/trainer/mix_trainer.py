"""Training on several sources in proportions that a mixer moves (``train_type: dynamic_mix``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataflex.config.spec import RunSpec
from dataflex.core.context import UpdateContext
from dataflex.core.decision import checked_proportions
from dataflex.core.errors import ConfigError
from dataflex.core.schedule import Segment
from dataflex.data.mixture import MixtureManager, initial_proportions
from dataflex.data.rows import MixedSources
from dataflex.train.trainer.planned import Plan, PlannedTrainer


class MixTrainer(PlannedTrainer):
    """Plans each segment from the proportions of the moment.

    The train dataset is a mapping ``name -> dataset`` (or a :class:`~dataflex.data.rows.MixedSources`).

    Attributes:
        mixture_manager: The sources and their proportions.
    """

    verb = "mix"

    def __init__(self, *args: Any, dataflex: RunSpec, **kwargs: Any) -> None:
        sources = kwargs.get("train_dataset")
        mixed = MixedSources(sources) if isinstance(sources, Mapping) else sources
        if not isinstance(mixed, MixedSources) or len(mixed.names) < 2:
            raise ConfigError(
                "train_type: dynamic_mix needs two sources or more -> name them in dataset, or use static"
            )
        empty = [name for name, size in zip(mixed.names, mixed.sizes, strict=True) if size == 0]
        if empty:
            raise ConfigError(f"the source {', '.join(empty)} has no rows -> check its file, or take it out of dataset")
        keys = dataflex.arguments
        shares = initial_proportions(keys.mixture_sample_rule, keys.init_mixture_proportions, mixed.sizes)
        self._initial = (mixed.names, mixed.sizes, shares)
        kwargs["train_dataset"] = mixed
        super().__init__(*args, dataflex=dataflex, **kwargs)

    def decide(self, segment: Segment, count: int, context: UpdateContext, who: str) -> Plan:
        """Asks the mixer at an update, and plans rows in the proportions that hold then."""
        manager = self.mixture_manager
        if segment.update is not None and self.component is not None:
            answer = self.component.mix(model=self.model, step_id=context.step, context=context)
            manager.set_proportions(checked_proportions(answer, names=manager.names, who=who))
        shares = {name: float(p) for name, p in zip(manager.names, manager.proportions, strict=True)}
        news = "set " + ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
        return Plan(manager.plan(count), details={"proportions": shares}, news=news)

    def identity(self) -> dict[str, Any]:
        """Adds the sources."""
        manager = self.mixture_manager
        return super().identity() | {"sources": dict(zip(manager.names, manager.sizes.tolist(), strict=True))}

    def dynamic_state(self) -> dict[str, Any]:
        """Adds the proportions and each source's position."""
        return super().dynamic_state() | {"mixture": self.mixture_manager.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores the mixture too."""
        super().restore(state)
        self.mixture_manager.load_state_dict(state["mixture"])

    def _constructed(self) -> Any:
        self.mixture_manager = MixtureManager(*self._initial, seed=self.seed)
        return super()._constructed()

    def _injectable(self) -> dict[str, Any]:
        return super()._injectable() | {"mixture_manager": self.mixture_manager}
