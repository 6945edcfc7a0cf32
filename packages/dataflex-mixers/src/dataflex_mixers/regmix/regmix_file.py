"""The file of ``dataflex-cli regmix``, taken apart.

base: mix.yaml                    # the main run, with fixed shares; relative to this file
main: {do_eval: true}             # keys in which the main run and the proxies differ from it
output_dir: saves/regmix
mixtures: 64                      # proxies, one for each
proxy: {model_name_or_path: models/small, train_step: 500}    # keys of the proxies that differ from the base
held_out: 0.2                     # share of the proxies that tell how good the fit is
targets: {web_eval: 2, code_eval: 1}    # evaluation sets and their weights; all of them in equal parts unless given
regressor: lightgbm               # lightgbm | linear | ridge
simulate: 100000
top_k: 128
prior: {web: 0.7, code: 0.3}      # the initial mixture of the base unless given
jobs: 2                           # proxies at a time
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataflex.config.checks.parsed_config import expanded
from dataflex.config.load import read_config
from dataflex.config.text import is_decimal
from dataflex.core.errors import InvalidConfigError, Problem, listed, nearest
from dataflex.core.parameter_checks import (
    at_least,
    count,
    count_or_null,
    is_number,
    one_of,
    positive,
    positive_or_null,
    share,
    text,
)
from dataflex.discovery.installed import has_package
from dataflex.utils.secret_values import masked

from dataflex_mixers.regmix.mixture_drawing import Drawing
from dataflex_mixers.regmix.regressors import LEAST_OF_TREES, LIGHTGBM, REGRESSORS

KEYS_OF_ITS_OWN = frozenset({"base", "mixtures"})
"""Keys that no other file of dataflex has together."""
LEAST_HELD_OUT = 4
EXTRA = 'pip install "dataflex-mixers[lightgbm]"'
GIVEN = {
    "output_dir": "each proxy has a folder of its own below the output_dir of the file",
    "seed": "the seed of the file is that of every proxy",
    "data_seed": "the seed of the file is that of every proxy",
    "resume_from_checkpoint": "a proxy that was stopped goes on by itself",
    "overwrite_output_dir": "nothing is written over",
    "static_mix": "a proxy keeps its mixture",
    "mixture_sample_rule": "a proxy keeps its mixture",
    "init_mixture_proportions": "each proxy has a mixture of its own",
    "dataset": "the sources are those of the base",
    "mixture_by": "the sources are those of the base",
    "train_type": "a proxy mixes as the base does",
    "mixer": "a proxy keeps its mixture",
    "component_name": "a proxy keeps its mixture",
    "eval_dataset": "the targets are evaluated in every proxy; name them in the base",
}
"""Keys that a proxy may not set, and why."""
OF_EVERY_RUN = ("output_dir", "seed", "data_seed", "resume_from_checkpoint", "overwrite_output_dir")
"""Those of them that stand for no run in the file, and are left out of the base."""


@dataclass(frozen=True)
class Search:
    """What the file says.

    Attributes:
        file: The file, absolute.
        base: The YAML of the main run, absolute.
        output_dir: The folder of the search, absolute.
        mixtures: Proxies, N.
        main: Keys of the main run that differ from the base's.
        proxy: Keys of the proxies that differ from the main run's.
        held_out: Share of the proxies that is kept from the fit.
        targets: Evaluation set or metric -> weight; None for every loss of an evaluation.
        regressor: One of :data:`REGRESSORS`.
        simulate: Mixtures that are predicted.
        top_k: Of these, how many the mixture is the mean of.
        prior: Shares of the sources, or source -> share; None for the base's initial mixture.
        drawing: How mixtures are drawn.
        seed: Of the draw, of the proxies and of the simulation.
        jobs: Proxies at a time; None for one on each device.
        ranks: Processes of the main run, by which its rows are counted.
    """

    file: Path
    base: Path
    output_dir: Path
    mixtures: int
    main: Mapping[str, Any] = field(default_factory=dict)
    proxy: Mapping[str, Any] = field(default_factory=dict)
    held_out: float = 0.2
    targets: Mapping[str, float] | None = None
    regressor: str = LIGHTGBM
    simulate: int = 100_000
    top_k: int = 128
    prior: Mapping[str, float] | Sequence[float] | None = None
    drawing: Drawing = field(default_factory=Drawing)
    seed: int = 42
    jobs: int | None = None
    ranks: int = 1

    @property
    def is_held_out(self) -> list[bool]:
        """Whether each proxy is held out: evenly among them, and the same whatever their number."""
        return [int((i + 1) * self.held_out) > int(i * self.held_out) for i in range(self.mixtures)]


def owns(content: Mapping[str, Any]) -> bool:
    """Returns whether the content of a file is one of this command."""
    return content.keys() >= KEYS_OF_ITS_OWN


def read_search(file: str | Path, overrides: Sequence[str] = ()) -> Search:
    """Returns what a file says.

    Args:
        file: A YAML or JSON file.
        overrides: ``key=value`` over its keys.

    Raises:
        ConfigError: The file cannot be read, or all that is wrong with its keys.
    """
    path = Path(file).absolute()
    content = {key: _number(value) for key, value in read_config(file, overrides).items()}
    problems = [
        Problem(str(key), f"no such key of regmix; allowed: {listed(_CHECKS)}", nearest(str(key), _CHECKS))
        for key in content
        if key not in _CHECKS
    ]
    given = {key: value for key, value in content.items() if key in _CHECKS and (value is not None or key in _NULL)}
    problems += [Problem(key, "is missing", way_out) for key, way_out in _NEEDED.items() if key not in given]
    for key, value in given.items():
        found = _CHECKS[key](key, value)
        problems += found if isinstance(found, list) else [found] if found is not None else []
    if not problems:
        search = _search(path, given)
        problems = _together(search)
    if problems:
        raise InvalidConfigError(problems)
    return search


def _search(path: Path, given: Mapping[str, Any]) -> Search:
    own = {key: value for key, value in given.items() if key not in Drawing.__dataclass_fields__}
    drawing = {key: value for key, value in given.items() if key in Drawing.__dataclass_fields__}
    targets = own.get("targets")
    if isinstance(targets, list):
        own["targets"] = dict.fromkeys(map(str, targets), 1.0)
    base = (path.parent / expanded(own.pop("base"))).absolute()
    folder = expanded(own.pop("output_dir")).absolute()
    return Search(**own, file=path, base=base, output_dir=folder, drawing=Drawing(**drawing))


def _together(search: Search) -> list[Problem]:
    """Returns what is wrong with keys that are right alone."""
    out, d = sum(search.is_held_out), search.drawing
    fit = search.mixtures - out
    problems = []
    if out < LEAST_HELD_OUT:
        what = f"{search.held_out:g} of {search.mixtures} mixtures holds out {out}; a rank correlation needs more"
        problems.append(Problem("held_out", what, f"hold out {LEAST_HELD_OUT} or more, or ask for more mixtures"))
    if search.regressor == LIGHTGBM and not has_package("lightgbm"):
        problems.append(Problem("regressor", "lightgbm is not installed", f"{EXTRA}, or set regressor: ridge"))
    if search.regressor == LIGHTGBM and fit < LEAST_OF_TREES:
        what = f"lightgbm fits {fit} mixtures; its trees split from {LEAST_OF_TREES} on, and predict the mean"
        problems.append(Problem("regressor", what, "ask for more mixtures, or set regressor: ridge"))
    if search.top_k > search.simulate:
        problems.append(Problem("top_k", f"is {search.top_k}, and {search.simulate} are simulated", "lower it"))
    if d.min_strength > d.max_strength:
        what = f"is {d.min_strength:g}, above max_strength: {d.max_strength:g}"
        problems.append(Problem("min_strength", what, "lower it, or raise max_strength"))
    return problems


def _number(value: Any) -> Any:
    """Returns a number where YAML reads a text: ``2e-4``."""
    return float(value) if isinstance(value, str) and is_decimal(value) else value


def _section(key: str, value: Any) -> Problem | list[Problem] | None:
    if not isinstance(value, Mapping):
        return Problem(key, f"found {masked(value, key)!r:.80}, allowed: keys of a run that differ from the base")
    return [
        Problem(f"{key}.{name}", f"is given by regmix: {why}", "remove it")
        for name, why in GIVEN.items()
        if name in value and (key == "proxy" or name in OF_EVERY_RUN)
    ]


def _targets(key: str, value: Any) -> Problem | None:
    named = (
        value if isinstance(value, Mapping) else dict.fromkeys(map(str, value), 1.0) if isinstance(value, list) else {}
    )
    good = named and all(isinstance(name, str) and is_number(weight) and weight >= 0 for name, weight in named.items())
    if good and any(named.values()):
        return None
    what = f"found {value!r:.80}, allowed: names of evaluation sets, as a list or name: weight, weights of 0 or more"
    return Problem(key, what, "leave it out for all in equal parts")


def _prior(key: str, value: Any) -> Problem | None:
    shares = list(value.values()) if isinstance(value, Mapping) else value
    if isinstance(shares, list) and shares and all(is_number(each) and each > 0 for each in shares):
        return None
    what = f"found {value!r:.80}, allowed: a number above 0 for each source, as a list or source: number"
    return Problem(key, what, "a source without a share can be in no mixture: leave it out of dataset")


def _held_out(key: str, value: Any) -> Problem | None:
    if is_number(value) and 0 < value <= 0.5:
        return None
    return Problem(key, f"found {value!r:.80}, allowed: a number above 0, 0.5 at most", "0.2 keeps one of five")


_CHECKS: Mapping[str, Callable[[str, Any], Problem | list[Problem] | None]] = {
    "base": text,
    "output_dir": text,
    "mixtures": count,
    "main": _section,
    "proxy": _section,
    "held_out": _held_out,
    "targets": _targets,
    "regressor": lambda key, value: one_of(key, value, REGRESSORS),
    "simulate": count,
    "top_k": count,
    "prior": _prior,
    "temperature": share,
    "min_strength": positive,
    "max_strength": positive,
    "max_usage": lambda key, value: at_least(key, value, 1) if value is not None else positive_or_null(key, value),
    "minimum": lambda key, value: positive(key, value) or share(key, value),
    "seed": lambda key, value: count(key, value, 0),
    "jobs": lambda key, value: count_or_null(key, value, "one on each device"),
    "ranks": count,
}
"""Key -> what is wrong with its value."""
_NULL = frozenset({"max_usage"})  # keys of which null says something: no bound
_NEEDED = {
    "base": "name the YAML of the main run",
    "output_dir": "name a folder for the proxies and the mixture",
    "mixtures": "say how many proxies are to be trained; the paper has 512",
}
