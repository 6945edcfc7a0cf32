"""``reorders:`` of a components file of the public implementation (OpenDCAI/DataFlex 1.1.0), read as ``orders:``.

There a preset names a pattern, where its scores come from and how high scores are understood; here it is an order of
the pattern's name, with ``by`` and ``over``. What has no counterpart is refused with the lines to write instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from dataflex.config.axis_keys import BY, COLUMN, COMPONENT, EVERY, FILE, OVER, PARAMS
from dataflex.core.errors import Problem, listed, nearest
from dataflex.core.kinds import ORDER
from dataflex.discovery.catalog import lookup

SECTION, PIPELINES = "reorders", "pipelines"
SECTIONS = (SECTION, "reorderers")
"""The section, and what it was called before, which is read there where this one is not given."""

_KEYS = frozenset({
    "kind", "pattern", "score_source", "score_params", "apply_at", "polarity", "ascending", "window_size", "seed",
    "pattern_params", "reorder_every", "consume_once",
})  # fmt: skip
_RENAMED = {"num_sections": "sections", "folding_ratio": "ratio"}
_LAYERS = ("layers", "folding_layer", "zigzag_layer")  # the first that is given counts
_SHARES = {"x_pct": "front", "y_pct": "back"}  # in percent there
_HIGH = {"front_is_high": False, "back_is_high": True}
_OWN_DEFAULTS = {"sections": 2, "ratio": 0.0, "layers": 2}
"""What a pattern with sections has there where the preset does not say; our defaults are the authors'."""
_EARLIER = ("higher_earlier", "lower_is_better")
_LATER = ("higher_later", "higher_is_better")
_SPEED = frozenset({"batch_size", "num_workers"})


@dataclass
class Reading:
    """A preset read as an order.

    Attributes:
        name: The order.
        params: Its parameters.
        by: Where its scores come from.
        over: What it arranges.
        every: It arranges at each update whose number is a multiple of this.
        problems: What has no counterpart.
        notes: What is read as if it were not there.
    """

    name: str
    params: dict[str, Any] = field(default_factory=dict)
    by: str | None = None
    over: str = "run"
    every: int = 1
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def part(self) -> dict[str, Any]:
        """Returns it as a mapping under ``order:``."""
        given = {COMPONENT: self.name, EVERY: self.every if self.every != 1 else None, BY: self.by, OVER: self.over}
        return {key: value for key, value in given.items() if value is not None} | {PARAMS: self.params}


def lines(axes: Mapping[str, Any]) -> str:
    """Returns the keys of a composed run as one line of YAML for each, joined."""
    texts = {"train_type": "dynamic", **axes}
    shown = {key: yaml.safe_dump(v, default_flow_style=True, sort_keys=False, width=9999) for key, v in texts.items()}
    return "; ".join(f"{key}: {text.strip().removesuffix('...').strip()}" for key, text in shown.items())


def reorders_in(content: Mapping[Any, Any]) -> tuple[str, Mapping[Any, Any]]:
    """Returns the section of a components file that holds reorders, and what it holds; empty where there is none."""
    found = ((section, content.get(section)) for section in SECTIONS)
    return next(((section, body) for section, body in found if isinstance(body, dict)), (SECTION, {}))


def read_reorder(key: str, params: Mapping[str, Any], where: str) -> Reading:
    """Returns a preset of ``reorders:`` as an order.

    Args:
        key: The preset.
        params: Its ``params``.
        where: Its place, for messages.
    """
    found = Reading(str(params.get("pattern", "sorting")))
    for name in params:
        if name not in _KEYS:
            hint = nearest(str(name), _KEYS) or "remove it"
            found.problems.append(Problem(f"{where}.params.{name}", f"no such key; allowed: {listed(_KEYS)}", hint))
    kind = params.get("kind", key)
    if kind not in ("static", "dynamic"):
        found.problems.append(
            Problem(f"{where}.params.kind", f"found {kind!r}, allowed: static | dynamic", "write one")
        )
    _read_pattern(params, found, where, dynamic=kind == "dynamic")
    _read_scores(params, found, where, dynamic=kind == "dynamic")
    every = params.get("reorder_every", 1)
    found.every = every if isinstance(every, int) and every >= 1 else 1
    if params.get("consume_once", True) is not True:
        what = "is false: each stretch would begin with the same rows, and here each row comes once before any again"
        found.problems.append(Problem(f"{where}.params.consume_once", what, "remove it"))
    return found


