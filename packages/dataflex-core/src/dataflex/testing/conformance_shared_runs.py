"""The runs that the points of a conformance look at, each made once."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from functools import cached_property
from pathlib import Path

from dataflex.core.errors import DataflexError
from dataflex.run.checkpoints import step_of
from dataflex.testing.conformance_subject import Subject
from dataflex.testing.conformance_trial import SAVED, Outcome, run


class Trials:
    """The runs of a component; each is made when a point asks for it, once.

    Args:
        subject: The component.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._root = Path(tempfile.mkdtemp(prefix="conformance-"))
        weakref.finalize(self, shutil.rmtree, self._root, ignore_errors=True)

    def folder(self, name: str) -> Path:
        """Returns a folder for a run."""
        return self._root / name

    @cached_property
    def whole(self) -> Outcome:
        """The run that nothing interrupts, on one rank."""
        return run(self.subject, self.folder("whole"))

    @cached_property
    def failed(self) -> str:
        """What ended that run; blank where it came to its end."""
        try:
            assert self.whole is not None
        except DataflexError as error:
            return str(error)
        return ""

    @property
    def checkpoint(self) -> Path:
        """The checkpoint in the middle of it."""
        found = sorted(self.folder("whole").glob("checkpoint-*"), key=step_of)
        return next(path for path in found if step_of(path) == SAVED)

    def resumed(self, scrambled: bool) -> Outcome:
        """Returns the run that begins at that checkpoint, in a folder of its own."""
        name = f"resumed{'-scrambled' * scrambled}"
        return run(self.subject, self.folder(name), resume=self.checkpoint, scrambled=scrambled)
