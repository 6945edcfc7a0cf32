"""Evaluation rows for a component that aims at them, where ``predict_with_generate: true`` gives them another form.

LLaMA-Factory then tokenises evaluation rows for generation: the prompt alone, the answer as labels, of several turns
the last one, without packing. What a component compares with are the rows as they are trained on, so they are tokenised
a second time, as without the key. LLaMA-Factory's own evaluation keeps those that it made.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from typing import Any

from dataflex.config.spec import RunSpec
from dataflex.core.errors import ConfigError
from dataflex.discovery.component_classes import find
from dataflex.discovery.construct import constructor_parameters
from dataflex.discovery.injected import TARGETS
from dataflex.scoring.target_rows import whole_sets

Load = Callable[[Any, Any], Mapping[str, Any]]
"""``load(training_args, data_args) -> {"train_dataset": ..., "eval_dataset": ...}``"""


def aims_at_generated_rows(spec: RunSpec, training_args: Any) -> bool:
    """Returns whether a component of the run reads evaluation rows, and LLaMA-Factory makes them for generation."""
    return bool(training_args.predict_with_generate) and bool(_aiming(spec))


def _aiming(spec: RunSpec) -> list[str]:
    """Returns the presets of the components that read evaluation rows."""
    components = [part.component for part in spec.axes]
    parameters = [constructor_parameters(find(each.kind, each.name))[0] for each in components]
    return [c.preset for c, taken in zip(components, parameters, strict=True) if not TARGETS.isdisjoint(taken)]


def require_tokenised_as_trained(spec: RunSpec, data_args: Any) -> None:
    """Refuses to keep rows on disk that the next run could not aim at. Called before anything is tokenised.

    Raises:
        ConfigError: ``tokenized_path`` is set and holds nothing yet.
    """
    path = data_args.tokenized_path
    if path is not None and not (os.path.isdir(path) and os.listdir(path)):
        raise _kept_apart(spec, path)


def rows_as_trained(spec: RunSpec, load: Load, training_args: Any, data_args: Any, evaluation: Any) -> Any:
    """Returns the evaluation rows as they would be without ``predict_with_generate``; None where those given are so.

    Args:
        spec: The run.
        load: Loads what ``data_args`` names, as the run does.
        training_args: LLaMA-Factory's arguments.
        data_args: LLaMA-Factory's arguments.
        evaluation: The evaluation rows that were loaded with the key.

    Raises:
        ConfigError: ``tokenized_path`` holds rows that were made for generation.
    """
    if not evaluation:
        return None
    if data_args.tokenized_path is not None:
        if _changed(evaluation, whole_sets(evaluation)):
            raise _kept_apart(spec, data_args.tokenized_path)
        return None
    as_trained, data = copy.copy(training_args), copy.copy(data_args)
    as_trained.predict_with_generate = False
    if data.eval_dataset is not None:  # otherwise the rows are held out of the train dataset, by val_size
        data.dataset = None
    return load(as_trained, data).get("eval_dataset")


def _changed(before: Any, after: Any) -> bool:
    if isinstance(before, Mapping):
        return any(after[name] is not rows for name, rows in before.items())
    return after is not before


def _kept_apart(spec: RunSpec, path: str) -> ConfigError:
    who = " and ".join(f"'{preset}'" for preset in _aiming(spec))
    return ConfigError(
        f"tokenized_path: with predict_with_generate: true, {path} keeps evaluation rows with the prompt alone, and "
        f"{who} compares with rows as they are trained on -> leave tokenized_path out, or tokenise "
        "with predict_with_generate: false"
    )
