"""The site as files: it is built without a warning, everything that it refers to is in it, and nothing is elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from html_pages import HtmlPage

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, HtmlPage]:
    return {file: HtmlPage(file) for file in sorted(site.rglob("*.html"))}


def elsewhere(address: str) -> bool:
    return bool(urlsplit(address).netloc)


def test_every_page_of_the_docs_became_a_page_of_the_site(site, pages):
    written = {path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md") if path.name != "README.md"}
    assert {path.with_suffix(".html") for path in written} <= {file.relative_to(site) for file in pages}
    assert len(pages) >= 90


def test_no_page_loads_anything_from_elsewhere(site, pages):
    loaded = {(str(file.relative_to(site)), a) for file, page in pages.items() for a in page.loaded if elsewhere(a)}
    assert loaded == set()
    styles = [css.read_text(encoding="utf-8") for css in site.rglob("*.css")]
    assert styles
    address = re.compile(r"""(?:url\(|@import\s*)["']?(?:https?:)?//[^)"']*""")
    assert [found for css in styles for found in address.findall(css)] == []


def test_every_link_image_and_anchor_leads_somewhere(site, pages):
    dead = []
    for file, page in pages.items():
        if file.name == "404.html":
            continue  # its addresses are those of a server's root
        for address in [*page.links, *page.loaded]:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(parts.fragment)
            missing = anchor and target in pages and anchor not in pages[target].anchors and anchor != "__skip"
            if not target.exists() or missing:
                dead.append((str(file.relative_to(site)), address))
    assert dead == []


def test_no_directive_or_role_is_left_in_the_text(pages):
    """A name that mkdocstrings did not read, or a role that was not turned into a link, would stand there as text."""
    left = {}
    for file in pages:
        text = re.sub(r"<(code|pre)\b.*?</\1>", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
        found = re.findall(r"::: [\w.]+|:(?:class|meth|func|attr|data|mod):`|</?autoref\b", text)
        if found:
            left[file.name] = found
    assert left == {}


def test_chinese_pages_say_that_they_are_chinese(site, pages):
    for file in pages:
        chinese = file.relative_to(site).parts[0] == "zh"
        assert ('<html lang="zh"' in file.read_text(encoding="utf-8")) == chinese, file
