"""The errors a user can act on.

Each says what is wrong, where (the config key or the component), what is allowed and the way out. All are
``ValueError``s. The command line prints them without a traceback: :class:`ConfigError` and its kind end with exit code
2, because nothing was started; :class:`ComponentError` and :class:`CheckpointError` end with 1, because a run was under
way; :class:`StoppedError` ends with 143, as a process does that SIGTERM ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from dataflex.core.spelling import alike


class DataflexError(ValueError):
    """Base of every error that dataflex raises on purpose.

    Attributes:
        exit_code: What ``dataflex-cli`` returns to the shell: 2 before a run starts, 1 once it is under way.
    """

    exit_code = 1


class ConfigError(DataflexError):
    """The configuration cannot be run. Raised before a model is loaded."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a configuration.

    Attributes:
        where: The key, as ``file: key`` or just ``key``.
        what: What was found and what is allowed, in one sentence.
        way_out: What to do about it; empty where the sentence already says it.
    """

    where: str
    what: str
    way_out: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" -> {self.way_out}" if self.way_out else "")


class InvalidConfigError(ConfigError):
    """Everything that is wrong with a configuration, in one message."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__(f"{count} in the configuration:\n" + "\n".join(f"  - {p}" for p in self.problems))

    def __reduce__(self) -> tuple[type[InvalidConfigError], tuple[tuple[Problem, ...]]]:
        """Lets the error travel between processes, as Ray's workers send it."""
        return type(self), (self.problems,)


def refuse(problems: Sequence[Problem]) -> None:
    """Raises what is wrong with a run, where anything is: how a trainer uses the checks of a configuration.

    Raises:
        ConfigError: Each problem, in the words of ``dataflex-cli validate``.
    """
    if len(problems) == 1:
        raise ConfigError(str(problems[0]))
    if problems:
        raise InvalidConfigError(problems)


class UnknownComponentError(ConfigError):
    """No component of that kind and name is installed or registered."""


class ComponentConflictError(ConfigError):
    """Two packages or files provide the same kind and name."""


class BrokenPluginError(ConfigError):
    """The named component exists, but importing or constructing it failed."""


class WrongBaseClassError(ConfigError):
    """The named component does not keep the contract of its kind."""


class IncompatiblePackagesError(ConfigError):
    """The installed packages cannot work together; the message holds the command that mends it."""


class ComponentError(DataflexError):
    """A component raised, or returned something that cannot be trained on."""


class CheckpointError(DataflexError):
    """A checkpoint is incomplete, or belongs to another run."""


class StoppedError(DataflexError):
    """Not a failure: the run was asked to stop (SIGTERM), and the message says what can be resumed."""

    exit_code = 143  # 128 + SIGTERM, as a process that the signal ends itself has it


@contextmanager
def not_exiting(who: str) -> Iterator[None]:
    """Turns an attempt to end the process, such as ``sys.exit(0)``, into an error that names who made it.

    Stands around every call of code that comes with a component or a plugin. Without it, ``sys.exit(0)`` in there ends
    a run as a success. ``KeyboardInterrupt`` is a person's Ctrl-C and passes unchanged, and so does every
    ``Exception``.

    Args:
        who: The component or the plugin, and where in it.

    Raises:
        ComponentError: ``SystemExit``, or another error that is no ``Exception``, was raised.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise ComponentError(
            f"{who} raised {type(error).__name__}: {error} -> raise an ordinary exception where the run cannot go on; "
            "only dataflex ends the process"
        ) from error


@contextmanager
def blaming(who: str) -> Iterator[None]:
    """Turns whatever a component raises into an error that names it, with the original as its cause.

    Args:
        who: The component, and the update or the step.

    Raises:
        ComponentError: The component raised, ``SystemExit`` included. Errors of dataflex's other classes and
            ``KeyboardInterrupt`` pass unchanged.
    """
    try:
        with not_exiting(who):
            yield
    except ComponentError as error:
        if str(error).startswith(who):
            raise
        raise ComponentError(f"{who}: {error}") from error.__cause__
    except DataflexError:
        raise
    except Exception as error:  # a component may raise anything; the cause keeps its traceback
        raise ComponentError(f"{who} raised {type(error).__name__}: {error}") from error


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Returns ``"did you mean 'x'?"`` where ``name`` is a misspelt allowed name, else an empty string.

    A name that is only similar gets no hint: who follows a wrong one runs something else. See
    :mod:`dataflex.core.spelling`.
    """
    found = alike(name, allowed)
    return f"did you mean {' or '.join(map(repr, found))}?" if found else ""


def listed(names: Iterable[str]) -> str:
    """Returns the names as prose, sorted: ``a, b, c``, or ``none``."""
    return ", ".join(sorted(names)) or "none"


def rows_named(rows: Iterable[int], most: int = 3) -> str:
    """Returns how many rows these are and the first of them: ``2 rows (4, 9)``, ``7 rows (0, 3, 4, ...)``."""
    numbers = list(rows)
    first = ", ".join(str(int(number)) for number in numbers[:most])
    return f"{len(numbers)} {'row' if len(numbers) == 1 else 'rows'} ({first}{', ...' if len(numbers) > most else ''})"
