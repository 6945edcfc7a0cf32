"""Text that every Python machine has: the standard library, read as three sources.

``code`` is source without its docstrings, ``docstrings`` are those of functions and classes, ``prose`` is the language
reference that ``help()`` shows plus the paragraphs of module docstrings. Their entropy differs, which is what makes
mixing them worth watching: code repeats itself most, prose less, docstrings least.

The modules are only read, never run. Those that an interpreter does not have, or has without source, are left out.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.abc import InspectLoader
from importlib.util import find_spec

MODULES = """
argparse ast bdb calendar cmd code collections configparser contextlib copy csv dataclasses datetime decimal difflib dis
doctest enum filecmp fileinput fractions functools gettext glob gzip hashlib heapq http.client http.cookies inspect
ipaddress json.decoder locale logging logging.handlers mailbox mimetypes numbers operator optparse pathlib pdb pickle
pickletools platform plistlib pprint profile queue random re selectors shelve shlex shutil smtplib socket socketserver
statistics string subprocess tarfile tempfile textwrap threading timeit tokenize traceback types typing unittest.case
unittest.mock urllib.parse urllib.request uuid warnings weakref xml.dom.minidom zipfile
"""
"""Modules of every CPython from 3.11 on; none of their parents does anything but define when it is imported."""

SHORTEST, LONGEST = 120, 700
"""Characters of a piece: long enough to be a training row, short enough that few are cut at the tokenizer's end."""

SOURCES = ("code", "docstrings", "prose")


@dataclass(frozen=True)
class Piece:
    """A piece of text and the module or help topic it comes from."""

    text: str
    origin: str


@dataclass(frozen=True)
class Harvest:
    """What the standard library gave.

    Attributes:
        sources: Source -> its pieces, none twice, in the order of the library.
        summaries: Qualified name of a function or class -> first sentence of its docstring.
    """

    sources: dict[str, list[Piece]]
    summaries: dict[str, str]


def harvest() -> Harvest:
    """Reads the standard library. The same interpreter gives the same harvest."""
    code: list[Piece] = []
    docstrings: list[Piece] = []
    prose = [Piece(text, topic) for topic, page in _help_topics().items() for text in _paragraphs(page)]
    summaries: dict[str, str] = {}
    for module, source in _sources(MODULES):
        tree = ast.parse(source)
        code += (Piece(text, module) for text in _cut(_without_docstrings(source, tree)))
        prose += (Piece(text, module) for text in _paragraphs(ast.get_docstring(tree) or ""))
        for name, docstring in _docstrings(tree):
            docstrings += (Piece(text, module) for text in _cut(docstring))
            summary = docstring.partition("\n\n")[0]
            if "\n" not in summary and 20 <= len(summary) <= 90 and "._" not in f".{name}":
                summaries.setdefault(f"{module}.{name}", summary)
    sources = zip(SOURCES, (code, docstrings, prose), strict=True)
    return Harvest({name: _distinct(pieces) for name, pieces in sources}, summaries)


def _sources(modules: str) -> Iterator[tuple[str, str]]:
    for module in modules.split():
        try:
            spec = find_spec(module)
            source = spec.loader.get_source(module) if spec and isinstance(spec.loader, InspectLoader) else None
        except (ImportError, OSError):  # a stripped interpreter: no such package, or byte code without its source
            continue
        if source:
            yield module, source


def _help_topics() -> dict[str, str]:
    """Returns the pages of ``help()``, or nothing where a distribution strips them; module docstrings remain then."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return {}
    return dict(sorted(topics.items()))


def _docstrings(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yields (name, docstring) of each top-level function and class and of each method."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for node in tree.body:
        if not isinstance(node, kinds):
            continue
        if docstring := ast.get_docstring(node):
            yield node.name, docstring
        for method in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(method, kinds) and (docstring := ast.get_docstring(method)):
                yield f"{node.name}.{method.name}", docstring


def _without_docstrings(source: str, tree: ast.Module) -> str:
    """Blanks the lines of every string that stands alone as a statement."""
    lines = source.splitlines()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for number in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[number] = ""
    return "\n".join(lines)


def _cut(text: str) -> Iterator[str]:
    """Joins blocks between blank lines into pieces of a good length; what cannot be made to fit is left out."""
    piece = ""
    for block in re.split(r"\n\s*\n", text):
        joined = f"{piece}\n\n{block}" if piece else block.strip("\n")
        if len(joined) <= LONGEST:
            piece = joined
            continue
        if len(piece) >= SHORTEST:
            yield piece
        piece = block.strip("\n") if len(block) <= LONGEST else ""
    if len(piece) >= SHORTEST:
        yield piece


def _paragraphs(page: str) -> Iterator[str]:
    """Yields the running text of a page: no headings, lists, tables, grammar or examples."""
    for block in re.split(r"\n\s*\n", page):
        text = " ".join(block.split())
        begins_as_text = block[:1].isupper() and "::=" not in block and ">>>" not in block
        if begins_as_text and SHORTEST <= len(text) <= LONGEST and text.endswith((".", ":")):
            yield text


def _distinct(pieces: Iterable[Piece]) -> list[Piece]:
    return list({piece.text: piece for piece in pieces}.values())
