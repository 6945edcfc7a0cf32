"""``dataflex-cli score``: the run's selector gives every row of the train dataset a score, and nothing is trained.

FILE is the YAML or JSON of a dynamic_select run, key=value overrides it; both as for train. The first line says which
weights score: those of the checkpoint that resume_from_checkpoint names, else of the newest one in output_dir, with its
optimizer; where there is none, the model that the file names, as it is.
The scores go to output_dir/dataflex_scores.parquet, for a selector that reads them. --overwrite replaces that file.
Other files in output_dir stay as they are, whatever overwrite_output_dir says. --quiet is as for train.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dataflex.cli.run_file import checked_run
from dataflex.core import sigterm
from dataflex.core.errors import ConfigError
from dataflex.core.files import SCORES
from dataflex.core.verbosity import asked
from dataflex.discovery.component_classes import find
from dataflex.discovery.plugins import load_plugin_files
from dataflex.launch import torchrun
from dataflex.launch.packages import require_llamafactory, require_working_packages
from dataflex.run.scoring_weights import scoring_weights

SUMMARY = "score every row with the run's selector, without training"
USAGE = "dataflex-cli score FILE [--overwrite] [--quiet] [key=value ...]"
OVERWRITE = "--overwrite"


def run(argv: Sequence[str]) -> int:
    """Scores here or under torchrun. Returns the exit code."""
    require_llamafactory("score")
    overwrites = OVERWRITE in argv
    spec = checked_run([argument for argument in argv if argument != OVERWRITE], USAGE, trains=False)
    if spec.arguments.train_type != "dynamic_select" or spec.component is None:
        what = f"train_type: {spec.arguments.train_type}: score takes the selector of train_type: dynamic_select alone"
        raise ConfigError(f"{what} -> write component_name: NAME and train_type: dynamic_select")
    target = Path(str(spec.llamafactory.get("output_dir"))) / SCORES
    if target.is_file() and not overwrites:
        raise ConfigError(f"{target} exists -> move it, or replace it with {OVERWRITE}")
    if target.exists() and not target.is_file():
        raise ConfigError(f"{target} is a folder, and the scores are written to a file of that name -> move it away")
    require_working_packages()
    weights = scoring_weights(spec)
    if not torchrun.is_worker():
        sys.stdout.write(f"scoring with {weights}\n")
        sys.stdout.flush()
    if torchrun.wanted():
        return torchrun.launch(argv, command_name="score", stops_itself=True)
    torchrun.follow_launcher()
    load_plugin_files(spec.arguments.plugins)
    find(spec.component.kind, spec.component.name)
    from dataflex.integrations.llamafactory.entry import score

    try:
        with sigterm.allowed():
            path = score(spec, weights, asked(argv))
    finally:
        torchrun.settle()
    if path is not None:
        sys.stdout.write(f"{path}\n")
    return 0