def _read_pattern(params: Mapping[str, Any], found: Reading, where: str, dynamic: bool) -> None:
    ours = lookup(ORDER, found.name)
    if ours is None:
        what = f"no order named '{found.name}'"
        found.problems.append(Problem(f"{where}.params.pattern", what, "dataflex-cli list --kind order has the names"))
        return
    given = dict(params.get("pattern_params") or {})
    polarity = params.get("polarity", _EARLIER[0] if dynamic else _LATER[0])
    if polarity not in (*_LATER, *_EARLIER):
        what = f"found {polarity!r}, allowed: {' | '.join((*_LATER, *_EARLIER))}"
        found.problems.append(Problem(f"{where}.params.polarity", what, "write one of these"))
    ascending = bool(params.get("ascending", True)) != (polarity in _EARLIER)
    layers = [given.pop(name) for name in _LAYERS if name in given]
    made = {_RENAMED[name]: given.pop(name) for name in _RENAMED if name in given}
    made |= {"layers": layers[0]} if layers else {}
    made |= {_SHARES[name]: _share(given.pop(name)) for name in _SHARES if name in given}
    if "ends" in ours.parameters:
        front, back = (given.pop(name, default) for name, default in _HIGH.items())
        made["ends"] = "same" if front == back else "opposite"
        ascending = ascending != bool(front)
    if "sections" in ours.parameters:
        made = _OWN_DEFAULTS | made
    for name in given:
        what = f"'{found.name}' has no such key"
        found.problems.append(Problem(f"{where}.params.pattern_params.{name}", what, "remove it"))
    if params.get("window_size"):
        made["window"] = params["window_size"]
    if "ascending" in ours.parameters:
        made["ascending"] = ascending
    if params.get("seed") is not None and ours.takes_seed:
        made["seed"] = params["seed"]
    found.params = made


def _share(percent: Any) -> Any:
    return percent / 100 if isinstance(percent, int | float) else percent


def _read_scores(params: Mapping[str, Any], found: Reading, where: str, dynamic: bool) -> None:
    ours = lookup(ORDER, found.name)
    if ours is not None and ours.constants.get("needs_scores") is False:
        return
    source = params.get("score_source", "model_loss" if dynamic else "precomputed")
    given = dict(params.get("score_params") or {})
    place = f"{where}.params.score_source"
    if source == "model_loss" and dynamic:
        found.by = "loss"
        if given.get("max_samples"):
            found.notes.append(f"{where}.params.score_params.max_samples: read as if not there: all rows are scored")
        unknown = given.keys() - _SPEED - {"max_samples", "seed"}
    elif source == "precomputed" and not dynamic:
        path = given.get("score_path")
        found.by = f"{COLUMN}{given.get('score_field', 'score')}" if path is None else f"{FILE}{path}"
        unknown = given.keys() - {"score_path", "score_field"}
    elif source == "precomputed":
        what = "is precomputed with kind: dynamic, which arranges the rows that are left anew with the same scores"
        found.problems.append(Problem(place, what, "write kind: static, or score_source: model_loss"))
        return
    else:
        what = f"found {source!r}, which has no counterpart with kind: {'dynamic' if dynamic else 'static'}"
        way_out = "write by: selector beside a selector, or by: file:PATH with a score for each row"
        found.problems.append(Problem(place, what, way_out))
        return
    for name in sorted(unknown):
        found.problems.append(Problem(f"{where}.params.score_params.{name}", "has no counterpart", "remove it"))
