"""The page in a real browser: nothing is asked of the network, numbers are those of the record, all is reachable."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.report import folders
from tests.report.folders import HOSTILE, KINDS


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def card(page, section: str, title: str):
    """Returns the card of a section with that heading."""
    return page.locator(f"#{section} article", has=page.get_by_role("heading", name=title, exact=True))


def table(found) -> list[list[str]]:
    """Opens the table behind a plot and returns its cells."""
    found.locator("details summary").click()
    rows = found.locator("tbody tr")
    rows.first.wait_for()
    return [rows.nth(place).locator("td").all_text_contents() for place in range(rows.count())]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("kind", KINDS)
def test_a_page_opens_without_an_error_a_request_or_a_scroll_to_the_side(opened, tmp_path, kind, width, scheme):
    found = opened(KINDS[kind](tmp_path / kind), width=width, scheme=scheme)
    found.scroll()
    page = found.page
    assert not found.faults
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator("html").get_attribute("data-theme") == scheme
    assert page.locator(".plot canvas").count() == page.locator(".plot").count() > 0
    assert page.locator("text=undefined").count() == page.locator("text=NaN").count() == 0
    assert page.locator("text=/^null$/").count() == 0


@pytest.mark.parametrize("width", [1280, 390])
def test_a_comparison_and_two_runs_open_as_well(opened, tmp_path, width):
    paths = [KINDS[kind](tmp_path / kind) for kind in ("select", "random", "static")]
    said = folders.comparison(dict(zip(("less", "random", "static"), ([path] for path in paths), strict=True)))
    for comparison in (said, None):
        found = opened(*paths, width=width, comparison=comparison)
        found.scroll()
        assert not found.faults
        assert found.page.evaluate("document.documentElement.scrollWidth") == width
        if comparison is not None:
            assert "less is better than random" in found.page.locator("#head").inner_text()
            assert found.page.locator("#comparison .verdict.better").count() == 2
            assert found.page.locator("#comparison .verdict.undecided").count() == 2


def test_every_plot_has_a_table_with_the_numbers_of_the_record(opened, tmp_path):
    path = KINDS["select"](tmp_path / "run")
    page = opened(path).page
    for place in range(page.locator("article .plot").count()):
        assert page.locator("article:has(.plot)").nth(place).locator("details summary").count() == 1
    said = table(card(page, "scores", "Scores by the selector less"))
    trace = lines_of(path / "dataflex_trace.jsonl")
    assert [row[0] for row in said] == ["20", "40", "60", "80"]
    assert [float(row[3]) for row in said] == pytest.approx([line["scores"]["median"] for line in trace], rel=1e-3)
    assert [float(row[8]) for row in said] == pytest.approx([line["candidates"]["median"] for line in trace], rel=1e-3)
    losses = {line["step"]: line["loss"] for line in lines_of(path / "dataflex_metrics.jsonl") if "loss" in line}
    shown = {
        int(row[0]): float(row[1]) for row in table(card(page, "losses", "Loss over the run")) if row[1] != "\u2013"
    }
    assert shown == pytest.approx(losses, abs=1e-3)
    files = [np.load(file)["indices"] for file in sorted((path / "dataflex_selections").glob("*.npz"))]
    counts = np.bincount(np.concatenate(files), minlength=300)
    bars = dict(table(card(page, "seen", "How often rows were seen")))
    assert bars["never"] == str((counts == 0).sum())
    assert bars["2"] == str((counts == 2).sum())
    facts = dict(
        zip(page.locator(".fact dt").all_text_contents(), page.locator(".fact dd").all_text_contents(), strict=True)
    )
    assert facts["Rows seen"].startswith(str((counts > 0).sum()))


def test_a_row_is_found_by_its_text_its_source_and_its_number(opened, tmp_path):
    path = KINDS["select"](tmp_path / "run")
    page = opened(path).page
    search = page.get_by_role("searchbox")
    texts = {line["row"]: line["text"] for line in lines_of(path / "dataflex_rows.jsonl") if "row" in line}
    search.fill(texts[217][:60].upper())
    assert page.locator(".row").count() == 1
    assert page.locator(".row").get_attribute("data-row") == "217"
    assert page.locator(".row mark").inner_text() == texts[217][:60]
    search.fill("#42")
    assert page.locator(".row").first.get_attribute("data-row") == "42"
    search.fill("gsm8k")
    assert "60 rows match" in page.get_by_role("status").inner_text()
    search.fill("nothing has this")
    assert "0 rows match" in page.get_by_role("status").inner_text()
    page.get_by_role("button", name="Never chosen").click()
    assert search.input_value() == ""
    assert "Never chosen: 25 rows" in page.get_by_role("status").inner_text()
    page.get_by_role("button", name="Show more rows").click()
    assert page.locator(".row").count() == 25


def test_a_row_says_why_it_was_chosen(opened, tmp_path):
    path = KINDS["select"](tmp_path / "run")
    page = opened(path).page
    why = {line["row"]: line for line in lines_of(path / "dataflex_why.jsonl")}
    page.get_by_role("button", name="With a why").click()
    row = page.locator(".row").nth(1)
    button = row.get_by_role("button", name="Why this row?")
    button.click()
    assert button.get_attribute("aria-expanded") == "true"
    line = why[int(row.get_attribute("data-row"))]
    first = row.locator(".target").first
    assert first.locator("b").inner_text() == "41 % of the score"
    assert first.locator(".text").inner_text() == folders.Folder.target(line["targets"][0]["target"])
    assert f"update {line['update']}, step {line['step']}" in row.locator(".why").inner_text()
    assert "took 0.4 s" in row.locator(".why").inner_text()
    button.click()
    assert row.locator(".why").count() == 0


def test_text_of_rows_does_nothing_but_stand_there(opened, tmp_path):
    found = opened(folders.select_less(tmp_path / "run", texts=HOSTILE))
    page = found.page
    page.get_by_role("button", name="All rows here").click()
    for row, text in enumerate(HOSTILE[:4]):
        page.get_by_role("searchbox").fill(text)
        shown = page.locator(f".row[data-row='{row}'] .text")
        assert shown.inner_text() == text
        assert shown.locator("img, script, a, b:not(mark)").count() == 0
    page.get_by_role("searchbox").fill("xxxxxxxxxxxxxxxxxxxxx")
    page.locator(".row").get_by_role("button", name="All of it").click()
    assert len(page.locator(".row .text").inner_text()) < 2100
    assert page.evaluate("document.documentElement.scrollWidth") == 1280
    assert page.evaluate("window.hurt") is None
    assert not found.faults


def test_the_keyboard_reaches_what_the_mouse_does(opened, tmp_path):
    page = opened(KINDS["dynamic"](tmp_path / "run")).page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Tab")  # into the report: the first legend
    assert page.evaluate("document.activeElement.closest('article') !== null")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    plot = page.locator("#losses .plot").first
    plot.focus()
    plot.locator("canvas").wait_for()
    before = page.locator("#losses .readout").first.inner_text()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert page.locator("#losses .readout").first.inner_text() != before
    slider = page.locator("#scores input[type=range]").first
    slider.focus()
    page.keyboard.press("Home")
    assert "Step 20, 1 of 4" in page.locator("#scores .hist label").first.inner_text()
    summary = page.locator("#losses summary").first
    summary.focus()
    page.keyboard.press("Enter")
    region = page.get_by_role("region", name="Loss over the run")
    assert region.get_attribute("tabindex") == "0"


def test_switches_say_what_they_are_set_to(opened, tmp_path):
    found = opened(KINDS["dynamic"](tmp_path / "run"))
    page = found.page
    rows = page.get_by_role("button", name="in rows")
    assert rows.get_attribute("aria-pressed") == "false"  # the mixture is in tokens
    rows.click()
    assert rows.get_attribute("aria-pressed") == "true"
    curve = page.locator("#losses .legend button").first
    curve.click()
    assert curve.get_attribute("aria-pressed") == "false"
    assert "training" not in page.locator("#losses .readout").first.inner_text()
    page.get_by_role("button", name="Show in dark colours").click()
    assert page.locator("html").get_attribute("data-theme") == "dark"
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Show in light colours").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark
    assert page.locator("#losses canvas").count() == 1
    count = page.locator("#config tbody tr").count()
    page.get_by_label("only what differs").uncheck()
    assert page.locator("#config tbody tr").count() >= count
    assert not found.faults


def test_links_of_the_bar_lead_to_their_sections(opened, tmp_path):
    page = opened(KINDS["dynamic"](tmp_path / "run")).page
    links = page.locator("#contents a")
    targets = [links.nth(place).get_attribute("href") for place in range(links.count())]
    order = ["losses", "shares", "scores", "rows", "seen", "weights", "order", "time", "config", "warnings"]
    assert targets == [f"#{name}" for name in order]
    for target in targets:
        assert page.locator(target).count() == 1


def test_every_text_has_contrast_in_both_themes(opened, tmp_path):
    """Of WCAG 2.2: 4.5 for text, 3 for the colours of curves."""
    page = opened(KINDS["static"](tmp_path / "run")).page

    def colour(name: str) -> float:
        code = page.evaluate(f"getComputedStyle(document.documentElement).getPropertyValue('--{name}').trim()")
        parts = [int(code[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for _ in range(2):
        for surface in ("bg", "panel"):
            behind = colour(surface)
            for name, least in [
                *((f"t{tone}", 2.6) for tone in range(8)),
                *((text, 4.5) for text in ("ink", "soft", "accent")),
            ]:
                ahead = colour(name)
                ratio = (max(ahead, behind) + 0.05) / (min(ahead, behind) + 0.05)
                assert ratio >= least, (name, surface, ratio)
        page.locator("#theme").click()


def test_a_printed_page_has_every_plot_and_no_buttons(opened, tmp_path):
    found = opened(KINDS["dynamic"](tmp_path / "run"), scheme="dark")
    page = found.page
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("html").get_attribute("data-theme") == "light"
    assert page.locator(".plot canvas").count() == page.locator(".plot").count()
    assert page.locator("nav.bar").evaluate("(node) => getComputedStyle(node).display") == "none"
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("html").get_attribute("data-theme") == "dark"
    assert not found.faults


def test_colours_of_a_run_and_of_a_source_are_the_same_everywhere(opened, tmp_path):
    page = opened(KINDS["select"](tmp_path / "run")).page
    keys = page.locator("#shares .legend .key")
    tones = {keys.nth(place).inner_text(): keys.nth(place).get_attribute("style") for place in range(keys.count())}
    page.get_by_role("searchbox").fill("gsm8k")
    assert page.locator(".row .src").first.get_attribute("style") == tones["gsm8k"]
    assert re.search(r"--tone: ?var\(--t0\)", tones["gsm8k"])
