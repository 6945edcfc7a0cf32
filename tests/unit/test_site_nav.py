"""mkdocs.yml leads to every page of docs/, and names none that is not there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
WRITTEN = ("reference/", "results.md", "changes.md", "contributing.md")  # at the build: docs/tools
NO_PAGES = ("tools/", "snippets/", "tutorial-plugin/src/")


class _Loader(yaml.SafeLoader):
    """Reads tags of Python objects, which are MkDocs' affair, as nothing."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)


def places(part: Any) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    for each in part if isinstance(part, list) else part.values() if isinstance(part, dict) else ():
        yield from places(each)


NAV = list(places(yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), _Loader)["nav"]))


def test_the_navigation_leads_to_every_page():
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert {page for page in pages if not page.startswith(NO_PAGES)} - set(NAV) == set()


def test_the_navigation_names_each_page_once_and_none_that_is_not_there():
    assert sorted(set(NAV)) == sorted(NAV)
    assert [page for page in NAV if not page.startswith(WRITTEN) and not (DOCS / page).is_file()] == []
