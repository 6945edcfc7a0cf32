"""LLaMA-Factory's next trainer (``USE_V1=1``), which a static run is handed on to.

It is a loop of its own with keys of its own. ``llamafactory-cli`` chooses it by the same variable, so that program is
what runs, with a file that holds the run's keys without dataflex's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from dataflex.core.verbosity import Verbosity
from dataflex.launch import torchrun
from dataflex.launch.supervised import supervised

PROGRAM = "llamafactory.cli"
WORKER = "llamafactory.v1.launcher"  # what its own launcher has torchrun start
THEIR_VERBOSITY = "LLAMAFACTORY_VERBOSITY"


def train(keys: Mapping[str, Any], verbosity: Verbosity) -> int:
    """Trains as ``llamafactory-cli train`` would. Returns its exit code.

    Args:
        keys: The run's keys without dataflex's, overrides applied. Their file is readable by this user alone, and is
            removed afterwards.
        verbosity: How much it says; below INFO, that program is told through a variable of its own.
    """
    environ = dict(os.environ)
    if verbosity.libraries:
        environ.setdefault(THEIR_VERBOSITY, verbosity.name.upper())
    program = WORKER if torchrun.is_worker() else PROGRAM
    with TemporaryDirectory(prefix="dataflex-") as folder:
        file = Path(folder) / "run.yaml"
        file.write_text(yaml.safe_dump(dict(keys), allow_unicode=True, sort_keys=False), encoding="utf-8")
        return supervised([sys.executable, "-m", program, "train", str(file)], environ)
