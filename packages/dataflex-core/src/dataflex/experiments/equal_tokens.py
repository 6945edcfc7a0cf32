"""As many tokens for every arm: each is measured by its own first run, and its steps are set by what that trained on.

A strategy that likes short rows trains on fewer tokens in as many steps. How many a step has is known once rows are
chosen, so an arm's first seed is run with the base's steps; where its tokens differ from the reference's by more than
:data:`WITHIN`, it runs again with steps that come nearer, at most :data:`TRIES` times. The other seeds take these
steps. What was found is kept in ``comparison_steps.json``: a comparison that is stopped measures nothing twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dataflex.core.files import replacing
from dataflex.experiments.planned_runs import read_json

FILE = "comparison_steps.json"
WITHIN = 0.02
"""Share of the reference's tokens that an arm's may differ by."""
TRIES = 4
"""Most runs of an arm's first seed."""


@dataclass
class Measured:
    """What is known of an arm.

    Attributes:
        tokens: Steps of a run -> the tokens that it trained on.
        settled: The steps that the arm has; None until that is known.
    """

    tokens: dict[int, int] = field(default_factory=dict)
    settled: int | None = None

    def steps(self, wanted: int | None) -> int | None:
        """Returns the steps to go on with; None where nothing was measured."""
        if self.settled is not None or not self.tokens or wanted is None:
            return self.settled
        last = list(self.tokens)[-1]
        return max(1, round(last * wanted / self.tokens[last]))

    def note(self, steps: int, tokens: int, wanted: int) -> int:
        """Notes a run, and returns the steps that come next: the same where it is near enough, or nothing is nearer.

        Args:
            steps: Of the run.
            tokens: That it trained on.
            wanted: Tokens of the reference.
        """
        self.tokens[steps] = tokens
        following = max(1, round(steps * wanted / tokens))
        near = abs(tokens - wanted) <= WITHIN * wanted
        if near or following in self.tokens or len(self.tokens) >= TRIES:
            self.settled = min(self.tokens, key=lambda known: abs(self.tokens[known] - wanted))
            return self.settled
        return following


class Measurements:
    """What was measured of each arm, kept in the folder of the comparison.

    Args:
        folder: The comparison's.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._arms = {name: _read(known) for name, known in read_json(self._path).items()}

    def of(self, arm: str) -> Measured:
        """Returns what is known of an arm."""
        return self._arms.setdefault(arm, Measured())

    def save(self) -> None:
        """Writes the file."""
        known = {
            name: {"tokens": {str(s): t for s, t in found.tokens.items()}, "settled": found.settled}
            for name, found in self._arms.items()
        }
        with replacing(self._path) as temporary:
            temporary.write_text(json.dumps(known, indent=1), encoding="utf-8")


def _read(known: object) -> Measured:
    if not isinstance(known, Mapping) or not isinstance(known.get("tokens"), Mapping):
        return Measured()
    tokens = {int(steps): int(count) for steps, count in known["tokens"].items()}
    settled = known.get("settled")
    return Measured(tokens, settled if isinstance(settled, int) else None)
