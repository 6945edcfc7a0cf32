"""The four kinds of component. One row each; everything that differs between the kinds by name stands here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A kind of component.

    Attributes:
        name: Singular, as users say it: ``selector``.
        section: The section of ``components.yaml`` and the suffix of the entry-point group: ``selectors``.
        train_type: The ``train_type`` that runs it.
    """

    name: str
    section: str
    train_type: str

    @property
    def group(self) -> str:
        """The entry-point group third parties register in."""
        return f"dataflex.{self.section}"

    def __reduce__(self) -> tuple[Callable[[str], Kind], tuple[str]]:
        """Lets a kind that has travelled between processes, as to Ray's workers, be the one that is there."""
        return kind_of_section, (self.section,)


SELECTOR = Kind("selector", "selectors", "dynamic_select")
MIXER = Kind("mixer", "mixers", "dynamic_mix")
ORDER = Kind("order", "orders", "dynamic_reorder")
WEIGHTER = Kind("weighter", "weighters", "dynamic_weight")

KINDS = (SELECTOR, MIXER, ORDER, WEIGHTER)
BY_TRAIN_TYPE = {kind.train_type: kind for kind in KINDS}
BY_SECTION = {kind.section: kind for kind in KINDS}


def kind_of_section(section: str) -> Kind:
    """Returns the kind with that section of ``components.yaml``."""
    return BY_SECTION[section]
