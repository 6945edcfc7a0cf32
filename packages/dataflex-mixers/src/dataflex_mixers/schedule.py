"""``schedule``: the mixture follows given points over the run; a file of them may change during the run.

Between two points the mixture moves linearly, along half a cosine, or jumps: see
:mod:`dataflex_mixers.parts.schedule_points`. It is evaluated at each update, so ``update_step`` is its resolution.
Positions are optimizer steps, or tokens that the model was trained to predict.

The file is read again at each update, by rank 0, which broadcasts its text: a mixture can be corrected during a run.
The text is kept in checkpoints, and the trace holds each change. A file that is wrong or missing does not stop the run:
the last good one stays in force, and log and trace say so at each update.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import broadcast_object_list
from dataflex.config.load import read_text
from dataflex.config.text import parse_yaml
from dataflex.core.cost import Ahead, Cost
from dataflex.core.errors import ConfigError, Problem, nearest
from dataflex.core.parameter_checks import one_of, require, text_or_null
from dataflex.core.registry import register_mixer
from dataflex.train.mixer.base_mixer import Mixer, logger
from numpy.typing import NDArray

from dataflex_mixers.parts.schedule_points import INTERPOLATIONS, Curve, parse_curve
from dataflex_mixers.parts.simplex import Shares

if TYPE_CHECKING:
    import numpy as np
    import torch
    from accelerate import Accelerator
    from dataflex.planning.mixture import MixtureManager

POSITIONS = ("steps", "tokens")
FILE_KEYS = ("points", "interpolation")


@register_mixer("schedule")
class ScheduleMixer(Mixer):
    """The mixture follows given points over the run: linear, cosine or step; from a file, it may change during the run.

    Args:
        mixture_manager: The sources.
        accelerator: The run's accelerator, to hand the file's text to every rank.
        points: A list of ``{at: position, proportions: [one per source] or {source: share}}``; or None with ``file``.
        file: A YAML file with ``points`` and, if wanted, ``interpolation``; read again at each update. Relative to the
            working directory.
        interpolation: ``linear``, ``cosine`` or ``step``.
        by: What positions count: optimizer ``steps``, or ``tokens`` with a label that was predicted.

    Raises:
        ConfigError: The points, in the parameters or in the file, are wrong; the message holds every problem.
    """

    draws = False
    asks = "counts of tokens if by=tokens"

    def __init__(
        self,
        mixture_manager: MixtureManager,
        accelerator: Accelerator,
        points: list[Any] | None = None,
        file: str | None = None,
        interpolation: str = "linear",
        by: str = "steps",
    ) -> None:
        super().__init__(mixture_manager)
        both = (points is None) == (file is None)
        way_out = "the one in the parameters, or the one in the file"
        require(
            "schedule mixer",
            one_of("by", by, POSITIONS),
            text_or_null("file", file),
            one_of("interpolation", interpolation, INTERPOLATIONS),
            Problem("points, file", "one of the two is needed, and not both", way_out) if both else None,
            *_curve_problems(points, file, interpolation, mixture_manager.names),
        )
        self.accelerator = accelerator
        self.file = None if file is None else Path(file)
        self.by, self.interpolation = by, interpolation
        self.tokens = 0
        self.text = "" if self.file is None else _attempt(self.file)[0]
        found = self._parsed(self.text) if self.file else parse_curve(points, interpolation, mixture_manager.names)
        require("schedule mixer", *(found if isinstance(found, list) else []))
        assert isinstance(found, Curve)
        self.curve = found
        self._details: dict[str, Any] = {}

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """Nothing is computed. See the base class."""
        return Cost()

    @classmethod
    def may_observe(cls, params: Mapping[str, Any]) -> bool:
        """Returns whether tokens are to be counted."""
        return params.get("by") == "tokens"

    @property
    def observes(self) -> bool:
        """Whether tokens are to be counted."""
        return self.by == "tokens"

    def observe(self, step: int, losses_K: NDArray[np.float64], tokens_K: NDArray[np.int64]) -> None:
        """Counts the tokens of a step."""
        self.tokens += int(tokens_K.sum())

    def mix(self, model: torch.nn.Module, step_id: int, **kwargs: Any) -> Shares:
        """Returns the present mixture: (K,), the same on every rank."""
        position = step_id if self.by == "steps" else self.tokens
        self._details = {"at": position}
        if self.file is not None:
            self._reread(self.file, step_id)
        return self.curve.value(position)

    def details(self) -> dict[str, Any]:
        """Returns the position, and the state of the file."""
        return self._details

    def state_dict(self) -> dict[str, Any]:
        """Returns the tokens counted, and the text of the file in force."""
        return {"tokens": self.tokens, "text": self.text}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.tokens = int(state["tokens"])
        if self.file is not None:
            found = self._parsed(state["text"])
            assert isinstance(found, Curve), "only what was right is kept"
            self.text, self.curve = state["text"], found

    def _reread(self, file: Path, step: int) -> None:
        """Reads the file again and takes over its points, on every rank."""
        answer = [_attempt(file) if self.accelerator.is_main_process else ("", "")]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(answer)
        text, error = answer[0]
        if not error and text != self.text:
            found = self._parsed(text)
            if isinstance(found, Curve):
                self.text, self.curve = text, found
                self._details["schedule_changed"] = True
                logger.info("step %d: the mixture schedule %s has changed and is in force", step, file)
            else:
                error = "; ".join(map(str, found))
        if error:
            logger.warning("step %d: the schedule %s stays as it was read last: %s", step, file, error)
            self._details["schedule_error"] = error
        self._details["schedule_digest"] = hashlib.blake2b(self.text.encode(), digest_size=8).hexdigest()

    def _parsed(self, text: str) -> Curve | list[Problem]:
        return _parse(text, self.interpolation, self.mixture_manager.names)


def _curve_problems(points: Any, file: Any, interpolation: Any, names: Sequence[str]) -> list[Problem]:
    """Returns what is wrong with the points, in the parameters or in the file, where one of the two is given."""
    if (points is None) == (file is None) or interpolation not in INTERPOLATIONS:
        return []
    if file is None:
        found = parse_curve(points, interpolation, names)
        return [] if isinstance(found, Curve) else found
    if text_or_null("file", file) is not None:
        return []
    text, error = _attempt(Path(file))
    if error:
        return [Problem("file", error, "give a YAML file with points:")]
    found = _parse(text, interpolation, names)
    if isinstance(found, Curve):
        return []
    return [Problem("file", f"{file}: {p.where}: {p.what}", p.way_out) for p in found]


def _parse(text: str, interpolation: str, names: Sequence[str]) -> Curve | list[Problem]:
    try:
        content = parse_yaml(text, "its text")
    except ConfigError as error:
        return [Problem("file", str(error))]
    if not isinstance(content, Mapping):
        return [Problem("file", f"found a {type(content).__name__}, allowed: a mapping with points:")]
    unknown = [Problem(str(k), "no such key", nearest(str(k), FILE_KEYS)) for k in content if k not in FILE_KEYS]
    found = parse_curve(content.get("points"), content.get("interpolation", interpolation), names)
    if isinstance(found, Curve):
        return unknown or found
    return [*unknown, *found]


def _attempt(file: Path) -> tuple[str, str]:
    """Returns the text, or None and the reason."""
    try:
        return read_text(file), ""
    except ConfigError as error:
        return "", str(error)
