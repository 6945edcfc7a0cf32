"""``conformance``: holds a component against what a run relies on, and says in words what it does not keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

from dataflex.core.errors import ConfigError, listed
from dataflex.core.kinds import Kind
from dataflex.testing.conformance_points import POINTS
from dataflex.testing.conformance_report import Conformance, Finding, NotConforming
from dataflex.testing.conformance_shared_runs import Trials
from dataflex.testing.conformance_subject import subject


class Given(TypedDict, total=False):
    """What a component is run on, see :func:`conformance`."""

    params: Mapping[str, Any] | None
    rows: Any
    sources: Mapping[str, Any] | None
    target: Any
    held_out: Mapping[str, Any] | None
    model: Any
    tokenizer: Any
    collator: Callable[[list[Any]], Any] | None
    keys: Mapping[str, Any] | None
    arguments: Mapping[str, Any] | None
    beside: Sequence[str] | None


@dataclass(frozen=True)
class Case:
    """One point of a component, for a parametrised test; its text is the test's name.

    Attributes:
        point: The point's name.
        trials: The component's runs, which the cases share.
    """

    point: str
    trials: Trials

    def check(self) -> Finding:
        """Looks at the point.

        Raises:
            NotConforming: The component does not conform.
        """
        finding = POINTS[self.point](self.trials)
        if finding.wrong:
            raise NotConforming(Conformance(self.trials.subject.who, (finding,)))
        return finding

    def __str__(self) -> str:
        return f"{self.trials.subject.name}-{self.point}".replace(" ", "-")


def conformance(
    component: str | type[Any],
    *,
    kind: Kind | str | None = None,
    points: Sequence[str] | None = None,
    **given: Unpack[Given],
) -> Conformance:
    """Returns the report of a component that keeps what a run relies on; print it to read it.

    Small runs are made of it, on the CPU or on :func:`~dataflex.testing.device`: one to its end, one resumed from a
    checkpoint in the middle, one beside a double of each other kind, short ones with wrong answers, and one on two
    processes. Seconds in all.

    Args:
        component: Its class, or a name as in ``component_name``.
        kind: ``selector``, ``mixer``, ``order`` or ``weighter``, where a name is one of several kinds.
        points: Points to look at; None for all, see :data:`~dataflex.testing.conformance_points.POINTS`.
        **given: What it is run on, each in place of something tiny: ``params`` of the constructor; ``rows``, the train
            dataset; ``sources``, name -> rows, for a mixer and for who knows rows by source; ``target``, evaluation
            rows; ``held_out``, source -> rows; ``model``, which is copied for each run, or a function that makes it;
            ``tokenizer``; ``collator``; ``keys``, keywords of :func:`dataflex.dynamic` such as ``update_step``;
            ``arguments``, fields of ``TrainingArguments``; ``beside``, the kinds that stand beside it in the
            combination, for one that cannot stand beside every other.

    Raises:
        NotConforming: It does not conform: an ``AssertionError`` that names each point and what is wrong.
        ConfigError: It cannot be run like this: what is missing, and how to give it.
    """
    trials = Trials(subject(component, kind, given))
    found = Conformance(trials.subject.who, tuple(POINTS[name](trials) for name in _chosen(points)))
    if found.wrong:
        raise NotConforming(found)
    return found


def conformance_cases(
    component: str | type[Any],
    *,
    kind: Kind | str | None = None,
    points: Sequence[str] | None = None,
    **given: Unpack[Given],
) -> list[Case]:
    """Returns a case for each point, so that a failing test names the point. They share their runs.

        @pytest.mark.parametrize("case", conformance_cases(Shortest), ids=str)
        def test_conformance(case):
            case.check()

    Args:
        component: As for :func:`conformance`.
        kind: As there.
        points: As there.
        **given: As there.

    Raises:
        ConfigError: As there.
    """
    trials = Trials(subject(component, kind, given))
    return [Case(name, trials) for name in _chosen(points)]


def _chosen(points: Sequence[str] | None) -> list[str]:
    unknown = [name for name in points or () if name not in POINTS]
    if unknown:
        raise ConfigError(f"points: found '{unknown[0]}', allowed: {listed(POINTS)}")
    return list(POINTS if points is None else points)
