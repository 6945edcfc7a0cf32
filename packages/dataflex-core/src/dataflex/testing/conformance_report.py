"""What came of the points of a conformance."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What came of a point.

    Attributes:
        point: Its name.
        wrong: What is wrong, in a sentence each; empty where the component conforms.
        note: Why it was not looked at; blank where it was.
    """

    point: str
    wrong: tuple[str, ...] = ()
    note: str = ""

    def __str__(self) -> str:
        if self.wrong:
            return f"{self.point}: " + "; ".join(self.wrong)
        return f"{self.point}: {self.note or 'ok'}"


@dataclass(frozen=True)
class Conformance:
    """What :func:`~dataflex.testing.conformance` found of a component that conforms; print it to read it.

    Attributes:
        who: The component.
        findings: A finding for each point.
    """

    who: str
    findings: tuple[Finding, ...]

    @property
    def wrong(self) -> tuple[Finding, ...]:
        """The points at which it does not conform."""
        return tuple(finding for finding in self.findings if finding.wrong)

    def __str__(self) -> str:
        failed = len(self.wrong)
        head = f"{self.who} " + (f"fails {failed} of {len(self.findings)} points" if failed else "conforms")
        ordered = [*self.wrong, *(finding for finding in self.findings if not finding.wrong)]
        return "\n".join([head, *(f"  {'x' if finding.wrong else '-'} {finding}" for finding in ordered)])


class NotConforming(AssertionError):  # noqa: N818  # a failed assertion, which is no error of the test
    """A component does not keep what a run relies on; the message names each point, and what is wrong."""

    def __init__(self, found: Conformance) -> None:
        self.found = found
        super().__init__(str(found))
