"""``dataflex-cli init``: a workspace to try everything in, with no download."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

SUMMARY = "make a small workspace (data, model, one YAML per kind of run) with no download"
USAGE = "dataflex-cli init DIR [--seed N]"


def run(argv: Sequence[str]) -> int:
    """Makes the workspace, says what it holds and what to run next. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="dataflex-cli init", description=f"{SUMMARY[0].upper()}{SUMMARY[1:]}.")
    parser.add_argument("directory", metavar="DIR", help="where to; missing or empty")
    parser.add_argument("--seed", type=int, default=42, help="seed of the text drawn, the tasks and the model")
    arguments = parser.parse_args(argv)

    from dataflex.workspace import create  # here, because other commands have no use for it

    made = create(arguments.directory, seed=arguments.seed, report=lambda stage: _say(f"... {stage}"))
    rows = ", ".join(f"{name} {count}" for name, count in made.datasets.items())
    _say(f"Made {made.directory}")
    _say(f"  data/            rows: {rows}")
    _say(f"  model/           a Qwen2 of {made.parameters:,} parameters and its tokenizer")
    _say("  components.yaml  every installed component with its parameters")
    _say(f"  runs             {', '.join(path.name for path in made.runs)}")
    _say("  README.md        what each is and where to look after a run")
    _say(f"Next: dataflex-cli train {shlex.quote(str(made.runs[0]))}")
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
