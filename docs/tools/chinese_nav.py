"""The navigation of the Chinese pages: that of the English ones, as far as they are there in Chinese."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

FOLDER = "zh/"
TITLE = "中文"
SECTIONS: Mapping[str, str] = {
    "Start": "开始",
    "Tutorials": "教程",
    "Guides": "指南",
    "Strategies": "策略",
    "Moving here": "迁移",
    "Write and publish": "编写与发布",
    "How it works": "原理",
}
"""Section of the navigation -> its title in Chinese. The reference is in English alone."""


def chinese_nav(nav: Sequence[Any], pages: Collection[str]) -> list[Any]:
    """Returns the Chinese part of the navigation; each page has its own heading as its title.

    Args:
        nav: The navigation in mkdocs.yml.
        pages: The Chinese pages, relative to docs/.

    Raises:
        KeyError: A section that has Chinese pages has no title in :data:`SECTIONS`.
    """
    found: list[Any] = []
    for section in nav:
        ((title, parts),) = section.items()
        here = [FOLDER + place for place in _places(parts) if FOLDER + place in pages]
        if here:
            found.append({SECTIONS[title]: here})
    named = {place for section in found for place in next(iter(section.values()))}
    return [*found, *sorted(set(pages) - named)]


def _places(part: Any) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    for each in part if isinstance(part, list) else part.values() if isinstance(part, dict) else ():
        yield from _places(each)
