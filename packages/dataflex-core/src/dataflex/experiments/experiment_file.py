"""The file of a comparison, taken apart.

base: run.yaml                          # relative to this file
arms:
  mine: {component_name: NAME}          # keys that differ from the base; null takes one out
seeds: [1, 2, 3]
equal: steps                            # steps | tokens | compute
output_dir: saves/compare
controls: true
level: 0.05
metrics: [eval_loss]                    # or {eval_accuracy: higher}; every loss of an evaluation unless given
jobs: 2                                 # ranks of each run under torchrun; as the environment says unless given
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataflex.config.checks.parsed_config import expanded
from dataflex.config.load import read_config
from dataflex.config.text import is_decimal
from dataflex.core.errors import InvalidConfigError, Problem, listed, nearest
from dataflex.core.parameter_checks import is_number
from dataflex.utils.secret_values import masked

EQUAL = ("steps", "tokens", "compute")
LOWER, HIGHER = "lower", "higher"
MOST_SEED = 2**32 - 1  # that NumPy's generators, which transformers seeds as well, take
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_OURS = {
    "output_dir": "each run has a folder of its own below the output_dir of the comparison",
    "seed": "the seeds stand under seeds:",
    "data_seed": "it is the seed of each run",
    "resume_from_checkpoint": "a run that was stopped goes on by itself",
    "overwrite_output_dir": "nothing is written over",
}
"""Keys of a run that a comparison gives, and why."""


@dataclass(frozen=True)
class Experiment:
    """What the file says.

    Attributes:
        file: The file.
        base: The YAML of the run that the arms differ from, absolute.
        config: What stands in it, without the keys that a comparison gives.
        arms: Name -> the keys that differ.
        seeds: The seeds, in their order.
        equal: What is held equal, of :data:`EQUAL`.
        output_dir: The folder of the comparison, absolute.
        controls: Whether controls are added.
        level: Of all verdicts together.
        metrics: Metric -> whether lower is better, None where its name is to tell; empty for every evaluation's loss.
        jobs: Ranks of each run under torchrun; None to leave that to the environment.
    """

    file: Path
    base: Path
    config: Mapping[str, Any]
    arms: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]
    output_dir: Path
    equal: str = "steps"
    controls: bool = True
    level: float = 0.05
    metrics: Mapping[str, bool | None] = field(default_factory=dict)
    jobs: int | None = None


def read_experiment(file: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Returns what a file says, with its base read.

    Args:
        file: A YAML or JSON file.
        overrides: ``key=value`` over its keys; ``arms.mine.update_times=3`` reaches into an arm.

    Raises:
        ConfigError: The file or the base cannot be read, or all that is wrong with the keys of the file.
    """
    path = Path(file).absolute()
    content = read_config(file, overrides)
    problems = [
        Problem(str(key), f"no such key of a comparison; allowed: {listed(_READERS)}", nearest(str(key), _READERS))
        for key in content
        if key not in _READERS
    ]
    found: dict[str, Any] = {}
    for key, (read, needed) in _READERS.items():
        value = content.get(key)
        if value is None:
            problems += [Problem(key, "is missing", needed)] if needed else []
            continue
        read_value = read(key, value)
        if isinstance(read_value, Problem | list):
            problems += read_value if isinstance(read_value, list) else [read_value]
        else:
            found[key] = read_value
    if problems:
        raise InvalidConfigError(problems)
    base = (path.parent / expanded(found["base"])).absolute()
    config = {key: value for key, value in read_config(base).items() if key not in _OURS}
    return Experiment(**{**found, "file": path, "base": base, "config": config})


def _text(key: str, value: Any) -> str | Problem:
    if isinstance(value, str) and value.strip():
        return value
    return Problem(key, f"found {masked(value, key)!r:.80}, allowed: the path of a YAML file", "name one")


def _folder(key: str, value: Any) -> Path | Problem:
    found = _text(key, value)
    if isinstance(found, Problem):
        return Problem(key, f"found {masked(value, key)!r:.80}, allowed: the path of a folder", "name one")
    return expanded(found).absolute()


