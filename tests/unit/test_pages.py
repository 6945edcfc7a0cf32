"""The pages say what the code has: fields, messages, figures, and diagrams that open everywhere."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from dataflex.core.context import PassOptions, RowScores, RunAhead, UpdateContext
from dataflex.interfaces.mixer import SourceMixture
from dataflex.interfaces.selector import Selection
from dataflex.interfaces.weighter import StepContext
from dataflex.objective.step_context import TrainerStep
from dataflex.objective.step_losses import StepLosses

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


@pytest.mark.parametrize("kind", [UpdateContext, RunAhead, PassOptions, StepLosses, Selection], ids=lambda k: k.__name__)
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
