"""The three runs of DoReMi from one file: reference, proxy, final model.

    common:      {stage: pt, dataset: "web,code", output_dir: saves/doremi, ...}   # keys of all three runs
    reference:   {model_name_or_path: small, train_step: 1000}                      # step 1
    proxy:       {model_name_or_path: small, train_step: 1000, params: {eta: 1.0}}  # step 2
    final:       {model_name_or_path: large, train_step: 10000}                     # step 3
    rounds:      1                                  # steps 1 and 2 so many times, each on the mixture of the one before

Each section overrides ``common``. What makes it a step of DoReMi is added here: a static mixture for the reference, the
doremi mixer with that reference for the proxy, and a static mixture with the proxy's averaged weights for the final
model. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from dataflex.config.checks.parsed_config import names_in
from dataflex.core import registry
from dataflex.core.errors import ConfigError, InvalidConfigError, Problem, listed, nearest
from dataflex.core.files import replacing
from dataflex.core.kinds import MIXER

STEPS = ("reference", "proxy", "final")
COMMON = "common"
PARAMS = "params"
ROUNDS, MOST_ROUNDS = "rounds", 100
_MARK = "# Written by dataflex-cli doremi, which writes it again."
FINISHED = "trainer_state.json"  # what the trainer writes into output_dir last
_GIVEN = {
    "reference": ("train_type", "static_mix", "component_name", "components_cfg_file"),
    "proxy": ("train_type", "static_mix", "component_name", "components_cfg_file", "init_mixture_proportions"),
    "final": ("train_type", "static_mix", "component_name", "components_cfg_file", "init_mixture_proportions"),
}


@dataclass(frozen=True)
class Pipeline:
    """The file, taken apart.

    Attributes:
        sections: Step -> its keys over the common ones, without what dataflex adds.
        params: Parameters of the doremi mixer.
        folder: ``output_dir``; each step has a folder of its own in it.
        names: The sources.
        rounds: How often a reference and a proxy are trained, at most.
        number: The round, from 1 on.
    """

    sections: Mapping[str, Mapping[str, Any]]
    params: Mapping[str, Any]
    folder: Path
    names: tuple[str, ...]
    rounds: int = 1
    number: int = 1

    @property
    def own_folder(self) -> Path:
        """The folder of the round; the pipeline's where there is one."""
        return self.folder / f"round-{self.number}" if self.rounds > 1 else self.folder

    def of_round(self, number: int) -> Pipeline:
        """Returns the pipeline of another round."""
        return replace(self, number=number)

    def output_dir(self, step: str) -> Path:
        """Returns the folder of a step; the final model has one for all rounds."""
        return (self.folder if step == "final" else self.own_folder) / step

    def finished(self, step: str) -> bool:
        """Returns whether a step's training has ended."""
        return (self.output_dir(step) / FINISHED).exists()

    def config(self, step: str, weights: list[float] | None = None) -> dict[str, Any]:
        """Returns the keys of a run.

        Args:
            step: One of :data:`STEPS`.
            weights: The mixture of the final model, and of a reference after the first round; None stands for equal
                shares, to check the rest.
        """
        keys: dict[str, Any] = {"mixture_unit": "tokens"} | dict(self.sections[step])
        keys |= {"train_type": "dynamic_mix", "output_dir": str(self.output_dir(step))}
        if step == "reference" and self.number == 1:
            return {"mixture_sample_rule": "stratified"} | keys | {"static_mix": True}
        if step == "proxy":
            files = {"component_name": "doremi", "components_cfg_file": str(self.components_file)}
            return {"mixture_sample_rule": "uniform", "update_step": 100} | keys | files
        shares = weights or [1.0] * len(self.names)
        return keys | {"static_mix": True, "mixture_sample_rule": "mixture", "init_mixture_proportions": shares}

    @property
    def components_file(self) -> Path:
        """The file with the proxy's parameters."""
        return self.own_folder / "proxy_components.yaml"

    def components(self) -> dict[str, Any]:
        """Returns what stands in it."""
        params = dict(self.params) | {"reference_model": str(self.output_dir("reference"))}
        alone = len(registry.providers(MIXER, "doremi")) == 1
        return {"mixers": {"doremi": {"name": "doremi" if alone else "dataflex-mixers:doremi", "params": params}}}

    def run_file(self, step: str) -> Path:
        """Returns the YAML of a step, which ``dataflex-cli train`` takes as well."""
        return self.output_dir(step).with_name(f"{STEPS.index(step) + 1}_{step}.yaml")


