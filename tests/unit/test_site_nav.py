"""mkdocs.yml leads to every page of docs/, and names none that is not there."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
WRITTEN = ("reference/", "results.md", "changes.md", "contributing.md")  # at the build: docs/tools
NO_PAGES = ("tools/", "snippets/", "tutorial-plugin/src/")
CHINESE = "zh/"  # docs/tools/chinese_nav.py: the same order as the English pages


class _Loader(yaml.SafeLoader):
    """Reads tags of Python objects, which are MkDocs' affair, as nothing."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)


def places(part: Any) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    for each in part if isinstance(part, list) else part.values() if isinstance(part, dict) else ():
        yield from places(each)


TREE = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), _Loader)["nav"]
NAV = list(places(TREE))


def test_the_navigation_leads_to_every_page():
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert {page for page in pages if not page.startswith((*NO_PAGES, CHINESE))} - set(NAV) == set()


def test_the_navigation_names_each_page_once_and_none_that_is_not_there():
    assert sorted(set(NAV)) == sorted(NAV)
    assert [page for page in NAV if not page.startswith(WRITTEN) and not (DOCS / page).is_file()] == []


def chinese() -> ModuleType:
    spec = spec_from_file_location("chinese_nav", DOCS / "tools" / "chinese_nav.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_chinese_pages_stand_in_the_order_of_the_english_ones_and_others_at_the_end():
    nav = [{"Start": ["index.md"]}, {"Guides": [{"Keys": "b.md"}, {"More": ["a.md"]}]}, {"Reference": ["c.md"]}]
    made = chinese().chinese_nav(nav, {"zh/terms.md", "zh/a.md", "zh/b.md", "zh/index.md"})
    assert made == [{"开始": ["zh/index.md"]}, {"指南": ["zh/b.md", "zh/a.md"]}, "zh/terms.md"]


def test_every_section_but_the_reference_has_a_title_in_chinese():
    assert {title for section in TREE for title in section} - {"Reference"} <= set(chinese().SECTIONS)
