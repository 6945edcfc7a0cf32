"""Sweeps over all scores that go up and down in turn, without a jump between two of them (arXiv 2605.30334, ZIG)."""

from __future__ import annotations

from typing import ClassVar

from dataflex.core.registry import register_order

from dataflex_selectors.orders.folding import FoldingOrder


@register_order("zigzag")
class ZigzagOrder(FoldingOrder):
    """Rows in several sweeps, from the lowest score to the highest and back in turn.

    Its parameters are those of :class:`~dataflex_selectors.orders.folding.FoldingOrder`.
    """

    title: ClassVar[str] = "zigzag order"
    turning: ClassVar[bool] = True
