"""A folder becomes :class:`~dataflex.report.run_data.RunData`: of any kind of run, of any age, in any state."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dataflex.config.resolved import RUN as RUN_NOTE
from dataflex.config.resolved import written_config
from dataflex.core.errors import ConfigError
from dataflex.core.files import COMPONENTS, CONFIG, FINAL_WEIGHTS, METRICS, ROWS, RUN, SELECTIONS, TRACE
from dataflex.report.harmless import harmless
from dataflex.report.log_lines import log_lines, newest_state
from dataflex.report.record_lines import mapping, number, objects, read_lines, read_object, whole
from dataflex.report.row_records import read_last_scores, read_reasons, read_row_sources, read_texts
from dataflex.report.run_data import RunData, RunSource
from dataflex.report.run_status import state_of
from dataflex.report.segment_files import planned_segments
from dataflex.report.source_names import source_list
from dataflex.utils.secret_values import masked

KINDS = {
    "dynamic_select": "select", "dynamic_mix": "mix", "dynamic_reorder": "order", "dynamic_weight": "weight",
}  # fmt: skip
_ROUND = re.compile(r"round-(\d{1,9})")
"""The folder of a round, in which each of its runs has one."""
SIGNS = (RUN, CONFIG, TRACE, SELECTIONS, METRICS, "trainer_state.json", "trainer_log.jsonl", "all_results.json")


def read_run(folder: str | Path, name: str | None = None) -> RunData:
    """Returns what the folder of a run holds.

    Args:
        folder: Its ``output_dir``.
        name: What the page calls it; the folder's name where nothing is given.

    Raises:
        ConfigError: There is no such folder, or no run in it.
    """
    _require_run(path := Path(folder))
    say = (notes := list[str]()).append
    about = read_object(path / RUN, say)
    config, components = _config(path, say), _yaml(path / COMPONENTS, say)
    trace = tuple(line for line in read_lines(path / TRACE, say) if whole(line.get("step")) is not None)
    state, results = newest_state(path) or {}, read_object(path / "all_results.json", say)
    logs = log_lines(path, state, say)
    step = _step(about, state, logs)
    now, says = state_of(path, about, config, state, step)
    texts, targets = read_texts(path, say)
    sources = source_list(about, trace)
    dynamic = bool(about or trace or (path / SELECTIONS).exists())
    train_type = str(about.get("train_type") or config.get("train_type") or ("dynamic" if dynamic else "static"))
    if not about:
        say(_no_about(dynamic))
    elif not texts:
        say(f"no text of rows in {ROWS}: numbers stand in their place")
    return RunData(
        folder=path,
        name=name or path.absolute().name,
        state=now,
        state_says=says,
        does=str(about.get("does") or mapping(config.get(RUN_NOTE)).get("does") or ""),
        train_type=train_type,
        parts=_parts(about, trace, train_type, config),
        step=step,
        total_steps=whole(about.get("total_steps")) or whole(state.get("max_steps")),
        updates=_updates(trace),
        planned_updates=whole(about.get("updates")),
        batch=whole(about.get("batch")) or None,
        rows=whole(about.get("rows")) or _rows_of(sources),
        sources=sources,
        seconds=_seconds(about, trace, results, logs),
        trace=trace,
        logs=logs,
        segments=planned_segments(path, trace, say),
        texts=texts,
        targets=targets,
        reasons=read_reasons(path, say),
        last_scores=read_last_scores(path, about.get("run"), say),
        row_sources=read_row_sources(path, about.get("run"), say),
        config=config,
        components=components,
        results=results,
        warnings=_warnings(about),
        starts=_starts(about),
        notes=tuple(notes),
        old=not about and dynamic,
        **_final_weights(path, say),
    )


def _final_weights(path: Path, say: Any) -> dict[str, Any]:
    """Returns the fields of a run that looks for weights of the sources, and of the round that it belongs to."""
    left = next((read_object(file, say) for file in sorted(path.glob(FINAL_WEIGHTS))), {})
    weights = {name: number(weight) for name, weight in mapping(left.get("proportions")).items()}
    found = _ROUND.fullmatch(path.absolute().parent.name)
    return {
        "final_weights": {name: weight for name, weight in weights.items() if weight is not None},
        "weighed_steps": whole(left.get("steps")),
        "round": int(found[1]) if found is not None and weights else None,  # else the folder is the user's own
    }


def _starts(about: Mapping[str, Any]) -> tuple[int, ...]:
    steps = (whole(each.get("step")) for each in objects(about.get("starts")))
    return tuple(step for step in steps if step is not None)


def _require_run(path: Path) -> None:
    if not path.is_dir():
        raise ConfigError(f"{path}: no such folder -> name the output_dir of a run")
    if not any((path / sign).exists() for sign in SIGNS) and newest_state(path) is None:
        raise ConfigError(f"{path}: holds no run: none of {', '.join(SIGNS)} -> name the output_dir of a run")


def _no_about(dynamic: bool) -> str:
    if dynamic:
        return f"no {RUN}: an older version of dataflex recorded this run, so times, sizes and texts may be missing"
    return "a static run: it leaves its losses and results, and no record of rows"


def _rows_of(sources: tuple[RunSource, ...]) -> int | None:
    """Returns the rows of all sources together; None where one is a stream, or none is known."""
    known = [source.rows for source in sources if source.rows is not None]
    return sum(known) if known and len(known) == len(sources) else None


def _config(path: Path, say: Any) -> dict[str, Any]:
    if not (path / CONFIG).is_file():
        return {}
    try:
        return written_config(path)
    except ConfigError as error:
        say(str(error))
        return {}


def _yaml(path: Path, say: Any) -> dict[str, Any]:
    try:
        return mapping(masked(yaml.safe_load(path.read_text(encoding="utf-8"))))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        say(f"{path.name} cannot be read: {str(error).partition(chr(10))[0]}")
        return {}


def _step(about: Mapping[str, Any], state: Mapping[str, Any], logs: tuple[Mapping[str, Any], ...]) -> int:
    """Returns the steps done: the most that any file speaks of, as each of them may have been written later."""
    said = [whole(about.get("step")), whole(state.get("global_step")), *(whole(line.get("step")) for line in logs[-1:])]
    return max((each for each in said if each is not None), default=0)


def _warnings(about: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    said = objects(about.get("warnings"))
    return tuple((harmless(str(each.get("text", "")), 1000)[0], whole(each.get("times")) or 1) for each in said)


def _updates(trace: tuple[Mapping[str, Any], ...]) -> int:
    return len({line["update"] for line in trace if whole(line.get("update")) is not None})


def _parts(
    about: Mapping[str, Any], trace: tuple[Mapping[str, Any], ...], train_type: str, config: Mapping[str, Any]
) -> tuple[tuple[str, str], ...]:
    """Returns (kind, component) of the run's components, in the words of the trace."""
    said = objects(about.get("parts"))
    parts = [(str(each.get("kind")), str(each.get("component"))) for each in said]
    if not parts:
        axes = ("filter", "mix", "select", "order", "weight")
        parts = [(str(line["kind"]), str(line.get("component", ""))) for line in trace if line.get("kind") in axes]
    if not parts and train_type in KINDS and config.get("component_name"):
        parts = [(KINDS[train_type], str(config["component_name"]))]
    return tuple(dict.fromkeys(parts))


def _seconds(
    about: Mapping[str, Any],
    trace: tuple[Mapping[str, Any], ...],
    results: Mapping[str, Any],
    logs: tuple[Mapping[str, Any], ...],
) -> dict[str, float]:
    """Returns what the time went into; of an old or a static run, as far as its files tell it."""
    names = ("training", "deciding", "saving", "evaluating")
    said = mapping(about.get("seconds"))
    found = {name: value for name in names if (value := number(said.get(name))) is not None}
    if found:
        return found
    whole_run = next(
        (value for line in (results, *reversed(logs)) if (value := number(line.get("train_runtime")))), 0.0
    )
    deciding = sum(number(line.get("seconds")) or 0.0 for line in trace)
    if not whole_run:
        return {"deciding": deciding} if deciding else {}
    return {"training": max(whole_run - deciding, 0.0)} | ({"deciding": deciding} if deciding else {})
