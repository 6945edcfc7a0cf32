"""Makes a workspace: data first, then a model with a tokenizer of that data, then the configurations that use both."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataflex.core.errors import ConfigError
from dataflex.workspace.configs import RUNS, comparison, readme, run_config
from dataflex.workspace.corpus import write_data
from dataflex.workspace.example_presets import packaged_components
from dataflex.workspace.library_text import SOURCES, harvest
from dataflex.workspace.small_model import write_model

SEED = 42

_PATTERNS = ("${", "[", "*", "::")  # OmegaConf's variables; globs and chained addresses of the datasets library


@dataclass(frozen=True)
class Workspace:
    """What was made.

    Attributes:
        directory: The workspace, absolute.
        datasets: Dataset -> rows.
        parameters: Parameters of the model.
        runs: One YAML per kind of run, in the order to try them in; the second is the selector that beats the first.
    """

    directory: Path
    datasets: dict[str, int]
    parameters: int
    runs: tuple[Path, ...]

    @property
    def first_commands(self) -> list[list[str]]:
        """What to try first: train a baseline, train a selector, compare the two."""
        baseline, selector = self.runs[:2]
        folders = [str(self.directory / "saves" / run.stem) for run in (baseline, selector)]
        program = "dataflex-cli"
        return [[program, "train", str(baseline)], [program, "train", str(selector)], [program, "compare", *folders]]


def create(directory: str | Path, *, seed: int = SEED, report: Callable[[str], None] = lambda stage: None) -> Workspace:
    """Writes a workspace. The same interpreter, libraries and seed give the same data and model.

    Args:
        directory: Where to; it must be missing or empty, for nothing is ever written over.
        seed: Seed of the drawn text, the tasks and the model.
        report: Told each stage before it begins, as one line.

    Raises:
        ConfigError: The directory cannot be used, or Python lacks the sources of its standard library.
    """
    root = _usable(Path(directory))
    data, model = root / "data", root / "model"
    for folder in (data, model):
        folder.mkdir(parents=True)

    report("reading the standard library")
    rows = write_data(data, harvest(), seed)
    datasets = {name: len(content) for name, content in rows.items()}

    report("training a tokenizer and building a tiny model (this imports transformers)")
    parameters = write_model(model, _training_texts(rows), seed)

    report("writing the configurations")
    (root / "components.yaml").write_text(packaged_components(), encoding="utf-8")
    runs = []
    for name in RUNS:
        runs.append(root / f"{name}.yaml")
        runs[-1].write_text(run_config(name, root), encoding="utf-8")
    (root / "compare.yaml").write_text(comparison(root), encoding="utf-8")
    (root / "README.md").write_text(readme(root, datasets, parameters), encoding="utf-8")
    return Workspace(root, datasets, parameters, tuple(runs))


def _training_texts(rows: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Returns what a run trains on, so that the tokenizer knows its words."""
    texts = [row["text"] for name in SOURCES for row in rows[name]]
    for row in rows["instructions"]:
        texts.append(f"Human: {row['instruction']}\n{row['input']}\nAssistant:{row['output']}\n")
    return texts


def _usable(directory: Path) -> Path:
    """Returns the absolute directory, or says why no workspace can be there."""
    root = Path(os.path.expanduser(directory)).absolute()
    for mark in filter(str(root).__contains__, _PATTERNS):
        raise ConfigError(f"{root}: LLaMA-Factory reads '{mark}' as a pattern, not a path -> choose another directory")
    try:
        if root.exists() and not root.is_dir():
            raise ConfigError(f"{root}: this is a file -> name a directory that does not exist yet or is empty")
        if root.is_dir() and any(root.iterdir()):
            raise ConfigError(
                f"{root}: the directory is not empty, and a workspace never writes over files -> name a directory that "
                "does not exist yet or is empty"
            )
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{root}: the directory cannot be made or read: {error.strerror}") from error
    return root
