"""The proxies as whole runs: the base with its mixture replaced, and what the base must be for that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from dataflex.config.arguments import COMPOSED
from dataflex.config.axis_keys import COMPONENT, EVERY, FROM
from dataflex.config.check import check
from dataflex.config.checks.parsed_config import names_in
from dataflex.config.load import read_config
from dataflex.config.spec import RunSpec
from dataflex.core.errors import InvalidConfigError, Problem, listed, nearest
from dataflex.core.kinds import MIXER
from dataflex.experiments.arm_steps import total_steps
from dataflex.experiments.experiment_arms import Arm, each_warning_once, merged, with_absolute_paths
from dataflex.experiments.planned_runs import PlannedRun

from dataflex_mixers.regmix.mixture_drawing import Array
from dataflex_mixers.regmix.regmix_file import OF_EVERY_RUN, Search

COMMAND = "regmix"


@dataclass(frozen=True)
class Main:
    """The main run and its proxies, checked.

    Attributes:
        search: The file.
        config: The keys of the main run, without those that are given.
        spec: The main run, checked.
        proxy_config: The keys of a proxy, on equal shares.
        proxy_spec: The same, checked.
        names: The sources.
        targets: Metric of a run -> weight, with sum 1.
    """

    search: Search
    config: Mapping[str, Any]
    spec: RunSpec
    proxy_config: Mapping[str, Any]
    proxy_spec: RunSpec
    names: tuple[str, ...]
    targets: Mapping[str, float]

    def proxies(self, mixtures_NK: Array) -> list[PlannedRun]:
        """Returns the runs of the proxies, in their order."""
        return [self._proxy(number, row.tolist()) for number, row in enumerate(mixtures_NK, start=1)]

    def _proxy(self, number: int, shares: list[float]) -> PlannedRun:
        config = dict(self.proxy_config) | {"init_mixture_proportions": shares}
        arguments = replace(self.proxy_spec.arguments, init_mixture_proportions=tuple(shares))
        arm = Arm(f"proxy {number}", config, replace(self.proxy_spec, arguments=arguments))
        folder = self.search.output_dir / "proxies" / f"{number:04d}"
        return PlannedRun(arm, self.search.seed, folder, command=COMMAND)

    def final(self, shares: Sequence[float]) -> dict[str, Any]:
        """Returns the keys of the main run on a mixture."""
        return on_mixture(self.config, shares) | {"output_dir": str(self.search.output_dir / "final")}


def on_mixture(config: Mapping[str, Any], shares: Sequence[float]) -> dict[str, Any]:
    """Returns a run on fixed shares: ``static_mix`` under the short form, the mixer ``static`` in a composed run."""
    mixture = {"mixture_sample_rule": "mixture", "init_mixture_proportions": [float(share) for share in shares]}
    kept = {key: value for key, value in config.items() if key not in ("component_name", "component", "static_mix")}
    if config.get("train_type") != COMPOSED:
        return kept | {"static_mix": True} | mixture
    given = config.get(MIXER.name)
    turns = {key: given[key] for key in (EVERY, FROM) if key in given} if isinstance(given, Mapping) else {}
    return dict(config) | {MIXER.name: {COMPONENT: "static"} | turns} | mixture


def read_main(search: Search) -> Main:
    """Returns the main run and its proxies, both checked as ``dataflex-cli validate`` checks a run.

    Raises:
        ConfigError: Everything that is wrong with the base, with the proxies, or with what they are asked for.
    """
    config = {key: value for key, value in read_config(search.base).items() if key not in OF_EVERY_RUN}
    with each_warning_once():
        config = merged(with_absolute_paths(config, search.base.parent), search.main, None)
        spec = _checked("base", config, search)
        names = tuple(names_in(spec.llamafactory.get("dataset")))
        problems = _not_fixed(spec) + _too_few(names, search) + _unlike_the_names(names, search)
        targets, wrong = _targets(spec, search)
        if problems or wrong:
            raise InvalidConfigError([*problems, *wrong])
        proxy = on_mixture(merged(config, search.proxy, total_steps(spec)), [1 / len(names)] * len(names))
        return Main(search, config, spec, proxy, _checked("proxy", proxy, search), names, targets)


def given_prior(main: Main) -> Array | None:
    """Returns the prior of the file, (K,) with sum 1; None where the base's initial mixture is it."""
    prior = main.search.prior
    if prior is None:
        return None
    shares = [prior[name] for name in main.names] if isinstance(prior, Mapping) else prior
    shares_K = np.asarray(shares, dtype=np.float64)
    return np.asarray(shares_K / shares_K.sum())


