"""The page of a run inside a notebook: what ``dataflex-cli report`` writes, in a frame of its own."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataflex.core.errors import ConfigError
from dataflex.report.report_page import report_html
from dataflex.report.write import write_page

if TYPE_CHECKING:
    from transformers import Trainer

HEIGHT = 760
"""Pixels of the frame: about a screen; the page scrolls inside."""
_SANDBOX = "allow-scripts allow-downloads"  # the texts of rows are strangers': nothing of the page reaches the notebook
_BASE = '<base href="about:srcdoc">'  # else a link to a place of the page would open the notebook inside of the frame


class RunReport:
    """A page about one run or several. The last value of a notebook's cell is shown as the page itself.

    Args:
        page: The page, one HTML text that needs nothing else.
        folders: The folders that it is about.
        height: Height of the frame in a notebook, in pixels.

    Attributes:
        html: The page.
        folders: The folders that it is about.
    """

    def __init__(self, page: str, folders: list[Path], height: int = HEIGHT) -> None:
        self.html, self.folders, self._height = page, folders, height

    def save(self, path: str | Path) -> Path:
        """Writes the page to a file, or as ``dataflex_report.html`` into a folder, and returns the file's path.

        Raises:
            ConfigError: The file cannot be written.
        """
        return write_page(self.html, Path(path))

    def _repr_html_(self) -> str:
        """Returns the frame that a notebook shows."""
        page = self.html.replace("<head>", f"<head>{_BASE}", 1)
        return (
            f'<iframe title="dataflex report" sandbox="{_SANDBOX}" style="width: 100%; height: {self._height}px; '
            f'border: 0" srcdoc="{html.escape(page)}"></iframe>'
        )

    def __repr__(self) -> str:
        """Returns what a terminal shows: of which folders it is, and what to do with it."""
        return f"<report of {', '.join(map(str, self.folders))}; save(path) writes it as a page>"


def run_report(*runs: str | Path | Trainer, height: int = HEIGHT) -> RunReport:
    """Returns the page about a run, or about several side by side; a notebook shows it below the cell.

        from dataflex import run_report

        run_report("runs/less", "runs/random")

    It is made of the files in the folders as they are now: of a run that goes on, was stopped or has failed, too. It
    reads files alone and calls no other rank; where a script runs on several, one of them is enough.

    Args:
        *runs: Output folders, or trainers that ``dynamic`` has made.
        height: Height of the frame in a notebook, in pixels.

    Raises:
        ConfigError: Nothing is given, a folder is none, or it holds no run.
    """
    if not runs:
        raise ConfigError("run_report: found no run -> give it an output_dir or a trainer: run_report('runs/less')")
    folders = [_folder(run) for run in runs]
    return RunReport(report_html(folders), folders, height)


class Reported:
    """What every class of ``dynamic`` has behind the trainer's own methods."""

    def report(self, height: int = HEIGHT) -> RunReport:
        """Returns the page about this trainer's run, which a notebook shows; see :func:`run_report`."""
        trainer: Any = self
        return run_report(trainer, height=height)


def _folder(run: Any) -> Path:
    if isinstance(run, str | Path):
        return Path(run)
    from dataflex.trainer import DynamicTrainer  # here, as it imports torch: a report of folders needs none

    if isinstance(run, DynamicTrainer):
        return Path(run.output_dir)
    raise ConfigError(
        f"run_report: found {run!r:.80}, allowed: an output folder, or a trainer that dynamic() has made -> give "
        "trainer.args.output_dir"
    )
