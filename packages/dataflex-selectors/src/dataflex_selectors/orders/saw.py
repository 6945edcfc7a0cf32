"""A curriculum whose rows go up and down around the borders of its sections (arXiv 2605.30334, SAW).

As :mod:`dataflex_selectors.orders.stair`, but every second sweep around a border goes backwards, so that no sweep
begins with a jump of the score.
"""

from __future__ import annotations

from typing import Any, ClassVar

from dataflex.core.registry import register_order

from dataflex_selectors.orders.stair import StairOrder


@register_order("saw")
class SawOrder(StairOrder):
    """Rows by their score, with sweeps up and down around the borders of sections.

    Its parameters are those of :class:`~dataflex_selectors.orders.stair.StairOrder`, with the authors' defaults for it.
    """

    title: ClassVar[str] = "saw order"
    turning: ClassVar[bool] = True

    def __init__(self, sections: int = 3, ratio: float = 0.075, layers: int = 2, **shared: Any) -> None:
        super().__init__(sections=sections, ratio=ratio, layers=layers, **shared)
