"""The runs of an experiment on disk: one folder, one written plan and one log for each arm and seed.

    OUT/ARM/seed-S.yaml     the plan: what dataflex-cli train was given
    OUT/ARM/seed-S.log      what it said, of all starts
    OUT/ARM/seed-S/         its output_dir

The plan is written before the run starts, and by it a folder is known: one whose plan is another is refused, and
nothing is ever written over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dataflex.config.declared_values import declared_value
from dataflex.config.load import read_mapping
from dataflex.config.resolved import recorded_run
from dataflex.config.spec import RunSpec
from dataflex.core.errors import ConfigError
from dataflex.core.files import replacing
from dataflex.experiments.experiment_arms import Arm
from dataflex.experiments.experiment_file import Experiment
from dataflex.utils.secret_values import masked, taken_out, without_secrets

_MARK = "# Written by dataflex-cli {}, which knows the folder beside it by this file."
_COMPONENTS, _JOBS = "# components: ", "# jobs: "
_NO_JOBS = "as the environment says"
_TOKENS = "include_num_input_tokens_seen"
ALL_RESULTS, TRAINER_STATE = "all_results.json", "trainer_state.json"
_MAY_DIFFER = frozenset({
    "output_dir", "plot_loss", "disable_tqdm", "report_to", "run_name", "logging_dir", "log_level", "logging_steps",
    "preprocessing_num_workers", "overwrite_cache", "save_total_limit", "save_steps", "save_strategy",
})  # fmt: skip
"""Keys on which no figure of a run depends. The folder may have been moved."""

NEW, STOPPED, UNEVALUATED, FINISHED = "new", "stopped", "not evaluated", "finished"


@dataclass(frozen=True)
class PlannedRun:
    """A run of an arm with a seed.

    Attributes:
        arm: The arm.
        seed: The seed.
        folder: Its ``output_dir``, absolute.
        jobs: Its ranks under torchrun; None where the environment decides.
        command: The command that it is a run of.
    """

    arm: Arm
    seed: int
    folder: Path
    jobs: int | None = None
    command: str = "compare"

    @property
    def file(self) -> Path:
        """Its plan."""
        return self.folder.with_name(f"{self.folder.name}.yaml")

    @property
    def log(self) -> Path:
        """Where what it says is kept."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def name(self) -> str:
        """It, in words."""
        return f"{self.arm.name}, seed {self.seed}"

    def config(self) -> dict[str, Any]:
        """Returns its keys. Tokens are counted, as a table shows them: training is the same with it."""
        declared = declared_value(_TOKENS)
        count: dict[str, Any] = {_TOKENS: "non_padding" if declared and "str" in declared.types else True}
        own = {"seed": self.seed, "data_seed": self.seed, "output_dir": str(self.folder)}
        return count | dict(self.arm.config) | own

    def write(self) -> dict[str, str]:
        """Writes the plan; returns the environment that holds the secrets which it leaves out."""
        config, secrets = taken_out(self.config())
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.file) as temporary, open(temporary, "w", encoding="utf-8") as file:
            file.write(f"{_MARK.format(self.command)}\n{_COMPONENTS}{_components(self.arm.spec)}\n")
            file.write(f"{_JOBS}{self.jobs or _NO_JOBS}\n")
            yaml.safe_dump(config, file, sort_keys=False, allow_unicode=True)
        return secrets

    def differences(self, but: frozenset[str] = frozenset()) -> list[str]:
        """Returns one line for each thing in which the plan on disk is another; none where there is no plan.

        Args:
            but: Keys that may be others.

        Raises:
            ConfigError: Nothing tells what the folder holds.
        """
        if not self.file.exists():
            if self.folder.exists() and any(self.folder.iterdir()):
                raise ConfigError(
                    f"{self.folder} holds something, and {self.file.name} beside it, by which a run of {self.command} "
                    "is known, is missing -> choose another output_dir, or move the folder away"
                )
            return []
        before, now = self._written(), masked(self.config())
        keys = sorted({*before, *now} - _MAY_DIFFER - but)
        told = without_secrets(before), without_secrets(now)
        found = [
            f"{key}: {_shown(told[0], key)} before, {_shown(told[1], key)} now"
            for key in keys
            if told[0].get(key) != told[1].get(key)
        ]
        for what, said in ((_COMPONENTS, _components(self.arm.spec)), (_JOBS, str(self.jobs or _NO_JOBS))):
            if (earlier := self._noted(what)) not in (said, None):
                found.append(f"{what.removeprefix('# ')}{earlier} before, {said} now")
        return found

    def require_same(self, but: frozenset[str] = frozenset()) -> None:
        """Refuses a folder that holds another run.

        Args:
            but: Keys that may be others.

        Raises:
            ConfigError: Naming the folder and what differs.
        """
        lines = self.differences(but)
        if lines:
            raise ConfigError(
                f"{self.folder} holds a run of another configuration:\n  - "
                + "\n  - ".join(lines)
                + f"\n-> choose another output_dir for {self.command}, restore the configuration, or move the folder "
                f"and {self.file.name} away"
            )

    def state(self) -> str:
        """Returns how far it is.

        Raises:
            ConfigError: The folder holds another run.
        """
        self.require_same()
        if not self.folder.exists():
            return NEW
        results, trained = read_json(self.folder / ALL_RESULTS), self._is_trained()
        if trained and all(any(key.startswith(begin) for key in results) for begin in self._evaluations()):
            return FINISHED
        return UNEVALUATED if trained else STOPPED

    def move_aside(self, to: str) -> None:
        """Gives the folder, the log and, last, the plan another name: by the plan the others are known."""
        for path in (self.folder, self.log, self.file):
            if path.exists():
                path.rename(path.with_name(path.name.replace(self.folder.name, to, 1)))

    def _is_trained(self) -> bool:
        """Whether its last step is done and its model saved."""
        state = read_json(self.folder / TRAINER_STATE)
        done, total = state.get("global_step"), state.get("max_steps")
        if self.arm.spec.arguments.dynamic:
            recorded = recorded_run(self.folder)
            return recorded is not None and recorded.finished is not None
        return isinstance(done, int) and isinstance(total, int) and done >= total > 0

    def _evaluations(self) -> list[str]:
        theirs = self.arm.spec.llamafactory
        evaluates = theirs.get("do_eval") is True or theirs.get("eval_strategy") in ("steps", "epoch")
        return ["train_"] + ["eval_"] * evaluates + ["predict_"] * (theirs.get("do_predict") is True)

    def _written(self) -> dict[str, Any]:
        if not self.file.read_text(encoding="utf-8").startswith(_MARK.format(self.command)):
            raise ConfigError(
                f"{self.file} does not say that this command wrote it -> move it away, or choose another output_dir"
            )
        return {str(key): value for key, value in read_mapping(self.file, llamafactory=True).items()}

    def _noted(self, what: str) -> str | None:
        """Returns what the plan on disk notes beside the keys; None where it does not have that line."""
        lines = self.file.read_text(encoding="utf-8").splitlines()
        return next((line.removeprefix(what) for line in lines if line.startswith(what)), None)


def planned(arm: Arm, seed: int, experiment: Experiment) -> PlannedRun:
    """Returns the run of an arm with a seed."""
    return PlannedRun(arm, seed, experiment.output_dir / arm.name / f"seed-{seed}", experiment.jobs)


def read_json(path: Path) -> Mapping[str, Any]:
    """Returns the object in a JSON file; an empty one where there is none, or it was cut off."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _components(spec: RunSpec) -> str:
    """Returns the components of a run with all of their parameters, in a line: their file may change."""
    parts = [
        {
            "kind": c.kind.name,
            "name": c.name,
            "params": masked(dict(c.params)),
            "by": c.by or p.by,
            "over": c.over or p.over,
        }
        for p in spec.axes
        for c in [p.component]
    ]
    return json.dumps(parts, sort_keys=True, default=str)


def _shown(keys: Mapping[str, Any], key: str) -> str:
    return f"{keys[key]!r:.80}" if key in keys else "not set"