def parse(content: Mapping[str, Any], overrides: Mapping[str, Any]) -> Pipeline:
    """Returns the pipeline that a file describes.

    Args:
        content: The file.
        overrides: Keys that win in all three runs.

    Raises:
        InvalidConfigError: Everything that is wrong with the sections; the keys inside are checked as each run's.
    """
    _refuse(_problems_of_sections(content))
    own = {step: dict(content.get(step) or {}) for step in STEPS}
    params = own["proxy"].pop(PARAMS, None) or {}
    sections = {step: dict(content.get(COMMON) or {}) | own[step] | dict(overrides) for step in STEPS}
    folder = sections["final"].get("output_dir")
    problems = _problems_of_runs(sections)
    if not isinstance(folder, str) or not folder:
        problems.append(Problem(f"{COMMON}: output_dir", "is missing", "name the folder for the three runs"))
    if not isinstance(params, Mapping):
        problems.append(Problem("proxy: params", f"found {params!r}, allowed: parameters of the doremi mixer"))
    elif "reference_model" in params:
        problems.append(
            Problem("proxy: params.reference_model", "is given by DoReMi: that of the first step", "remove it")
        )
    _refuse(problems)
    names = tuple(names_in(sections["final"].get("dataset")))
    return Pipeline(sections, params, Path(str(folder)).absolute(), names, content.get(ROUNDS, 1))


def _refuse(problems: list[Problem]) -> None:
    if problems:
        raise InvalidConfigError(problems)


def _problems_of_sections(content: Mapping[str, Any]) -> list[Problem]:
    """Returns what is wrong with the file's sections, whatever is in them."""
    allowed = (COMMON, *STEPS, ROUNDS)
    problems = [
        Problem(str(key), f"no such section; allowed: {listed(allowed)}", nearest(str(key), allowed))
        for key in content
        if key not in allowed
    ]
    rounds = content.get(ROUNDS, 1)
    if isinstance(rounds, bool) or not isinstance(rounds, int) or not 1 <= rounds <= MOST_ROUNDS:
        what = f"found {rounds!r:.80}, allowed: a whole number from 1 to {MOST_ROUNDS}"
        problems.append(Problem(ROUNDS, what, "leave it out for one round"))
    for name in (COMMON, *STEPS):
        if not isinstance(content.get(name) or {}, Mapping):
            problems.append(Problem(name, f"found {content[name]!r}, allowed: keys of a run"))
    return problems


def _problems_of_runs(sections: Mapping[str, Mapping[str, Any]]) -> list[Problem]:
    """Returns what the runs cannot have: keys that are given to them, that differ between them, or that part them."""
    problems = [
        Problem(f"{step}: {key}", "is given by DoReMi", "remove it")
        for step in STEPS
        for key in _GIVEN[step]
        if key in sections[step]
    ]
    problems += [
        Problem(f"{step}: {key}", "differs from that of the other steps", f"give it under {COMMON} alone")
        for step in STEPS
        for key in ("output_dir", "dataset")
        if sections[step].get(key) != sections["final"].get(key)
    ]
    problems += [
        Problem(
            f"{step}: mixture_by",
            f"found {sections[step]['mixture_by']!r:.80}: each run makes such sources of its own rows, and the weights "
            "of the proxy are those of datasets here",
            "make a dataset of each source, and name them all in dataset",
        )
        for step in STEPS
        if sections[step].get("mixture_by") is not None
    ]
    method = sections["reference"].get("finetuning_type", "lora")
    if method != "full":
        what = f"found {method!r}; the proxy needs a whole reference model"
        problems.append(Problem("reference: finetuning_type", what, "set finetuning_type: full"))
    return problems


def read_yaml(path: Path) -> Any:
    """Returns what a file of this command holds; None where there is none, or nothing that can be read."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None


def write_yaml(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a mapping; the file is there whole or not at all.

    Raises:
        ConfigError: A file of that name is there, and it does not say that this command wrote it.
    """
    if path.exists() and read_yaml(path) != value and not _is_ours(path):
        raise ConfigError(
            f"{path} does not say that this command wrote it -> move it away, or choose another output_dir in {COMMON}"
        )
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(f"{_MARK}\n")
        yaml.safe_dump(dict(value), file, sort_keys=False, allow_unicode=True)


def _is_ours(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.readline().rstrip() == _MARK.encode()
    except OSError:
        return False
