"""``do_predict`` where the evaluation rows are held by source: the workflow predicts one dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import concatenate_datasets


def predicting(original: type[Any]) -> type[Any]:
    """Returns LLaMA-Factory's trainer that predicts several datasets as one, in their order."""

    class PredictingTrainer(original):
        def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return super().predict(_as_one(test_dataset), *args, **kwargs)

        def save_predictions(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return super().save_predictions(_as_one(dataset), *args, **kwargs)

    PredictingTrainer.__name__ = original.__name__
    return PredictingTrainer


def _as_one(rows: Any) -> Any:
    return concatenate_datasets(list(rows.values())) if isinstance(rows, Mapping) else rows
