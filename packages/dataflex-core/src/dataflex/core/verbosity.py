"""How much a command line says: ``--quiet``, and the environment variable ``DATAFLEX_VERBOSITY``.

    debug     everything, and what dataflex notes for those who look for a fault
    info      the log lines of dataflex and of the libraries: the default
    warning   the lines of dataflex, and warnings and errors of the libraries; ``--quiet`` is this
    error     errors alone, of dataflex too

Progress bars, and the losses that transformers prints, stay at every level.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dataflex.core.errors import ConfigError

VARIABLE = "DATAFLEX_VERBOSITY"
QUIET = "--quiet"
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


@dataclass(frozen=True)
class Verbosity:
    """One of :data:`LEVELS`.

    Attributes:
        name: Its name.
    """

    name: str = "info"

    @property
    def own(self) -> int:
        """The least level of a log line of dataflex."""
        return logging.INFO if self.name == "warning" else LEVELS[self.name]

    @property
    def libraries(self) -> int:
        """The least level of a log line of a library; 0 where the libraries say what they like."""
        return LEVELS[self.name] if LEVELS[self.name] > logging.INFO else logging.NOTSET


def asked(argv: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> Verbosity:
    """Returns what a command line and its environment ask for. The flag goes first, unless the variable says ``error``.

    Args:
        argv: The arguments of a command; ``--quiet`` may stand anywhere among them.
        environ: The environment; this process's own unless given. An empty variable asks for nothing.

    Raises:
        ConfigError: The variable holds another word.
    """
    found = (os.environ if environ is None else environ).get(VARIABLE, "").strip()
    name = found.lower() or "info"
    if name not in LEVELS:
        raise ConfigError(f"{VARIABLE}: found {found!r}, allowed: {', '.join(LEVELS)} -> write one of these")
    return Verbosity("warning" if QUIET in argv and name != "error" else name)


def without_flag(argv: Sequence[str]) -> list[str]:
    """Returns the arguments without ``--quiet``."""
    return [argument for argument in argv if argument != QUIET]
