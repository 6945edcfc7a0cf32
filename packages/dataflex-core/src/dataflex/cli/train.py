"""``dataflex-cli train``: the whole way from a YAML to a trained model.

--quiet leaves out the INFO lines of LLaMA-Factory and of the libraries under it, wherever it stands. Their warnings and
errors, progress bars, losses and the lines of dataflex stay. DATAFLEX_VERBOSITY=warning does the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from dataflex.cli.run_file import checked_run
from dataflex.config.known_keys import handed_on
from dataflex.core import sigterm
from dataflex.core.verbosity import asked
from dataflex.discovery.component_classes import find
from dataflex.discovery.plugins import load_plugin_files
from dataflex.launch import next_trainer, torchrun
from dataflex.launch.packages import require_llamafactory, require_working_packages

SUMMARY = "train as a YAML or JSON file says, with key=value overrides"
USAGE = "dataflex-cli train FILE [--quiet] [key=value ...]"


def run(argv: Sequence[str]) -> int:
    """Checks everything that can be known, then trains here or under torchrun. Returns the exit code."""
    require_llamafactory("train")
    spec = checked_run(argv, USAGE)
    require_working_packages()
    if handed_on(spec.arguments.train_type):
        return next_trainer.train(spec.llamafactory, asked(argv))
    torchrun.follow_launcher()
    if torchrun.wanted():
        return torchrun.launch(argv, stops_itself=spec.arguments.train_type != "static")
    load_plugin_files(spec.arguments.plugins)
    for part in spec.axes:  # a broken or foreign component is refused before any data is read
        find(part.component.kind, part.component.name)
    from dataflex.integrations.llamafactory.entry import run as train
    from dataflex.run.whereabouts import saying_where

    try:
        with sigterm.allowed(), saying_where(spec.llamafactory.get("output_dir")):
            train(spec, asked(argv))
    finally:
        torchrun.settle()
    return 0
