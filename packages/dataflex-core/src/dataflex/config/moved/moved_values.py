"""Values of their files: how they are compared, shown in messages and converted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def shown(value: Any) -> str:
    """Returns a value as YAML writes it."""
    texts = {None: "null", True: "true", False: "false"}
    return texts[value] if value is None or isinstance(value, bool) else str(value)


def among(value: Any, values: tuple[Any, ...]) -> bool:
    """Whether a value is one of those: ``false`` is not 0 here, 1.0 is 1."""
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in values)


def filled(text: str, value: Any, start: int) -> str:
    """Returns a sentence of the table with the value that was found and the step of the first update."""
    return text.replace("{value}", shown(value)).replace("{start}", str(start))


def shares_in(value: Any) -> list[float] | None:
    """Returns proportions with sum 1, rounded; None where they are none."""
    numbers = list(value) if isinstance(value, list | tuple) else []
    usable = all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers)
    total = sum(numbers) if usable else 0
    return [round(number / total, 9) for number in numbers] if total > 0 else None


def product(value: Any, times: Any) -> Any:
    """Returns the product of two whole numbers; else the first as it is."""
    whole = all(isinstance(each, int) and not isinstance(each, bool) for each in (value, times))
    return value * times if whole else value  # a wrong value is told by the check of our parameter


def _base_address(value: Any) -> Any:
    return value.removesuffix("/").removesuffix("/chat/completions") if isinstance(value, str) else value


CONVERSIONS: Mapping[str, Callable[[Any], Any]] = {"base_address": _base_address}
"""Name of a conversion in the table -> what converts a value."""
