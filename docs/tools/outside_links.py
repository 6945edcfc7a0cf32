"""Links of pages to files that are no pages of the site: to a copy of the file there, else plain text with its path."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Mapping

COPIES: Mapping[str, str] = {
    "benchmarks/RESULTS.md": "results.md",
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
}
"""File of the repository -> the page of the site that is a copy of it."""

DOCS = "docs"
_ORIGINS = {place: origin for origin, place in COPIES.items()}
_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)")
_CODE = re.compile(r"^ {0,3}(```|~~~).*?^ {0,3}\1[`~]*\s*$|`[^`\n]+`", flags=re.MULTILINE | re.DOTALL)


def rewritten(markdown: str, place: str, pages: Collection[str]) -> str:
    """Returns the text of a page with every link that would leave the site rewritten; code stays as it is.

    Args:
        markdown: The text, as it stands in the repository.
        place: The page, relative to docs/.
        pages: Every page and file of the site, relative to docs/.
    """
    text, after = [], 0
    for code in _CODE.finditer(markdown):
        if _inside_link(markdown, code.start(), code.end()):
            continue
        text += [_prose(markdown[after : code.start()], place, pages), code[0]]
        after = code.end()
    return "".join([*text, _prose(markdown[after:], place, pages)])


def _inside_link(markdown: str, start: int, end: int) -> bool:
    """Returns whether code is the text of a link, as in ``[`name`](page.md)``; then it belongs to the prose."""
    return any(
        link.start() < start and end < link.end() for link in _LINK.finditer(markdown, max(0, start - 300), end + 300)
    )


def _prose(text: str, place: str, pages: Collection[str]) -> str:
    return _LINK.sub(lambda link: _link(link, place, pages), text)


def _link(link: re.Match[str], place: str, pages: Collection[str]) -> str:
    words, (path, _, anchor) = link[1], link[2].partition("#")
    if not path or "://" in path or path.startswith("mailto:"):
        return link[0]
    home = posixpath.dirname(_ORIGINS.get(place) or posixpath.join(DOCS, place))
    target = posixpath.normpath(posixpath.join(home, path))  # relative to the repository
    on_site = COPIES.get(target, target.removeprefix(f"{DOCS}/"))
    if on_site in pages and (target in COPIES or target.startswith(f"{DOCS}/")):
        shown = posixpath.relpath(on_site, posixpath.dirname(place) or ".")
        return f"[{words}]({shown}{'#' + anchor if anchor else ''})"
    return words if target in words else f"{words} (`{target}`)"
