"""Training with a weight on each sample's loss (``train_type: dynamic_weight``)."""

from __future__ import annotations

from typing import Any

from dataflex.config.spec import RunSpec
from dataflex.core.kinds import WEIGHTER
from dataflex.interfaces.weighter import WeightsSamples
from dataflex.objective.parts import Parts, WeighterPart
from dataflex.planning.run_schedule import require_map_style, run_schedule
from dataflex.trainer.given import first_rows, require_rows_apart, require_spec
from dataflex.trainer.static_loader import NumberedTrainer


class WeightTrainer(NumberedTrainer):
    """Lets the weighter scale the loss of each sample once ``warmup_step`` steps are done.

    Rows come in the order of a static run. A sample is a row, or a document of a packed row. The objective of a step is
    stated in docs/weighters.md and does not depend on how the step's samples are split into micro-batches and over
    ranks.
    """

    kind = WEIGHTER
    component: WeightsSamples

    def __init__(self, *args: Any, dataflex: RunSpec, **kwargs: Any) -> None:
        kwargs = self.named(args, kwargs)
        require_spec(dataflex, self.kind)
        require_map_style(kwargs.get("train_dataset"), self.kind.train_type)
        super().__init__(dataflex=dataflex, **kwargs)
        self.schedule = run_schedule(dataflex, self.args, self.train_dataset)
        if dataflex.steps(self.args.max_steps).total is not None:  # else the loop counts the epochs itself
            self.args.max_steps = self.schedule.total
        wanted = dataflex.component
        assert wanted is not None, "a spec without a component is refused"
        part = WeighterPart(self.component, wanted.name, wanted.preset, self.arguments.warmup_step)
        self.weigh(Parts(weighter=part))
        self._dataflex_early.made(most_rows=0)

    def identity(self) -> dict[str, Any]:
        """Adds the steps without weights."""
        return super().identity() | {"warmup_step": self.arguments.warmup_step}

    def _dataflex_require_rows_apart(self) -> None:
        super()._dataflex_require_rows_apart()
        collate = self._get_collator_with_removed_columns(self.data_collator, description="training")
        require_rows_apart(collate, first_rows(self.train_dataset), f"the {self.component_in_words()}", documents=True)
