"""The two figures of ``plot_loss: true``: drawn from the record, of what it has numbers for and of nothing else."""

from __future__ import annotations

import json

import numpy as np
import pytest
from dataflex.core.files import TRACE
from dataflex.integrations.llamafactory.figures import (
    BOXES,
    COLOURS,
    MARKS,
    SCORES,
    SHARES,
    draw_figures,
    largest_sources,
    scores_figure,
    shares_figure,
)
from matplotlib import image

pytestmark = pytest.mark.llamafactory  # which brings matplotlib


def mix(step, **shares):
    return {"step": step, "kind": "mix", "component": "odm", "update": 0, "proportions": shares}


def scored(step, kind="select", **changes):
    summary = {"mean": 1.0, "std": 1.0, "min": -1.0, "q1": 0.5, "median": 0.9, "q3": 1.5, "max": 3.0} | changes
    found = {key: value for key, value in summary.items() if value != "left out"}
    return {"step": step, "kind": kind, "component": "loss", "update": 0, "scores": found}


def drawn(folder, lines, steps=100):
    (folder / TRACE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [path.name for path in draw_figures(folder, steps)]


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        ([], []),
        ([{"step": 3, "kind": "weight", "mean": 1.0}, {"step": 4, "kind": "order", "component": "saw"}], []),
        ([scored(10, mean=None, median=None)], []),
        ([mix(10, a=0.5, b=0.5)], [SHARES]),
        ([scored(10)], [SCORES]),
        ([scored(10, q1="left out", q3="left out")], [SCORES]),
        ([mix(10, a=1.0), scored(10), mix(20, a=0.5, b=0.5), scored(20, "filter")], [SHARES, SCORES]),
    ],
    ids=["nothing", "weights and orders", "no finite score", "mixer", "selector", "without quartiles", "all"],
)
def test_a_figure_is_drawn_of_what_the_record_has_and_no_other(tmp_path, lines, names):
    assert drawn(tmp_path, lines) == names
    assert sorted(path.name for path in tmp_path.glob("*.png")) == sorted(names)
    for name in names:
        pixels = image.imread(tmp_path / name)
        assert len(np.unique(pixels[..., :3].reshape(-1, 3), axis=0)) > 5, "it is blank"


def test_a_run_without_a_record_gets_no_figure(tmp_path):
    assert draw_figures(tmp_path, 10) == []


def test_the_shares_of_an_update_stand_until_the_next_and_the_last_until_the_end():
    figure = shares_figure([mix(10, a=0.25, b=0.75), mix(30, a=0.5, b=0.5)], 100)
    lowest = figure.axes[0].collections[0].get_paths()[0].vertices
    assert [lowest[(lowest[:, 0] == x) & (lowest[:, 1] > 0), 1].max() for x in (10.0, 100.0)] == [0.25, 0.5]
    assert sorted(set(lowest[lowest[:, 0] == 30.0, 1].round(6))) == [0.0, 0.25, 0.5]
    shown = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert shown == ["b 50 %", "a 50 %"], "as they are stacked"


def test_of_many_sources_the_largest_are_told_apart_and_nothing_is_lost():
    names = [f"s{i}" for i in range(30)]
    rng = np.random.default_rng(0)
    shares_UK = rng.dirichlet(np.ones(30), size=5)
    lines = [mix(10 * (u + 1), **dict(zip(names, shares_UK[u].tolist(), strict=True))) for u in range(5)]
    shown, shares_KU = largest_sources(lines, len(COLOURS))
    assert shown[-1] == "23 others"
    assert len(shown) == len(COLOURS) + 1
    assert shares_KU.sum(axis=0) == pytest.approx(np.ones(5))
    largest = {names[place] for place in np.argsort(-shares_UK.mean(axis=0))[: len(COLOURS)]}
    assert set(shown[:-1]) == largest


def test_a_box_has_the_quartiles_and_its_whiskers_the_extremes():
    figure = scores_figure({"Scores": [scored(10), scored(20)]}, 100)
    box = figure.axes[0].patches[0].get_path().vertices
    assert (box[:, 1].min(), box[:, 1].max()) == (0.5, 1.5)
    heights = np.concatenate([line.get_ydata() for line in figure.axes[0].lines])
    assert (heights.min(), heights.max()) == (-1.0, 3.0)
    assert 0.9 in heights


def test_the_chosen_rows_stand_beside_all_that_were_scored():
    lines = [scored(10) | {"candidates": scored(0, q1=-9.0, min=-10.0)["scores"]}, scored(20)]
    axes = scores_figure({"Scores": lines}, 100).axes[0]
    boxes = [patch.get_path().vertices for patch in axes.patches]
    (grey,) = [box for box in boxes if box[:, 1].min() == -9.0]
    chosen = [box for box in boxes if box[:, 1].min() == 0.5]
    assert len(chosen) == 2
    assert grey[:, 0].max() < chosen[0][:, 0].min(), "one does not hide the other"
    assert "grey: all rows" in axes.get_xlabel()
    many = [scored(step) | {"candidates": scored(0)["scores"]} for step in range(BOXES + 1)]
    shown = [text.get_text() for text in scores_figure({"Scores": many}, 100).axes[0].get_legend().get_texts()]
    assert shown[-1] == "median of all rows"


@pytest.mark.parametrize("updates", [1, BOXES, BOXES + 1, MARKS + 1])
def test_many_updates_are_bands_without_a_mark_for_each(updates):
    steps = 10 * updates
    lines = [scored(10 * u) for u in range(updates)]
    figure = scores_figure({"Scores": lines}, steps)
    assert len(figure.axes[0].patches) == (updates if updates <= BOXES else 0)
    marks = shares_figure([mix(10 * u, a=0.5, b=0.5) for u in range(updates)], steps).axes[0].collections[2:]
    assert len(marks) == (updates <= MARKS)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["$x$", "$x", "a_b^c", "x" * 200, "<b>", "50%"])
def test_a_name_is_text_and_no_formula(tmp_path, name):
    assert drawn(tmp_path, [mix(10, **{name: 0.5, "other": 0.5})]) == [SHARES]


def test_filter_and_selector_have_a_panel_each():
    figure = scores_figure({"one": [scored(10)], "two": [scored(10)]}, 100)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["one", "two"]
