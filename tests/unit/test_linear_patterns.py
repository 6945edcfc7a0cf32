"""No regular expression of the packages takes quadratic time: they read replies, logs and what users write."""

from __future__ import annotations

import ast
import re
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from dataflex.utils import secret_values

PACKAGES = ("dataflex", "dataflex_selectors", "dataflex_mixers", "dataflex_weighters")
SIZE = 60_000
HOSTILE = [
    part * (SIZE // len(part))
    for part in (
        " ",
        "a",
        "A",
        "1",
        "-",
        ".",
        "/",
        "_",
        "\n",
        "[",
        "?",
        "&a=",
        "http://",
        "a://",
        "a:",
        "aB",
        "1.",
        "\n ",
    )
]


ANCHORED = {"fullmatch", "match"}  # these begin at the first character alone


def patterns():
    """Every literal pattern in the source of the packages, whether it is looked for anywhere, and where it stands."""
    for package in PACKAGES:
        folder = Path(find_spec(package).submodule_search_locations[0])
        for path in sorted(folder.rglob("*.py")):
            tree = ast.parse(path.read_text())
            calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
            named = {
                node.value: ast.unparse(node.targets[0]) for node in ast.walk(tree) if isinstance(node, ast.Assign)
            }
            for node in calls:
                module, _, function = ast.unparse(node.func).rpartition(".")
                if module != "re" or function == "escape":
                    continue
                used = {function}
                if function == "compile":
                    name = f"{named.get(node, '?')}."
                    used = {text.removeprefix(name) for c in calls if (text := ast.unparse(c.func)).startswith(name)}
                anywhere = not used or not used <= ANCHORED
                where = f"{path.relative_to(folder)}:{node.lineno}"
                yield pytest.param(_text(node.args[0]), anywhere, id=where)


def _text(node):
    """The pattern, with something short in place of what is put into it."""
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    return node.value if isinstance(node, ast.Constant) else "x"


FOUND = list(patterns())


def test_the_patterns_are_found():
    assert len(FOUND) > 15


@pytest.mark.parametrize(("pattern", "anywhere"), FOUND)
def test_a_pattern_takes_linear_time(pattern, anywhere):
    compiled = re.compile(pattern)
    for text in HOSTILE:
        begun = time.process_time()
        for _ in compiled.finditer(text) if anywhere else ():
            pass
        compiled.fullmatch(text + "!")
        assert time.process_time() - begun < 1, text[:10]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:8]))
def test_a_message_is_scrubbed_in_linear_time(text):
    begun = time.process_time()
    secret_values.scrubbed(text)
    assert time.process_time() - begun < 1
