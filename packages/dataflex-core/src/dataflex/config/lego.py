"""``train_type: dynamic_lego`` of the public implementation (OpenDCAI/DataFlex 1.1.0), read as ``train_type: dynamic``.

There a preset of ``pipelines:`` in the components file is a list of stages, which act at the marks of the run
(``warmup_step`` and ``update_step``); a stage whose turn has come makes every later one act, too. Here each stage is a
key of the run. What has no counterpart is refused with the lines to write instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataflex.config.arguments import COMPOSED
from dataflex.config.axis_keys import AXES, COMPONENT, EVERY, FROM, KEEP, PARAMS
from dataflex.config.checks.parsed_config import find_path
from dataflex.config.load import read_mapping
from dataflex.config.reorders import lines, read_reorder, reorders_in
from dataflex.core.errors import ConfigError, InvalidConfigError, Problem, listed, nearest
from dataflex.core.kinds import MIXER, ORDER, SELECTOR, WEIGHTER
from dataflex.utils.logging import logger

TRAIN_TYPE = "dynamic_lego"
SECTION = "pipelines"
_FAMILIES = {"selector": SELECTOR, "mixer": MIXER, "reorder": ORDER, "weighter": WEIGHTER}
"""The families of stages, in the order in which they act."""
_COMMON = frozenset({"family", "component", "every", "warmup_step", "enabled", "score_max_age"})
_OWN = {"selector": {"mode", "keep_ratio"}, "mixer": {"allow_replacement"}}
_MODES = ("filter", "draw")


@dataclass
class _Reading:
    """A pipeline as far as it has been read."""

    where: str
    warmup: int
    update: int
    axes: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    turn: tuple[int, int] | None = None  # of the stage before: every so many updates, from this step on


def read_pipeline(ours: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], list[Problem]]:
    """Returns dataflex's keys of a run, with a pipeline as ``train_type: dynamic``; those of another run as they are.

    With them comes what is to be said where these keys have problems, as presets of the file may: the lines to write
    that need no file.

    Args:
        ours: The keys.
        folder: The folder of the file that they come from.

    Raises:
        ConfigError: The pipeline cannot be read, or has no counterpart; then with the lines to write instead.
    """
    if ours.get("train_type") != TRAIN_TYPE:
        return dict(ours), []
    where, stages, content = _stages(ours, folder)
    reading = _Reading(where, _steps(ours, "warmup_step"), _steps(ours, "update_step"))
    found = sorted(_enabled(stages, reading), key=lambda stage: list(_FAMILIES).index(stage[1]["family"]))
    families = [stage["family"] for _, stage in found]
    for number, (place, stage) in enumerate(found):
        if stage["family"] in families[:number]:
            what = f"is a second stage of the family {stage['family']}, of which a pipeline has one"
            reading.problems.append(Problem(place, what, "leave one out"))
            continue
        reading.axes[_FAMILIES[stage["family"]].name] = _part(place, stage, families, reading)
    if not reading.axes:
        reading.problems.append(Problem(f"{where}.params.stages", "none is enabled", "enable one"))
    if reading.problems:
        first, *others = reading.problems
        instead = f"{first.way_out}, or write instead: {lines(_alone(reading.axes, content))}"
        raise InvalidConfigError([Problem(first.where, first.what, instead), *others])
    said = lines(reading.axes)
    logger.info("train_type: %s, component_name: %s is run as %s", TRAIN_TYPE, ours["component_name"], said)
    kept = {key: value for key, value in ours.items() if key not in ("train_type", "component_name")}
    what = f"presets of the pipeline '{ours['component_name']}' have what is wrong here"
    way_out = f"mend them, or leave components_cfg_file out and write instead: {lines(_alone(reading.axes, content))}"
    return kept | {"train_type": COMPOSED} | reading.axes, [Problem("component_name", what, way_out)]


def _alone(axes: Mapping[str, Any], content: Mapping[Any, Any]) -> dict[str, Any]:
    """Returns axes without presets of a components file: components at our defaults, orders as the file has them."""
    found = {}
    for key, part in axes.items():
        section = reorders_in(content)[1] if key == ORDER.name else content.get(AXES[key].section)
        entry = section.get(part[COMPONENT]) if isinstance(section, dict) else None
        known = entry if isinstance(entry, dict) else {}
        if key == ORDER.name and isinstance(known.get(PARAMS), dict):
            order = read_reorder(part[COMPONENT], known[PARAMS], "").part()
            found[key] = {**order, **part, COMPONENT: order[COMPONENT]}
        else:
            found[key] = part | {COMPONENT: known.get("name", part[COMPONENT])}
    return found


def _stages(ours: Mapping[str, Any], folder: Path) -> tuple[str, Sequence[Any], Mapping[Any, Any]]:
    """Returns the place of the pipeline that the run names, its stages, and all that the file holds."""
    name, file = ours.get("component_name"), ours.get("components_cfg_file")
    if not isinstance(name, str) or not isinstance(file, str):
        missing = "components_cfg_file" if isinstance(name, str) else "component_name"
        what = f"is missing; train_type: {TRAIN_TYPE} takes a pipeline from {SECTION}: of a components file"
        raise InvalidConfigError(
            [Problem(missing, what, f"give it, or set train_type: {COMPOSED} with a key for each axis")]
        )
    path = find_path(file, folder)
    try:
        content = read_mapping(path)
    except ConfigError as error:
        raise InvalidConfigError([Problem("components_cfg_file", str(error))]) from error
    section = content.get(SECTION)
    known = section if isinstance(section, dict) else {}
    where = f"{path}: {SECTION}.{name}"
    if name not in known:
        what = f"no pipeline named '{name}'; known: {listed(map(str, known)) or 'none'}"
        raise InvalidConfigError(
            [Problem("component_name", what, nearest(name, map(str, known)) or f"add it to {path}")]
        )
    params = known[name].get("params") if isinstance(known[name], dict) else None
    stages = params.get("stages") if isinstance(params, dict) else None
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        what = f"found {stages!r:.80}, allowed: a list of stages"
        way_out = "write family: and component: for each"
        raise InvalidConfigError([Problem(f"{where}.params.stages", what, way_out)])
    return where, stages, content


def _enabled(stages: Sequence[Mapping[str, Any]], reading: _Reading) -> list[tuple[str, Mapping[str, Any]]]:
    """Returns the stages that are switched on and can be read, each with its place."""
    found = []
    for number, stage in enumerate(stages):
        place = f"{reading.where}.params.stages[{number}]"
        if stage.get("enabled", True) is False:
            continue
        family = stage.get("family")
        if family not in _FAMILIES or not isinstance(stage.get("component"), str):
            what = f"found family: {family!r} and component: {stage.get('component')!r}"
            reading.problems.append(Problem(place, what, f"write family: {' | '.join(_FAMILIES)}, and a preset of it"))
            continue
        allowed = _COMMON | _OWN.get(str(family), set())
        for key in sorted(stage.keys() - allowed):
            hint = nearest(str(key), allowed) or "remove it"
            reading.problems.append(Problem(f"{place}.{key}", f"no such key; allowed: {listed(allowed)}", hint))
        found.append((place, stage))
    return found


def _part(place: str, stage: Mapping[str, Any], families: Sequence[str], reading: _Reading) -> dict[str, Any]:
    """Returns a stage as a part."""
    part: dict[str, Any] = {COMPONENT: stage["component"]}
    start = _whole(place, stage, "warmup_step", 0, reading)
    if stage["family"] == "weighter":
        return part | {FROM: start}
    if stage["family"] == "selector":
        part |= _keep(place, stage, families, reading)
    every = _turn(place, stage, start, reading)
    part |= {EVERY: every} if every != 1 else {}
    if stage.get("score_max_age"):
        what = "has no counterpart for a stage"
        way_out = "remove it; components that take older scores have the parameter max_age"
        reading.problems.append(Problem(f"{place}.score_max_age", what, way_out))
    return part | ({FROM: start} if start > reading.warmup else {})


def _keep(place: str, stage: Mapping[str, Any], families: Sequence[str], reading: _Reading) -> dict[str, Any]:
    mode = stage.get("mode", "filter")
    if mode not in _MODES:
        what = f"found {mode!r}, allowed: {' | '.join(_MODES)}"
        reading.problems.append(Problem(f"{place}.mode", what, nearest(str(mode), _MODES) or "write one of these"))
    later = [family for family in families if family in ("mixer", "reorder")]
    if mode == "draw" and later:
        what = f"is draw, and the stage {later[0]} behind it chooses the rows; there, too, that is refused"
        reading.problems.append(Problem(f"{place}.mode", what, "write mode: filter"))
    return {} if mode == "draw" else {KEEP: stage.get("keep_ratio", 0.5)}


def _turn(place: str, stage: Mapping[str, Any], start: int, reading: _Reading) -> int:
    """Returns in which updates a stage acts: its ``every`` is in steps, and an earlier stage takes it along."""
    steps, update = _whole(place, stage, "every", 1, reading), reading.update
    if not update:
        return 1  # update_step is missing, which the checks of the run say
    own = max(1, -(-steps // update))
    before, since = reading.turn or (own, 0)
    turn = min(own, before)
    first = max(0, -(-(start - reading.warmup) // update))
    reading.turn = (turn, max(start, reading.warmup))
    if steps > update and steps % update:
        what = (
            f"is {steps} steps, no multiple of update_step: {update}, so it would act every {own * update} steps, at "
            "the marks of the run"
        )
        reading.problems.append(Problem(f"{place}.every", what, f"write every: {own * update}"))
    elif first % turn:
        what = (
            f"with warmup_step: {start} it acts first at update {first} and then every {turn} updates, and here an "
            f"axis acts in updates whose number is a multiple of {turn}"
        )
        way_out = f"write warmup_step: {reading.warmup + -(-first // turn) * turn * update}"
        reading.problems.append(Problem(f"{place}.every", what, way_out))
    elif before % turn or (own > before and since > max(start, reading.warmup)):
        what = (
            f"is every {own} updates, and the stage before it, which takes it along, acts every {before}: its turns "
            "would not be regular"
        )
        reading.problems.append(Problem(f"{place}.every", what, f"write every: {before * update}"))
    return turn


def _whole(place: str, stage: Mapping[str, Any], key: str, default: int, reading: _Reading) -> int:
    value = stage.get(key, default)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    what = f"found {value!r:.80}, allowed: a whole number of steps"
    reading.problems.append(Problem(f"{place}.{key}", what, "write it in digits, such as 10"))
    return default


def _steps(ours: Mapping[str, Any], key: str) -> int:
    """Returns a number of steps of the run; 0 where something else stands there, which the checks of the run say."""
    value = ours.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
