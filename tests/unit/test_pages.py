"""The pages say what the code has: fields, messages, figures, and diagrams that open everywhere."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from xml.etree import ElementTree

import memory_figures
import pytest
from dataflex.core import errors, registry
from dataflex.core.context import PassOptions, RowScores, RunAhead, UpdateContext
from dataflex.core.kinds import BY_SECTION
from dataflex.interfaces.mixer import SourceMixture
from dataflex.interfaces.selector import Selection
from dataflex.interfaces.weighter import StepContext
from dataflex.objective.step_context import TrainerStep
from dataflex.objective.step_losses import StepLosses
from dataflex.planning.run_schedule import PIECE
from dataflex.rows import digest
from dataflex.run import notable_rows, row_texts
from dataflex.scoring.passes import budget
from dataflex.scoring.seen_losses import SeenLosses
from dataflex.trainer import recording, row_recording

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def text(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def named_in_table(page: str, title: str) -> set[str]:
    """Returns the names in the first column of the table below a heading, without their arguments."""
    found = re.search(rf"^#+ {re.escape(title)}$(.*?)(?=^#|\Z)", text(page), flags=re.MULTILINE | re.DOTALL)
    assert found, f"docs/{page} has no heading {title}"
    return set(re.findall(r"^\| `(?:len\((?=scores))?(\w+)", found[1], flags=re.MULTILINE))


def public(owner: type) -> set[str]:
    """Returns the attributes and methods that a protocol or a class offers."""
    return {name for name in vars(owner) if not name.startswith("_")}


GIVEN = (UpdateContext, RunAhead, PassOptions, StepLosses, Selection)


@pytest.mark.parametrize("kind", GIVEN, ids=lambda kind: kind.__name__)
def test_the_page_has_each_field_of_what_a_component_is_given(kind):
    assert named_in_table("context.md", f"`{kind.__name__}`") == {field.name for field in fields(kind)}


def test_the_page_has_each_member_of_the_scores_of_a_run():
    assert named_in_table("context.md", "`RowScores`") == {*public(RowScores), "scores"}


def test_the_page_has_each_member_of_a_mixture():
    assert named_in_table("context.md", "`SourceMixture`") == public(SourceMixture)


def test_the_page_has_each_member_of_a_step_that_a_weighter_may_use():
    inner = {"weighing", "outputs"}
    assert public(StepContext) <= public(TrainerStep)
    assert named_in_table("context.md", "`StepContext`") == public(TrainerStep) - inner


def test_the_memory_of_each_strategy_is_what_it_declares():
    table = re.findall(r"^\| (?:selector|mixer|order|weighter) `.*$", text("gpu-memory.md"), flags=re.MULTILINE)
    assert table == memory_figures.lines()


def test_the_page_names_each_strategy_that_takes_no_memory():
    found = re.search(r"^All orders, (.*?)\.$", text("gpu-memory.md"), flags=re.MULTILINE | re.DOTALL)
    assert found
    orders = set(registry.official(BY_SECTION["orders"]))
    assert set(re.findall(r"`(\w+)`", found[1])) - {"custom"} == set(memory_figures.without()) - orders


def test_the_page_has_the_token_budgets_of_the_code():
    page = text("gpu-memory.md")
    for tokens in (budget.CPU_TOKENS, budget.CPU_GRADIENT_TOKENS, budget.GPU_TOKENS, budget._LEAST_GRADIENT_TOKENS):
        assert f"{tokens:,}" in page
    assert f"{budget._LOGIT_BYTES} bytes for each entry" in page
    assert f"{budget._GRADIENT_LOGIT_BYTES} bytes for each entry" in page


def literals() -> Iterator[str]:
    """Yields the texts of the sources: neighbouring literals as one, and what they fill in as …."""
    for path in sorted(ROOT.glob("packages/*/src/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_each_message_that_is_explained_is_said_by_the_code():
    rows = re.findall(r"^\| `([^`]*(?: |…)[^`]*)` \|", text("troubleshooting.md"), flags=re.MULTILINE)
    said = "\0".join(literals())
    unknown = [row for row in rows if not all(part.strip(" '") in said for part in row.split("…"))]
    assert unknown == []
    assert len(rows) > 50


def test_each_class_of_errors_is_explained_with_its_exit_code():
    own = [one for _, one in inspect.getmembers(errors, inspect.isclass) if one.__module__ == errors.__name__]
    found = dict(re.findall(r"^\| `(\w+)` \| .* \| (\d+) \|$", text("troubleshooting.md"), flags=re.MULTILINE))
    codes = {one.__name__: str(one.exit_code) for one in own if issubclass(one, errors.DataflexError)}
    assert found == codes
    assert "`Problem`" in text("troubleshooting.md")


DIAGRAMS = sorted((DOCS / "images").glob("*.svg"))


@pytest.mark.parametrize("path", DIAGRAMS, ids=lambda path: path.name)
def test_each_diagram_is_small_closed_and_readable_on_any_ground(path):
    """Text as text, its own ground, nothing from elsewhere."""
    drawn = path.read_text(encoding="utf-8")
    root = ElementTree.fromstring(drawn)
    names = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert len(drawn) < 10_000
    assert {"title", "desc", "text"} <= names
    assert not names & {"script", "image", "foreignObject", "style"}
    assert not re.search(r"(href|url\((?!#))", drawn)
    ground = next(element for element in root if element.tag.endswith("rect"))
    assert [ground.get(key) for key in ("width", "height", "fill")] == [*root.get("viewBox").split()[2:], "#ffffff"]
    used = [page for page in DOCS.rglob("*.md") if f"images/{path.name})" in page.read_text(encoding="utf-8")]
    assert used, "no page shows it"


def test_there_are_diagrams():
    assert len(DIAGRAMS) >= 4


def test_the_page_on_large_data_has_the_figures_of_the_code():
    page = text("large-data.md")
    seen = SeenLosses(1000)
    assert seen.losses.nbytes + seen.steps.nbytes == 8 * 1000
    assert "| losses that training has seen | 8 |" in page
    kept = (PIECE, digest.SAMPLE, row_recording.ALL, row_texts.MOST, notable_rows.COUNTED, recording.SCORED)
    assert [number for number in kept if f"{number:,}" not in page] == []


def test_each_question_but_the_last_is_one_that_somebody_asked():
    parts = text("faq.md").split("\n### ")[1:]
    nobody = [
        part.partition("\n")[0] for part in parts if not re.search(r"^Asked in [\w-]+/[\w-]+#\d+", part, re.MULTILINE)
    ]
    assert nobody == ["Is it worth it on my data?"]
    assert len(parts) > 20


def test_the_global_batch_size_stays_in_each_row_of_the_table_of_another_number_of_gpus():
    rows = re.findall(r"^\| (\d+) GPUs?[^|]*\| (\d+) \| (\d+) \|$", text("moving-a-run.md"), flags=re.MULTILINE)
    assert len(rows) >= 4
    assert {int(gpus) * int(batch) * int(steps) for gpus, batch, steps in rows} == {32}
