"""The figures that ``plot_loss: true`` draws from the record: shares of the sources, and scores at each update.

``dataflex_shares.png`` has the planned shares stacked over the steps, each update marked; ``dataflex_scores.png`` has a
box from the first to the third quartile of the chosen rows' scores at each update, with its median and whiskers to the
extremes, beside a grey one of all rows that were scored. A run that has no such numbers gets no such figure. Colours
are those of Okabe and Ito, which colour-blind people tell apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dataflex.core.files import replacing
from dataflex.run.record import read_trace

SHARES, SCORES = "dataflex_shares.png", "dataflex_scores.png"
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
OTHERS = "#999999"
MARKS = 60
"""Updates that are marked one by one; more would be a surface."""
BOXES = 40
"""Updates that have a box each; more are drawn as bands."""

Line = Mapping[str, Any]


def draw_figures(folder: str | Path, steps: int) -> list[Path]:
    """Draws what the record of a run has numbers for. Called on the rank that writes.

    Args:
        folder: The run's folder.
        steps: Optimizer steps that the run did.

    Returns:
        The files that were written.
    """
    trace, written = read_trace(folder), []
    mixes = [line for line in trace if line.get("proportions")]
    if mixes:
        written.append(_saved(shares_figure(mixes, steps), Path(folder) / SHARES))
    scored = _by_component([line for line in trace if _has_extremes(line.get("scores"))])
    if scored:
        written.append(_saved(scores_figure(scored, steps), Path(folder) / SCORES))
    return written


def shares_figure(mixes: Sequence[Line], steps: int) -> Figure:
    """Returns the stacked shares. Those of an update stand until the next one.

    Args:
        mixes: The lines of the mixer.
        steps: Where the last shares end.
    """
    names, shares_KU = largest_sources(mixes, len(COLOURS))
    starts_U = np.array([line["step"] for line in mixes])
    edges_E = np.append(starts_U, max(steps, starts_U[-1] + 1))
    stacked_KE = np.concatenate([shares_KU, shares_KU[:, -1:]], axis=1)
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.add_subplot()
    colours = [*COLOURS[: len(names)], *[OTHERS] * (len(names) - len(COLOURS))]
    labels = [f"{_short(name)} {100 * share:.0f} %" for name, share in zip(names, shares_KU[:, -1], strict=True)]
    few = len(starts_U) <= MARKS
    axes.stackplot(
        edges_E, stacked_KE, step="post", colors=colours, labels=labels, edgecolor="white", linewidth=0.8 if few else 0
    )
    if few:
        axes.vlines(starts_U, 0, 1, colors="black", linewidth=0.7, linestyles=":")
    axes.set(xlim=(0, edges_E[-1]), ylim=(0, 1), xlabel="step (dotted: an update)" if few else "step", ylabel="share")
    component, updates = mixes[0]["component"], "1 update" if len(mixes) == 1 else f"{len(mixes):,} updates"
    axes.set_title(f"Shares of the sources, by {component}: {updates}", loc="left")
    handles, shown = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1], shown[::-1], loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, title="at the end"
    )
    return figure


def largest_sources(mixes: Sequence[Line], most: int) -> tuple[list[str], NDArray[np.float64]]:
    """Returns the sources with the largest mean shares, in the order of the run, and what the others have together.

    Args:
        mixes: The U lines of the mixer.
        most: Sources that are told apart.

    Returns:
        Their names, and (K, U) shares.
    """
    names = list(dict.fromkeys(name for line in mixes for name in line["proportions"]))
    shares_KU = np.array([[float(line["proportions"].get(name) or 0.0) for line in mixes] for name in names])
    if len(names) <= most:
        return names, shares_KU
    largest = np.sort(np.argsort(-shares_KU.mean(axis=1), kind="stable")[:most])
    others_U = np.delete(shares_KU, largest, axis=0).sum(axis=0)
    return (
        [*(names[place] for place in largest), f"{len(names) - most} others"],
        np.concatenate([shares_KU[largest], others_U[None]]),
    )


def scores_figure(scored: Mapping[str, Sequence[Line]], steps: int) -> Figure:
    """Returns the scores at each update, one panel for each component.

    Args:
        scored: Component -> its lines.
        steps: Where the run ends.
    """
    figure = Figure(figsize=(9, 1.2 + 3 * len(scored)), layout="constrained")
    panels = figure.subplots(len(scored), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (title, lines) in zip(panels, scored.items(), strict=True):
        (_boxes if len(lines) <= BOXES else _bands)(axes, lines, steps)
        end = max(steps, lines[-1]["step"] + 1)
        axes.set(
            ylabel="score", xlim=(-0.05 * end if lines[0]["step"] < 0.05 * end else 0, end)
        )  # room for a whole box
        axes.set_title(title, loc="left")
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
    boxes = any(len(lines) <= BOXES for lines in scored.values())
    what = "box: first to third quartile; line: median; diamond: mean; whiskers: least and greatest"
    if any(_has_extremes(line.get("candidates")) for lines in scored.values() for line in lines):
        what += "; grey: all rows"
    panels[-1].set_xlabel(f"step ({what})" if boxes else "step")
    return figure


def _boxes(axes: Any, lines: Sequence[Line], steps: int) -> None:
    """Draws a box for each update, and a grey one beside it of all rows that were scored, where the record has it."""
    starts = np.array([line["step"] for line in lines], dtype=np.float64)
    end = max(steps, int(starts[-1]) + 1)
    width = 0.5 * min(float(np.diff([*starts, end]).min()), end / 10)
    all_rows = [line for line in lines if _has_extremes(line.get("candidates"))]
    if all_rows:
        width /= 2
        places = np.array([line["step"] for line in all_rows]) - 0.55 * width
        _draw_boxes(axes, [line["candidates"] for line in all_rows], places, width, ("#E5E5E5", "#777777"))
    shift = 0.55 * width if all_rows else 0.0
    _draw_boxes(axes, [line["scores"] for line in lines], starts + shift, width, ("#9ECAE1", COLOURS[0]))


def _draw_boxes(
    axes: Any, summaries: Sequence[Line], places: NDArray[np.float64], width: float, colours: tuple[str, str]
) -> None:
    inside, line = colours
    boxes = [
        {
            "med": scores["median"], "mean": scores["mean"], "whislo": scores["min"], "whishi": scores["max"],
            "q1": scores.get("q1", scores["median"]), "q3": scores.get("q3", scores["median"]), "fliers": [],
        }
        for scores in summaries
    ]  # fmt: skip
    axes.bxp(
        boxes, positions=places, widths=width, capwidths=0.6 * width, manage_ticks=False, showfliers=False,
        showmeans=True, patch_artist=True, boxprops={"facecolor": inside, "edgecolor": line},
        medianprops={"color": "black", "linewidth": 1.6}, whiskerprops={"color": line}, capprops={"color": line},
        meanprops={"marker": "D", "markerfacecolor": COLOURS[1], "markeredgecolor": "black", "markersize": 4},
    )  # fmt: skip


def _bands(axes: Any, lines: Sequence[Line], steps: int) -> None:
    """Draws extremes, quartiles and median over the updates, and the median of all rows that were scored."""
    starts = [line["step"] for line in lines]
    scores = {
        key: [line["scores"].get(key, line["scores"]["median"]) for line in lines]
        for key in ("min", "q1", "median", "q3", "max")
    }
    axes.fill_between(starts, scores["min"], scores["max"], color="#DEEBF7", linewidth=0, label="least to greatest")
    axes.fill_between(starts, scores["q1"], scores["q3"], color="#9ECAE1", linewidth=0, label="quartiles")
    axes.plot(starts, scores["median"], color="black", linewidth=1.2, label="median")
    all_rows = [line for line in lines if _has_extremes(line.get("candidates"))]
    if all_rows:
        medians = [line["candidates"]["median"] for line in all_rows]
        axes.plot(
            [line["step"] for line in all_rows], medians, color="#777777", linestyle="--", linewidth=1.2,
            label="median of all rows",
        )  # fmt: skip
    axes.legend(loc="best", frameon=False)


def _by_component(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """Returns title -> lines, of the components of a run that give scores, filters first."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        of = {"filter": "rows that {} kept", "select": "rows that {} chose"}.get(line["kind"], "rows that {} arranged")
        found.setdefault(f"Scores of the {of.format(line['component'])}", []).append(line)
    return found


def _has_extremes(scores: Any) -> bool:
    """Returns whether a summary has the numbers of a box; those that are not finite are null."""
    named = ("min", "median", "mean", "max")
    return isinstance(scores, Mapping) and all(isinstance(scores.get(name), int | float) for name in named)


def _short(name: str) -> str:
    """Returns a name that leaves room for the figure; a dollar sign would begin a formula."""
    return (name if len(name) <= 24 else f"{name[:21]}...").replace("$", r"\$")


def _saved(figure: Figure, path: Path) -> Path:
    with replacing(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))  # type: ignore[no-untyped-call]
    return path
