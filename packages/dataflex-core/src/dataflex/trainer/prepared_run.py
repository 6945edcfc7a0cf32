"""The part of a trainer by which TRL's preparation of the train dataset reaches every source of a mixture."""

from __future__ import annotations

from typing import Any

from dataflex.trainer.prepared import SourcesApart
from dataflex.trainer.recorded_run import RecordedRun


class PreparedRun(RecordedRun):
    """Stands around what the trainer underneath makes of its datasets in its constructor."""

    _dataflex_sources: SourcesApart

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Prepares each source of a mixture by itself, where the trainer underneath prepares datasets."""
        prepare: Any = super()._prepare_dataset  # type: ignore[misc]
        return self._dataflex_sources.prepare(dataset, lambda part: prepare(part, *args, **kwargs))

    def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Has the reference model look at each source, where the trainer underneath keeps what it gives to rows."""
        add: Any = super()._precompute_ref_logps  # type: ignore[misc]
        return self._dataflex_sources.prepare(dataset, lambda part: add(part, *args, **kwargs))