def _checked(name: str, config: Mapping[str, Any], search: Search) -> RunSpec:
    try:
        return check({**config, "output_dir": str(search.output_dir / "proxies")}, search.base.parent)
    except InvalidConfigError as error:
        raise InvalidConfigError([Problem(f"{name}: {p.where}", p.what, p.way_out) for p in error.problems]) from error


def _not_fixed(spec: RunSpec) -> list[Problem]:
    if not spec.mixes:
        what = "does not mix its sources, so that no mixture can be found for it"
        return [Problem("base", what, "give it train_type: dynamic_mix and static_mix: true")]
    if spec.arguments.mixture_by is not None:
        what = f"found '{spec.arguments.mixture_by}': each run makes such sources of its own rows, and a mixture of "
        what += "proxies is only one of the main run where both have the same sources"
        return [Problem("base: mixture_by", what, "make a dataset of each source, and name them all in dataset")]
    if spec.mixer is not None and spec.mixer.component.name.rpartition(":")[2] != "static":
        what = f"moves its mixture with the mixer '{spec.mixer.component.name}'; regmix finds one that stays"
        return [Problem("base", what, "use the mixer static, or static_mix: true")]
    return []


def _too_few(names: Sequence[str], search: Search) -> list[Problem]:
    if len(names) < 2:
        return [Problem("base: dataset", f"names {len(names)} source; a mixture is of two or more", "name them")]
    if search.drawing.minimum * len(names) >= 1:
        what = f"is {search.drawing.minimum:g}: with {len(names)} sources each of equal shares would be below it"
        return [Problem("minimum", what, f"set it below {1 / len(names):.3g}")]
    return []


def _unlike_the_names(names: Sequence[str], search: Search) -> list[Problem]:
    prior = search.prior
    if isinstance(prior, Mapping) and prior.keys() != set(names):
        what = f"names {listed(map(str, prior))}; the sources are {', '.join(names)}"
        return [Problem("prior", what, "give each of them a number")]
    if prior is not None and len(prior) != len(names):
        what = f"has {len(prior)} numbers; there are {len(names)} sources ({', '.join(names)})"
        return [Problem("prior", what, "give each of them a number")]
    return []


def _targets(spec: RunSpec, search: Search) -> tuple[dict[str, float], list[Problem]]:
    """Returns metric -> weight with sum 1, and what is wrong with the evaluation."""
    theirs = spec.llamafactory
    sets = names_in(theirs.get("eval_dataset"))
    if not sets and not theirs.get("val_size"):
        return {}, [Problem("base: eval_dataset", "is missing: proxies are told apart by losses", "name the targets")]
    if theirs.get("do_eval") is not True and theirs.get("eval_strategy") not in ("steps", "epoch"):
        return {}, [Problem("base: do_eval", "nothing is evaluated", "set do_eval: true, which evaluates at the end")]
    each = len(sets) > 0 and theirs.get("eval_on_each_dataset") is True
    known = {name: f"eval_{name}_loss" for name in sets} if each else {"eval_loss": "eval_loss"}
    if not each and len(sets) == 1:
        known[sets[0]] = "eval_loss"
    asked = search.targets or dict.fromkeys(sets if each else ["eval_loss"], 1.0)
    unknown = [name for name in asked if name not in known]
    if unknown:
        what = f"no run evaluates it alone; evaluated are {listed(known)}"
        way_out = nearest(unknown[0], known) or (
            "name one of these" if each or len(sets) < 2 else "set eval_on_each_dataset: true in the base"
        )
        return {}, [Problem(f"targets.{unknown[0]}", what, way_out)]
    total = sum(asked.values())
    return {known[name]: float(weight) / total for name, weight in asked.items()}, []
