"""Every error class with its exit code, and the exit codes of the command line."""

from __future__ import annotations

import inspect
import signal

from dataflex.core import errors
from dataflex.core.errors import DataflexError

from generated.markdown import one_line, prose, table

TEXT = """# Errors and exit codes

Every error that dataflex raises on purpose is a `dataflex.core.errors.DataflexError`, which is a `ValueError`. Its
message says what was found and where, what is allowed, and behind an arrow (`->`) the way out. `dataflex-cli` prints
the message without a traceback and ends with the exit code of the class. Other errors keep their traceback.

"""
_OTHERS = (
    ("0", "done; of `validate`: nothing wrong was found"),
    ("1", "a run was started and failed, or a component or plugin tried to end the process"),
    ("2", "nothing was started: the configuration or the command line is wrong, or a package is missing"),
    (str(128 + signal.SIGINT), "interrupted by Ctrl-C (SIGINT)"),
    (str(128 + signal.SIGTERM), "stopped by SIGTERM; the same command goes on from the checkpoint that was saved"),
)


def classes() -> list[type[DataflexError]]:
    """Returns every error class, in the order of the code."""
    found = [cls for cls in vars(errors).values() if inspect.isclass(cls) and issubclass(cls, DataflexError)]
    return [cls for cls in found if cls.__module__ == errors.__name__]


def page() -> str:
    """Returns the page."""
    rows = [
        (
            f"`{cls.__name__}`",
            f"`{cls.__base__.__name__}`",
            str(cls.exit_code),
            prose(inspect.getdoc(cls) or "").partition("\n\n")[0],
        )
        for cls in classes()
    ]
    text = TEXT + table(("class", "is a", "exit code", "meaning"), map(_joined, rows))
    text += "\n## Exit codes\n\n" + table(("code", "meaning"), _OTHERS)
    text += "\n## What carries the problems of a configuration\n\n"
    return text + "::: dataflex.core.errors.Problem\n\n::: dataflex.core.errors.InvalidConfigError\n"


def _joined(row: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(one_line, row))
