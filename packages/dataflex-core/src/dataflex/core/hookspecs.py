"""The life-cycle hooks: every place where a package may look in on a run without being a component.

    from dataflex import hookimpl

    @hookimpl
    def dataflex_after_update(kind, component, context, decision):
        print(context.step, component, decision["seconds"])

An installed package names its module in the entry-point group ``dataflex``; a file named under ``plugins:`` in the YAML
needs nothing more. A hook may take fewer arguments than listed here. What a hook raises ends the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from dataflex.core.context import UpdateContext

PROJECT = "dataflex"

hookspec = pluggy.HookspecMarker(PROJECT)


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        summary: One line for ``dataflex-cli help``.
        usage: The command line, as in ``dataflex-cli train FILE [key=value ...]``.
        run: Gets the arguments after the command's name, returns the exit code: 0, 1 for a run that failed, 2 for
            something that could not be started. It may call ``sys.exit`` in place of returning.
        details: What ``--help`` shows below the summary.
        owns: Of a command that reads a file of its own: whether the content of a file is one for it, told by its keys.
        validate: Gets the arguments after ``dataflex-cli validate``, where the file is one for this command; prints
            what it would do, or raises with everything that is wrong. Trains nothing and imports no torch.
        plan: The same for ``dataflex-cli plan``: prints what it will take.
    """

    summary: str
    usage: str
    run: Callable[[Sequence[str]], int]
    details: str = ""
    owns: Callable[[Mapping[str, Any]], bool] | None = None
    validate: Callable[[Sequence[str]], int] | None = None
    plan: Callable[[Sequence[str]], int] | None = None

    def help(self) -> str:
        """Returns what ``--help`` shows."""
        parts = [f"usage: {self.usage}", f"{self.summary[:1].upper()}{self.summary[1:]}.", self.details]
        return "\n\n".join(filter(None, parts)) + "\n"


@hookspec
def dataflex_before_update(kind: str, component: str, context: UpdateContext) -> None:
    """Called on every rank between two optimizer steps, right before a component decides.

    Args:
        kind: What it does: ``filter``, ``select``, ``mix`` or ``order``.
        component: The name it was found under.
        context: The state of the run: which update, which step.
    """


@hookspec
def dataflex_after_update(kind: str, component: str, context: UpdateContext, decision: Mapping[str, Any]) -> None:
    """Called on every rank once a decision has been checked and recorded, before its first batch is made.

    Args:
        kind: What it does: ``filter``, ``select``, ``mix`` or ``order``.
        component: The name it was found under.
        context: The state of the run: which update, which step.
        decision: The line of ``dataflex_trace.jsonl`` about it, as docs/outputs.md has it. A hook must not change it.
    """


@hookspec
def dataflex_after_checkpoint(step: int, folder: str) -> None:
    """Called on every rank when a checkpoint is complete on disk.

    Args:
        step: Global optimizer steps done.
        folder: The checkpoint's folder.
    """


@hookspec
def dataflex_cli_commands() -> Mapping[str, Command]:  # type: ignore[empty-body]  # a specification
    """Called when ``dataflex-cli`` meets a command it does not know, and for ``dataflex-cli help``.

    Returns:
        Name -> command. The names of dataflex's own commands cannot be taken.
    """
