"""``dataflex-cli score``: the run's selector gives every row of the train dataset a score, and nothing is trained.

FILE is the YAML or JSON of a dynamic_select run, key=value overrides it; both as for train. The model is the one that
the file names, or that of resume_from_checkpoint, with its optimizer.
The scores go to output_dir/dataflex_scores.parquet, for a selector that reads them. Other files in output_dir stay as
they are.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dataflex.cli.run_file import checked_run
from dataflex.core.errors import ConfigError
from dataflex.core.plugins import load_plugin_files
from dataflex.core.registry import find
from dataflex.launch import torchrun
from dataflex.launch.packages import require_working_packages
from dataflex.run.files import SCORES

SUMMARY = "score every row with the run's selector, without training"
USAGE = "dataflex-cli score FILE [key=value ...]"


def run(argv: Sequence[str]) -> int:
    """Scores here or under torchrun. Returns the exit code."""
    spec = checked_run(argv, USAGE)
    if spec.arguments.train_type != "dynamic_select" or spec.component is None:
        raise ConfigError(f"train_type: {spec.arguments.train_type} has no selector to score with -> dynamic_select")
    target = Path(str(spec.llamafactory.get("output_dir"))) / SCORES
    if target.exists() and not torchrun.is_worker() and not spec.llamafactory.get("overwrite_output_dir"):
        raise ConfigError(f"{target} exists -> move it, or set overwrite_output_dir=true to replace it")
    if target.is_dir():
        raise ConfigError(f"{target} is a folder, and the scores are written to a file of that name -> move it away")
    require_working_packages()
    if torchrun.wanted():
        return torchrun.launch(argv, command_name="score")
    load_plugin_files(spec.arguments.plugins)
    find(spec.component.kind, spec.component.name)
    from dataflex.integrations.llamafactory import score

    path = score(spec)
    torchrun.settle()
    if path is not None:
        sys.stdout.write(f"{path}\n")
    return 0
