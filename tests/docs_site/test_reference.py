"""The generated reference names all that the code has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from dataflex.cli.commands import all_commands
from dataflex.config.arguments import DataflexArguments
from dataflex.core import registry
from dataflex.core.kinds import KINDS

ROOT = Path(__file__).parents[2]
SOURCES = sorted(ROOT.glob("packages/*/src/**/*.py"))

pytest.importorskip("griffe", reason="needs docs/requirements.txt")
pytestmark = pytest.mark.usefixtures("tools")

_READ = re.compile(
    r"""environ(?:\.get\(|\.pop\(|\.setdefault\(|\[)\s*["']([A-Z][A-Z0-9_]+)["']"""
    r"""|(?:is_)?enabled\(\s*["']([A-Z][A-Z0-9_]+)["']"""
    r"""|["']([A-Z][A-Z0-9_]+)["'] (?:not )?in (?:os\.)?environ"""
    r"""|["'](DATAFLEX_[A-Z_]+)["']"""
)
SET_ONLY = {"PYTORCH_CUDA_ALLOC_CONF", "TORCH_NCCL_AVOID_RECORD_STREAMS"}  # as OPTIM_TORCH says


def page(name: str) -> str:
    from generated import PAGES

    return PAGES[f"reference/{name}.md"]()


def test_each_environment_variable_that_the_code_reads_has_a_row():
    found = {name for path in SOURCES for groups in _READ.findall(path.read_text(encoding="utf-8")) for name in groups}
    found -= {"", *SET_ONLY}
    assert len(found) >= 15
    assert {name for name in found if f"| `{name}` |" not in page("environment")} == set()


def test_each_of_our_variables_with_a_row_is_in_the_code():
    from generated.environment import OTHERS, OWN

    text = "".join(path.read_text(encoding="utf-8") for path in SOURCES)
    assert [name for name in [*OWN, *OTHERS] if not re.search(rf"\b{name}", text, re.IGNORECASE)] == []


@pytest.mark.parametrize("key", DataflexArguments.names())
def test_each_key_has_a_row_with_what_its_check_allows(key):
    row = re.search(rf"^\| `{key}` \| \S+ \| .+ \| (.+) \|$", page("keys"), flags=re.MULTILINE)
    assert row
    assert row[1].strip()


def test_each_command_has_its_usage():
    for name, command in all_commands().items():
        assert f"## {name}\n" in page("commands")
        assert command.usage in page("commands")


def test_each_error_class_has_its_exit_code():
    from generated.errors import classes

    assert len(classes()) >= 11
    for cls in classes():
        assert re.search(rf"^\| `{cls.__name__}` \| `\w+` \| {cls.exit_code} \| .+ \|$", page("errors"), re.MULTILINE)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_each_component_has_a_section_whose_parameters_all_have_a_meaning(kind):
    text = page("components")
    for name in registry.official(kind):
        found = re.search(rf"^### `{name}` {{ #{kind.name}-{name} }}$(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)
        assert found, name
        assert "* **Costs**: " in found[1]
        rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*) \|$", found[1], re.MULTILINE)
        assert [parameter for parameter, _, meaning in rows if not meaning.strip()] == [], name


def public(path: str):
    """Yields what a page of the API shows under a name: the object, and its public members."""
    from generated.sources import modules

    found = modules()[path]
    found = found.final_target if found.is_alias else found
    yield found
    if found.is_class:
        yield from (each for each in found.members.values() if not each.is_alias and not each.name.startswith("_"))


def test_public_docstrings_read_well_and_name_the_arguments_that_there_are(caplog):
    """griffe warns of a docstring that it cannot take apart; it does not see that an argument is missing."""
    import griffe
    from generated.api import names

    wrong = []
    for each in (each for name in names() for each in public(name)):
        if each.is_attribute and each.docstring is None:
            continue  # described in the class
        if each.docstring is None:
            wrong.append(f"{each.path} has no docstring")
            continue
        sections = each.docstring.parse("google", warnings=True)
        kinds = griffe.DocstringSectionKind
        said = {p.name.lstrip("*") for part in sections if part.kind is kinds.parameters for p in part.value}
        if each.is_function and said:
            there = {parameter.name for parameter in each.parameters} - {"self", "cls"}
            wrong += [f"{each.path}: {name}" for name in said ^ there]
    assert len(names()) >= 70
    assert wrong == []
    assert caplog.messages == []


def test_links_that_leave_the_docs_lead_to_a_copy_or_become_text():
    from outside_links import rewritten

    pages = {"index.md", "selectors.md", "results.md", "zh/selectors.md", "reference/keys.md"}
    for place, text, wanted in (
        ("selectors.md", "[3 s](../benchmarks/RESULTS.md#orders)", "[3 s](results.md#orders)"),
        ("zh/selectors.md", "[3 s](../../benchmarks/RESULTS.md#orders)", "[3 s](../results.md#orders)"),
        ("selectors.md", "[the file](../packages/a/b.py)", "the file (`packages/a/b.py`)"),
        ("selectors.md", "[`packages/a/b.py`](../packages/a/b.py)", "`packages/a/b.py`"),
        ("results.md", "[guide](../docs/selectors.md)", "[guide](selectors.md)"),
        ("zh/selectors.md", "[x](../index.md)", "[x](../index.md)"),
        ("index.md", "[x](https://a.b/c) [y](#z) `[c](../no)`", "[x](https://a.b/c) [y](#z) `[c](../no)`"),
        ("index.md", "```\n[c](../no)\n```\n[d](../no)", "```\n[c](../no)\n```\nd (`no`)"),
        ("index.md", "![a drawing](images/a.svg)", "![a drawing](images/a.svg)"),
    ):
        assert rewritten(text, place, pages) == wanted
