"""The table of docs/gpu-memory.md, from what the components declare. As a program, it prints it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dataflex.core import registry
from dataflex.core.cost import Ahead, Amount, Cost
from dataflex.core.kinds import KINDS
from dataflex.discovery.catalog import components
from dataflex.discovery.component_classes import find
from dataflex.forecast.page import _bytes

LORA, FULL = 20_971_520, 8_030_261_248
"""Trained numbers of a model of 8 billion weights: LoRA of rank 8 on all linear layers, and all of them."""
OTHERWISE: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("selector", "greats", {"proj_dim": 8192}),
    ("selector", "icons", {"gradient_type": "adam"}),
    ("selector", "less", {"gradient_type": "sgd"}),
    ("selector", "less", {"proj_dim": 8192}),
    ("selector", "less", {"factor_dim": 64}),
)
"""Settings that are shown beside the defaults."""


def rows_of(count: float) -> Amount:
    """Returns rows of 400 tokens, half of them with a label."""
    return Amount(count, count * 400, count * 200)


def ahead(trainable: int) -> Ahead:
    """Returns the run that the page tells of."""
    return Ahead(
        updates=10, rows=rows_of(100_000), asked=rows_of(1_600), target=rows_of(200), held_out=rows_of(300), sources=3,
        step=rows_of(16), steps=100, micro_batches=2, width=4096, trainable=trainable, model_bytes=2 * FULL,
    )  # fmt: skip


def costs(kind: str, name: str, params: Mapping[str, Any]) -> list[Cost | None]:
    """Returns the cost with LoRA, and with the whole model trained."""
    of_kind = next(one for one in KINDS if one.name == kind)
    info = next(one for one in components([of_kind]) if one.name == name)
    given = dict(info.parameters) | dict.fromkeys(info.required, "given") | dict(params)
    return [find(of_kind, name).cost(given, ahead(trainable)) for trainable in (LORA, FULL)]


def strategies() -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yields each of our components, followed by the other settings of it."""
    for kind in KINDS:
        for info in components([kind]):
            if info.name in registry.official(kind):
                yield kind.name, info.name, {}
                yield from (other for other in OTHERWISE if other[:2] == (kind.name, info.name))


def line(kind: str, name: str, params: Mapping[str, Any]) -> str | None:
    """Returns the line of a strategy in the table; None where it takes nothing, or does not say."""
    lora, full = costs(kind, name, params)
    if lora is None or full is None:
        return None
    figures = [lora.device_bytes, full.device_bytes, lora.host_bytes, full.host_bytes, lora.state_bytes]
    if not any(figures):
        return None
    said = "".join(f", `{key}: {value}`" for key, value in params.items())
    return f"| {kind} `{name}`{said} | " + " | ".join(map(_bytes, figures)) + " |"


def lines() -> list[str]:
    """Returns the lines of the table."""
    return [found for one in strategies() if (found := line(*one)) is not None]


def without() -> list[str]:
    """Returns the names of the strategies that take nothing, and say so."""
    return [one[1] for one in strategies() if line(*one) is None and costs(*one)[0] is not None]


if __name__ == "__main__":
    print("\n".join(lines()))
