"""``dataflex-cli validate``: everything that can be known about a run without loading a model, all problems at once.

FILE is a YAML or JSON file, key=value overrides it; both as for train. The file of a command that reads one of its
own, such as those that plugins add, is checked as that command checks it.
The exit code is 0 where nothing wrong was found, else 2; 1 where a plugin of the run ends the process when it is
imported. Without LLaMA-Factory dataflex's keys and those of transformers are checked, and the others are named: then 0
does not mean that the run can start, and the first line says so.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from dataflex.cli.plugin_commands import command_of_file
from dataflex.cli.run_file import checked_run
from dataflex.config.checks.parsed_config import names_in
from dataflex.config.known_keys import handed_on, unchecked_keys, why_unchecked
from dataflex.config.spec import RunSpec, begins
from dataflex.config.summary import in_words
from dataflex.core.kinds import WEIGHTER
from dataflex.core.verbosity import without_flag
from dataflex.discovery.installed import has_package
from dataflex.launch.packages import WITH_LLAMAFACTORY
from dataflex.utils.secret_values import masked

SUMMARY = "check a configuration without loading a model"
USAGE = "dataflex-cli validate FILE [key=value ...]"


def run(argv: Sequence[str]) -> int:
    """Prints what the run would be, or raises with everything that is wrong. Returns the exit code."""
    own = command_of_file(argv)
    if own is not None and own.validate is not None:
        return own.validate(argv)
    spec = checked_run(argv, USAGE)
    sys.stdout.write(
        f"{without_flag(argv)[0]}{_verdict(spec)}\n"
        + "".join(f"  {name + ':':<11} {text}\n" for name, text in _summary(spec))
    )
    return 0


def _verdict(spec: RunSpec) -> str:
    train_type = spec.arguments.train_type
    unchecked = len(unchecked_keys(spec.llamafactory, train_type))
    keys = "1 of its keys was" if unchecked == 1 else f"{unchecked} of its keys were"
    if not has_package("llamafactory"):
        left = f"{keys} not checked and " if unchecked else ""
        found = ": no mistake found, but LLaMA-Factory is not installed, so"
        return f"{found} {left}the run cannot start here -> {WITH_LLAMAFACTORY}"
    if unchecked or handed_on(train_type):
        return f": no mistake found, but {keys.replace('its', 'the')} not checked: {why_unchecked(train_type)}"
    return " can be run"


def _summary(spec: RunSpec) -> Iterator[tuple[str, str]]:
    yield "train_type", spec.arguments.train_type
    for part in spec.axes:
        component = part.component
        preset = f" (preset {component.preset})" if component.preset != component.name else ""
        shown = masked(component.params)
        params = ", ".join(f"{name}={value!r}" for name, value in shown.items()) or "at its defaults"
        yield component.kind.name, f"{component.name}{preset}: {params}"
    if spec.arguments.dynamic:
        yield "run", in_words(spec)
        yield "schedule", schedule_in_words(spec)
        yield "output", str(masked(spec.llamafactory.get("output_dir"), "output_dir"))
    unchecked = unchecked_keys(spec.llamafactory, spec.arguments.train_type)
    if unchecked:
        yield "unchecked", ", ".join(unchecked)
    if not handed_on(spec.arguments.train_type):
        yield "datasets", ", ".join(names_in(masked(spec.llamafactory.get("dataset"), "dataset"))) or "none"


def schedule_in_words(spec: RunSpec) -> str:
    """Returns when the run updates and when it ends, as far as that follows from the configuration."""
    a, steps = spec.arguments, spec.steps()
    if steps.repeats and steps.epochs != 1:
        end = f"{steps.formula} steps, repeated for num_train_epochs: {steps.epochs:g}"
    elif steps.total is not None:
        end = f"{steps.total} steps in all"
    else:
        end = f"{steps.epochs:g} epoch{'' if steps.epochs == 1 else 's'} of the data"
    if a.static_mix:
        return f"no updates, {end}"
    parts = [f"{a.warmup_step} warm-up steps"] if a.warmup_step else []
    if not steps.decides and not spec.weighs:
        return f"no updates, {end}"
    if not steps.decides:
        start = begins(WEIGHTER, a) if spec.weighter is None else spec.weighter.start
        parts = [f"{start} warm-up steps"] if start else []
        return "; ".join([*parts, "then every step is weighted" if parts else "every step is weighted", end])
    if a.update_times == 0:
        parts.append("no updates")
    elif a.update_times > 0:
        times = "1 update" if a.update_times == 1 else f"{a.update_times} updates"
        parts.append(f"{times}, each followed by {a.update_step} steps")
    else:
        parts.append(f"an update every {a.update_step} steps until the end")
    return "; ".join([*parts, end])
