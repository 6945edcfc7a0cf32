"""``mixture_by``: what makes the sources of a mixture where they are not the datasets.

column:NAME    the values of a column of the raw data
file:PATH      a file with a label for each row of the train dataset
cluster:K      K groups of rows that are alike by ``mixture_embedding``
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataflex.config.arguments import DataflexArguments, Shares
from dataflex.config.checks.parsed_config import find_path
from dataflex.config.text import is_decimal, shortened, unprintable
from dataflex.core.errors import Problem, listed, nearest
from dataflex.core.named_sources import LABEL_SUFFIXES, MOST_SOURCES
from dataflex.core.parameter_checks import is_number

KEY = "mixture_by"
COLUMN, FILE, CLUSTER = "column", "file", "cluster"
ALLOWED = f"{COLUMN}:NAME | {FILE}:PATH | {CLUSTER}:K"


@dataclass(frozen=True)
class MixtureBy:
    """The key, taken apart.

    Attributes:
        kind: ``column``, ``file`` or ``cluster``.
        argument: What follows the colon; of a file, its absolute path.
    """

    kind: str
    argument: str

    @classmethod
    def of(cls, keys: DataflexArguments) -> MixtureBy | None:
        """Returns what the keys of a run say; None where the sources are the datasets."""
        if keys.mixture_by is None:
            return None
        kind, _, argument = keys.mixture_by.partition(":")
        return cls(kind, argument)

    @property
    def column(self) -> str | None:
        """The column; None for another kind."""
        return self.argument if self.kind == COLUMN else None

    @property
    def file(self) -> Path | None:
        """The file; None for another kind."""
        return Path(self.argument) if self.kind == FILE else None

    @property
    def clusters(self) -> int | None:
        """K; None for another kind."""
        return int(self.argument) if self.kind == CLUSTER else None


def parse_mixture_by(value: Any, folder: Path) -> str | Problem:
    """Returns the key as it is kept, the path of a file made absolute, or what is wrong with it.

    Args:
        value: What the user wrote.
        folder: The folder of the YAML.
    """
    found = f"found {shortened(repr(value))}, allowed: {ALLOWED}"
    if not isinstance(value, str):
        return Problem(KEY, found, "write one of these")
    kind, colon, argument = value.partition(":")
    kind, argument = kind.strip(), argument.strip()
    if kind not in (COLUMN, FILE, CLUSTER) or not colon:
        return Problem(KEY, found, nearest(kind, (COLUMN, FILE, CLUSTER)) or "write one of these")
    if unprintable(value):
        return Problem(KEY, f"found {value!r}, which holds {unprintable(value)}", "remove it")
    if not argument:
        return Problem(KEY, f"{found}: nothing stands behind the colon", "write what it is")
    if kind == CLUSTER:
        whole = argument.isascii() and argument.isdecimal() and len(argument) < 10
        if not whole or not 2 <= int(argument) <= MOST_SOURCES:
            what = (
                f"found {shortened(repr(value))}, allowed: {CLUSTER}:K with K a whole number from 2 to {MOST_SOURCES}"
            )
            return Problem(KEY, what, f"write {CLUSTER}:8, say")
        return f"{CLUSTER}:{int(argument)}"
    if kind == FILE:
        path = find_path(argument, folder)
        if not path.is_file():
            return Problem(KEY, f"{path} {'is no file' if path.exists() else 'does not exist'}", "name a label file")
        if path.suffix not in LABEL_SUFFIXES:
            what = f"{path.name} ends in {path.suffix!r}, allowed: {', '.join(LABEL_SUFFIXES)}"
            return Problem(KEY, what, "give a label for each row in one of these")
        return f"{FILE}:{path}"
    return f"{kind}:{argument}"


def parse_shares(key: str, value: Any) -> Shares | Problem:
    """Returns shares as they are kept, or what is wrong with them.

    Args:
        key: The key.
        value: A list, a text with commas as LLaMA-Factory writes lists, or a mapping from source to number.
    """
    if isinstance(value, Mapping):
        numbers: Any = list(value.values())
        names = [name for name in value if not isinstance(name, str | int) or isinstance(name, bool)]
        if names or not value:
            what = f"found {shortened(repr(dict(value)))}, allowed: a mapping from the names of sources to numbers"
            return Problem(key, what, "write {NAME: 0.7, OTHER: 0.3}")
    else:
        numbers = _floats(value.split(",")) if isinstance(value, str) else value
    if not isinstance(numbers, list | tuple):
        return Problem(key, f"found {value!r}, allowed: a list of numbers, one per dataset", "write [0.7, 0.3]")
    wrong = [number for number in numbers if not is_number(number) or number < 0]
    if wrong:
        found = ", ".join(shortened(repr(number)) for number in wrong)
        return Problem(key, f"found {found}, allowed: finite numbers of 0 or more", "one share per dataset")
    if not any(float(number) for number in numbers):
        nothing = "nothing would be drawn" if key != OBJECTIVE else "nothing would be learnt"
        return Problem(key, f"found {value!r}: {nothing}", "give at least one dataset a share above 0")
    if isinstance(value, Mapping):
        return {str(name): float(number) for name, number in value.items()}
    return tuple(float(n) for n in numbers)


OBJECTIVE = "objective_proportions"
INITIAL = "init_mixture_proportions"


def share_problems(key: str, given: Shares | None, names: Sequence[str]) -> list[Problem]:
    """Returns a problem where shares are given and are not one for each source.

    Args:
        key: The key.
        given: Its value.
        names: (K) the sources.
    """
    if isinstance(given, Mapping):
        unknown = [name for name in given if name not in names]
        missing = [name for name in names if name not in given]
        if unknown:
            what = f"found the source {listed(unknown)}, and the sources are {_shown(names)}"
            return [Problem(key, what, nearest(unknown[0], names) or "name each of these")]
        if missing:
            return [Problem(key, f"names no share of {listed(missing)}", "give every source one; 0 for none")]
        return []
    if given is None or len(given) == len(names):
        return []
    what = f"found {len(given)} numbers for {len(names)} datasets ({_shown(names)})"
    return [Problem(key, what, "give one number per dataset, in their order")]


def never_seen(names: Sequence[str], shares_K: Iterable[float], objective_K: Iterable[float]) -> list[Problem]:
    """Returns a problem where a source has a share in the objective and none in the rows: no weight makes up for that.

    Args:
        names: (K) the sources.
        shares_K: (K,) the proportions that rows are drawn by.
        objective_K: (K,) those of the objective.
    """
    lost = [name for name, q, w in zip(names, shares_K, objective_K, strict=True) if q == 0 < w]
    if not lost:
        return []
    what = (
        f"give {', '.join(lost)} a share of the loss, and the proportions of the rows are 0 there: none would be seen"
    )
    return [Problem(OBJECTIVE, what, "give it a share of the rows (min_share of the mixer), or 0 here")]


def shares_in_order(given: Shares | None, names: Sequence[str]) -> tuple[float, ...] | None:
    """Returns shares that :func:`share_problems` has found nothing wrong with, in the order of the sources."""
    if isinstance(given, Mapping):
        return tuple(float(given[name]) for name in names)
    return None if given is None else tuple(given)


def _shown(names: Sequence[str], most: int = 20) -> str:
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:most])}, ... ({len(names)} in all)"


def _floats(parts: list[str]) -> list[Any]:
    """Returns ``"0.7,0.3"``, the way LLaMA-Factory writes its own lists, as numbers; what is no number stays text.

    A number is what it is in the file: decimal, in the digits of ASCII.
    """
    return [float(part) if is_decimal(part.strip()) else part for part in parts]
