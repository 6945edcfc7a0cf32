"""Ray (``USE_RAY=1``): LLaMA-Factory trains in processes of Ray's, which know nothing of dataflex.

The run, and how much it says, travel to them inside the config that LLaMA-Factory hands to its workers: the environment
of a cluster that runs already is its own. Each puts dynamic training into the LLaMA-Factory of its own process.
LLaMA-Factory 0.9.5 starts an actor per rank; 0.9.4 gives a function to Ray's own
trainer. Both are found by name in the worker's process, so they stand at the top of this module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llamafactory.train.tuner as tuner

from dataflex.config.spec import RunSpec
from dataflex.core.verbosity import VARIABLE, Verbosity
from dataflex.discovery.plugins import load_plugin_files
from dataflex.integrations.llamafactory.patches import installed
from dataflex.integrations.llamafactory.quiet_libraries import quieted
from dataflex.utils.logging import log_to_stderr

KEY = "dataflex"
_Actor: Any = vars(tuner).get("Worker", object)


def replacements(spec: RunSpec, verbosity: Verbosity) -> list[tuple[Any, str, Any]]:
    """Returns (module, name, stand-in) for the way to Ray that the installed LLaMA-Factory has."""
    if "Worker" in vars(tuner):
        starts = tuner._ray_training_function
        return [(tuner, "Worker", DynamicWorker), (tuner, "_ray_training_function", _sending(spec, verbosity, starts))]
    return [(tuner, "get_ray_trainer", _sending_to_trainer(spec, verbosity, tuner.get_ray_trainer))]


class DynamicWorker(_Actor):
    """LLaMA-Factory's Ray actor, for a dynamic run."""

    def _training_function(self, config: dict[str, Any]) -> None:
        train_on_worker(config)


def train_on_worker(config: dict[str, Any]) -> None:
    """Trains as LLaMA-Factory does, with dynamic training in this process. Runs in a process of Ray's."""
    config = dict(config)
    spec: RunSpec = config.pop(KEY)
    verbosity: Verbosity = config.pop(VARIABLE)
    log_to_stderr(verbosity.own)
    load_plugin_files(spec.arguments.plugins)
    with quieted(verbosity), installed(spec):
        tuner._training_function(config)


def _sending(spec: RunSpec, verbosity: Verbosity, original: Callable[..., Any]) -> Callable[..., Any]:
    def ray_training_function(ray_args: Any, config: dict[str, Any]) -> Any:
        return original(ray_args, config={**config, KEY: spec, VARIABLE: verbosity})

    return ray_training_function


def _sending_to_trainer(spec: RunSpec, verbosity: Verbosity, original: Callable[..., Any]) -> Callable[..., Any]:
    def get_ray_trainer(training_function: Any, train_loop_config: dict[str, Any], ray_args: Any) -> Any:
        return original(train_on_worker, {**train_loop_config, KEY: spec, VARIABLE: verbosity}, ray_args)

    return get_ray_trainer