def _arms(key: str, value: Any) -> dict[str, Mapping[str, Any]] | list[Problem]:
    if not isinstance(value, Mapping) or not value:
        what = f"found {masked(value, key)!r:.80}, allowed: a mapping from names to keys of a run"
        return [Problem(key, what, f"write {key}: {{NAME: {{KEY: VALUE}}}}")]
    arms = {str(name): {} if keys is None else keys for name, keys in value.items()}
    return [problem for name, keys in arms.items() for problem in _arm(f"{key}.{name}", name, keys)] or arms


def _arm(where: str, name: str, keys: Any) -> list[Problem]:
    if not _NAME.fullmatch(name):
        what = "is no name of an arm, which a folder is named by: letters, digits, _ . - and at most 64 of them"
        return [Problem(where, what, "rename it")]
    if not isinstance(keys, Mapping):
        what = f"found {masked(keys, name)!r:.80}, allowed: keys of a run that differ from the base"
        return [Problem(where, what, f"write {name}: {{KEY: VALUE}}, or {{}} for the base itself")]
    return [
        Problem(f"{where}.{key}", f"is given by the comparison: {_OURS[key]}", "remove it")
        for key in keys
        if key in _OURS
    ]


def _seeds(key: str, value: Any) -> tuple[int, ...] | Problem:
    what = f"found {value!r:.80}, allowed: a list of different whole numbers from 0 to {MOST_SEED}"
    whole = isinstance(value, list) and all(isinstance(s, int) and not isinstance(s, bool) for s in value)
    if whole and value and len(set(value)) == len(value) and all(0 <= seed <= MOST_SEED for seed in value):
        return tuple(value)
    return Problem(key, what, "write seeds: [1, 2, 3]")


def _equal(key: str, value: Any) -> str | Problem:
    if value in EQUAL:
        return str(value)
    hint = (
        nearest(str(value), EQUAL) or "steps: as many optimizer steps; tokens: as many tokens; compute: as many FLOPs"
    )
    return Problem(key, f"found {value!r:.80}, allowed: {' | '.join(EQUAL)}", hint)


def _switch(key: str, value: Any) -> bool | Problem:
    if isinstance(value, bool):
        return value
    return Problem(key, f"found {value!r:.80}, allowed: true | false", "write one of these")


def _level(key: str, value: Any) -> float | Problem:
    number = float(value) if isinstance(value, str) and is_decimal(value) else value
    if is_number(number) and 0 < number < 0.5:
        return float(number)
    what = f"found {value!r:.80}, allowed: a number above 0, below 0.5"
    return Problem(key, what, "0.05 lets one verdict of twenty be wrong where no arm differs")


def _metrics(key: str, value: Any) -> dict[str, bool | None] | list[Problem]:
    named = value if isinstance(value, Mapping) else dict.fromkeys([value] if isinstance(value, str) else value or [])
    if not named or not all(isinstance(name, str) and name.strip() for name in named):
        what = f"found {value!r:.80}, allowed: names of numbers in all_results.json, as a list or name: lower | higher"
        return [Problem(key, what, "write metrics: [eval_loss]")]
    wrong = [name for name, way in named.items() if way not in (None, LOWER, HIGHER)]
    if wrong:
        what = "says which way is better"
        return [
            Problem(f"{key}.{name}", f"found {named[name]!r:.80}; it {what}", "write lower or higher") for name in wrong
        ]
    return {name: None if way is None else way == LOWER for name, way in named.items()}


def _jobs(key: str, value: Any) -> int | Problem:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    what = f"found {value!r:.80}, allowed: a whole number, 1 or more: ranks of each run under torchrun"
    return Problem(key, what, "leave it out to run as the environment says")


_READERS: Mapping[str, tuple[Callable[[str, Any], Any], str]] = {
    "base": (_text, "name the YAML of a run"),
    "arms": (_arms, "write arms: {NAME: {KEY: VALUE}}"),
    "seeds": (_seeds, "write seeds: [1, 2, 3]"),
    "equal": (_equal, ""),
    "output_dir": (_folder, "name a folder for the runs and the table"),
    "controls": (_switch, ""),
    "level": (_level, ""),
    "metrics": (_metrics, ""),
    "jobs": (_jobs, ""),
}
"""Key -> what reads it, and what to do where it is missing; blank where it may be."""
