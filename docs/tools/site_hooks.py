"""The hooks of MkDocs that mkdocs.yml names: generated pages, links that leave docs/, and the two languages.

The reference is written from the code at each build, so it cannot fall behind. Pages link to files outside of docs/
(``../benchmarks/RESULTS.md``), as a forge shows them; here they lead to a copy on the site, or are plain text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinese_nav import FOLDER, TITLE, chinese_nav
from generated import PAGES
from outside_links import COPIES, rewritten

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

_HTML_LANGUAGE = re.compile(r'<html lang="en"')
_ALTERNATE = re.compile(r'\s*<link rel="alternate"[^>]*hreflang[^>]*>')


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the Chinese pages to the navigation, in the order of the English ones."""
    docs = Path(config.docs_dir)
    pages = {path.relative_to(docs).as_posix() for path in (docs / FOLDER).rglob("*.md")}
    if pages and config.nav is not None:
        config.nav = [*config.nav, {TITLE: chinese_nav(config.nav, pages)}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages, and the copies of pages that stand elsewhere in the repository."""
    from mkdocs.structure.files import File

    root = Path(config.config_file_path).parent
    for place, make in PAGES.items():
        files.append(File.generated(config, place, content=make()))
    for origin, place in COPIES.items():
        files.append(File.generated(config, place, content=(root / origin).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links that leave docs/ into links of the site, or into text."""
    pages = {file.src_uri for file in files if file.inclusion.is_included()}
    return rewritten(markdown, page.file.src_uri, pages)


def on_page_context(context: dict[str, Any], page: Page, config: MkDocsConfig, **_: Any) -> dict[str, Any]:
    """Lets the language switch of a page lead to the same page in the other language, or to the other's first page."""
    pages = {file.src_uri: file.url for file in context["pages"]}
    name = page.file.src_uri.removeprefix(FOLDER)
    found = [("English", "en", pages.get(name, pages["index.md"]))]
    chinese = pages.get(FOLDER + name, pages.get(f"{FOLDER}index.md"))
    found += [("中文", "zh", chinese)] if chinese is not None else []
    switch = [{"name": shown, "lang": code, "link": url} for shown, code, url in found]
    config.extra["alternate"] = switch if len(switch) > 1 else []
    return context


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Says that a Chinese page is Chinese, for browsers and screen readers: the theme has one language for all.

    The theme's script asks for a map of the site beside each page that the head names as another language's. The switch
    in the header needs none, as its links are those of :func:`on_page_context`, so the head names none.
    """
    output = _ALTERNATE.sub("", output)
    chinese = page.file.src_uri.startswith(FOLDER)
    return _HTML_LANGUAGE.sub('<html lang="zh"', output, count=1) if chinese else output
