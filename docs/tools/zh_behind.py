"""Says which Chinese pages are behind their English originals, and marks them.

    python -m docs.tools.zh_behind                     # the pages and how they stand; exit code 1 where one is behind
    python -m docs.tools.zh_behind --note              # puts a note for its readers on every page that is behind
    python -m docs.tools.zh_behind --seal plan.md ...  # these pages say what their originals say now

A page docs/zh/NAME.md begins with front matter that names its original, docs/NAME.md, and the digest of the text that
was translated. Spaces and line breaks do not count, so an English paragraph may be wrapped anew. Whoever changes more
than that in English has three ways: translate it and seal the page; seal it alone, where the Chinese text is right as
it is (a typo, a better word); or put the note on it, which needs no Chinese. What cannot be is a page that is old and
does not say so.
"""

# ruff: noqa: RUF001  the note is Chinese, with the punctuation of Chinese
from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from posixpath import relpath

DOCS = Path(__file__).parents[1]
NO_ORIGINAL = frozenset({"terms.md"})  # of both languages at once
NOTE = "> **本页落后于英文原文。** 原文在翻译之后有过修改，本页部分内容可能已经过时，请以[英文页]({target})为准。"
FRONT = re.compile(r"\A---\noriginal: (?P<original>\S+)\noriginal_digest: (?P<digest>[0-9a-f]{16})\n---\n\n?")
WAYS_OUT = (
    "-> translate the change and run `python -m docs.tools.zh_behind --seal {name}`; if the Chinese text is right as "
    "it is, run that alone; if you do not read Chinese, run `python -m docs.tools.zh_behind --note`"
)


@dataclass(frozen=True)
class Page:
    """A Chinese page: its name below docs/zh, the name of its original below docs, the digest and the text."""

    name: str
    original: str
    digest: str
    text: str

    @property
    def note(self) -> str:
        """The line that tells a reader that the page is old."""
        return NOTE.format(target=relpath(self.original, f"zh/{Path(self.name).parent}"))

    @property
    def noted(self) -> bool:
        """Whether the page tells its readers so."""
        return self.text.startswith(self.note)


def digest(text: str) -> str:
    """Returns 16 hex digits of the SHA-256 of a page's words, whatever stands between them."""
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]


def read(name: str, docs: Path = DOCS) -> Page:
    """Reads docs/zh/`name`; ValueError where its front matter is not the one that a Chinese page has."""
    content = (docs / "zh" / name).read_text(encoding="utf-8")
    front = FRONT.match(content)
    if front is None:
        raise ValueError(
            f"docs/zh/{name}: begins with {content[:40]!r}, allowed: four lines `---`, `original: {name}`, "
            "`original_digest: 0000000000000000`, `---`, and an empty one -> write them and run "
            f"`python -m docs.tools.zh_behind --seal {name}`"
        )
    return Page(name, front["original"], front["digest"], content[front.end() :])


def write(page: Page, text: str, docs: Path = DOCS) -> None:
    """Writes a page with the digest and the text that are given."""
    front = f"---\noriginal: {page.original}\noriginal_digest: {page.digest}\n---\n\n"
    (docs / "zh" / page.name).write_text(front + text, encoding="utf-8")


def names(docs: Path = DOCS) -> list[str]:
    """Returns the names of all Chinese pages that have an original, as paths below docs/zh."""
    found = (path.relative_to(docs / "zh").as_posix() for path in (docs / "zh").rglob("*.md"))
    return sorted(set(found) - NO_ORIGINAL)


def current_digest(page: Page, docs: Path = DOCS) -> str:
    """Returns the digest of the original as it is now."""
    return digest((docs / page.original).read_text(encoding="utf-8"))


def fault(name: str, docs: Path = DOCS) -> str | None:
    """Returns what is wrong with how a page stands to its original, with the way out; None where nothing is."""
    page = read(name, docs)
    if page.original != name or not (docs / name).is_file():
        found = f"found original: {page.original}, allowed: a page docs/{name} of the same name"
        return f"docs/zh/{name}: {found} -> rename the page, or remove it with its original"
    behind = page.digest != current_digest(page, docs)
    if behind and not page.noted:
        return f"docs/zh/{name} is behind docs/{name}, and does not say so {WAYS_OUT.format(name=name)}"
    if page.noted and not behind:
        return f"docs/zh/{name} says that it is behind docs/{name}, and is not {WAYS_OUT.format(name=name)}"
    return None


def without_note(page: Page) -> str:
    """Returns the text of a page without the note."""
    return page.text.removeprefix(page.note).lstrip("\n") if page.noted else page.text


def seal(name: str, docs: Path = DOCS) -> None:
    """Notes the digest of the original as it is now, and takes the note off."""
    page = read(name, docs)
    write(Page(name, page.original, current_digest(page, docs), page.text), without_note(page), docs)


def put_note(name: str, docs: Path = DOCS) -> None:
    """Puts the note on top of a page that is behind and has none."""
    page = read(name, docs)
    if page.digest != current_digest(page, docs) and not page.noted:
        write(page, f"{page.note}\n\n{page.text}", docs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m docs.tools.zh_behind", description=__doc__.partition("\n")[0])
    parser.add_argument("--note", action="store_true", help="put a note for readers on every page that is behind")
    parser.add_argument("--seal", nargs="+", metavar="PAGE", default=[], help="pages that are right as they are now")
    asked = parser.parse_args(arguments)
    unknown = sorted(set(asked.seal) - set(names()))
    if unknown:
        parser.error(f"--seal: found {', '.join(unknown)}, allowed: names of pages below docs/zh, such as {names()[0]}")
    for name in asked.seal:
        seal(name)
    for name in names() if asked.note else []:
        put_note(name)
    faults = [found for found in map(fault, names()) if found]
    noted = [name for name in names() if read(name).noted]
    for line in [*faults, *(f"docs/zh/{name} is behind, and says so" for name in noted)]:
        sys.stdout.write(line + "\n")
    sys.stdout.write(f"{len(names())} pages, {len(faults)} with a fault, {len(noted)} behind with a note\n")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
