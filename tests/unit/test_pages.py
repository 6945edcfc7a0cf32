"""The pages say what the code has: fields, messages, figures, and diagrams that open everywhere."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import memory_figures
import pytest
from dataflex.core import registry
from dataflex.core.context import PassOptions, RowScores, RunAhead, UpdateContext
from dataflex.core.kinds import BY_SECTION
from dataflex.interfaces.mixer import SourceMixture
from dataflex.interfaces.selector import Selection
from dataflex.interfaces.weighter import StepContext
from dataflex.objective.step_context import TrainerStep
from dataflex.objective.step_losses import StepLosses
from dataflex.scoring.passes import budget

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
