"""What came of a run: its steps and its last losses on evaluation rows, read from the folder that it left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataflex.config.axis_keys import COMPONENT
from dataflex.config.resolved import recorded_run, written_config
from dataflex.core.errors import ConfigError
from dataflex.core.files import CONFIG
from dataflex.core.kinds import KINDS

STATE, RESULTS = "trainer_state.json", "eval_results.json"
ALIKE = (
    "model_name_or_path", "dataset", "dataset_dir", "eval_dataset", "val_size", "max_samples", "cutoff_len",
    "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "seed",
)  # fmt: skip
"""Keys that two runs share where they differ in nothing but the strategy."""


@dataclass(frozen=True)
class Outcome:
    """A run that has ended.

    Attributes:
        folder: Its ``output_dir``.
        steps: Optimizer steps done; 0 where it only evaluated.
        losses: Metric -> its last value, those of evaluations alone.
        strategy: The train type and the components, as far as the folder tells; a static run leaves no word of it.
        config: The configuration; empty where the folder holds none.
    """

    folder: Path
    steps: int
    losses: Mapping[str, float]
    strategy: str = "static"
    config: Mapping[str, Any] = field(default_factory=dict)


def outcome(folder: str | Path) -> Outcome:
    """Returns what came of the run in ``folder``.

    A file of figures that the run recorded there did not save is another run's, and is not read.

    Raises:
        ConfigError: It holds no run that has ended, or one that evaluated nothing.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ConfigError(f"{path}: no such folder -> name the output_dir of a run")
    state, results = (_read(path / name) if _is_of_run(path / name) else None for name in (STATE, RESULTS))
    if state is None and results is None and (path / STATE).exists():
        raise ConfigError(f"{path}: {STATE} is not of the run that is recorded in {CONFIG} -> train that to its end")
    if state is None and results is None:
        raise ConfigError(f"{path}: holds no {STATE}, which a run writes at its end -> train it to the end")
    losses: dict[str, float] = {}
    history = (state or {}).get("log_history")
    for entry in [*(history if isinstance(history, list) else []), results]:
        losses |= _losses(entry)
    if not losses:
        raise ConfigError(f"{path}: the run evaluated nothing -> give it an eval_dataset, and do_eval: true")
    steps = (state or {}).get("global_step")
    config = written_config(path) if (path / CONFIG).is_file() else {}
    named = (config.get("train_type"), config.get("component_name") or _parts(config))
    strategy = " ".join(str(name).removeprefix("dynamic_") for name in named if name) or "static"
    return Outcome(path, steps if isinstance(steps, int) else 0, losses, strategy, config)


def _parts(config: Mapping[str, Any]) -> str:
    """Returns the presets of a composed run, joined; blank for another."""
    parts = [config.get(kind.name) for kind in KINDS]
    listed = [each for part in parts for each in (part if isinstance(part, list) else [part])]
    return " + ".join(str(each.get(COMPONENT)) for each in listed if isinstance(each, Mapping) and COMPONENT in each)


def _is_of_run(file: Path) -> bool:
    """Returns whether the run that is recorded in the folder saved this file, by its size; where none is, any may have.

    The time of the last change, which is recorded too, is another one in a copy of the folder.
    """
    recorded = recorded_run(file.parent)
    if recorded is None or recorded.id is None or not file.is_file():
        return True
    return recorded.files.get(file.name, (-1,))[0] == file.stat().st_size


def _losses(entry: Any) -> dict[str, float]:
    """Returns the losses of an evaluation, such as ``eval_loss`` and ``eval_NAME_loss``."""
    if not isinstance(entry, dict):
        return {}
    named = {key: value for key, value in entry.items() if key.startswith("eval_") and key.endswith("loss")}
    return {
        key: float(value)
        for key, value in named.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _read(path: Path) -> dict[str, Any] | None:
    """Returns the object in a JSON file; None where there is no file.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read: {error} -> restore it, or train again") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds no results of a run -> restore it, or train again")
    return content
