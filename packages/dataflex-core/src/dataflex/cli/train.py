"""``dataflex-cli train``: the whole way from a YAML to a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dataflex.config.check import check
from dataflex.config.load import read_config
from dataflex.core.errors import ConfigError
from dataflex.core.plugins import load_plugin_files
from dataflex.core.registry import find
from dataflex.launch import torchrun
from dataflex.launch.packages import require_working_packages
from dataflex.utils.logging import log_to_stderr

SUMMARY = "train as a YAML or JSON file says, with key=value overrides"
USAGE = "dataflex-cli train FILE [key=value ...]"


def run(argv: Sequence[str]) -> int:
    """Checks everything that can be known, then trains here or under torchrun. Returns the exit code."""
    if not argv:
        raise ConfigError(f"no file given -> {USAGE}")
    log_to_stderr()
    file, overrides = argv[0], list(argv[1:])
    spec = check(read_config(file, overrides), Path(file).absolute().parent)
    require_working_packages()
    if torchrun.wanted():
        return torchrun.launch(argv)
    load_plugin_files(spec.arguments.plugins)
    if spec.component is not None:
        find(
            spec.component.kind, spec.component.name
        )  # a broken or foreign component is refused before any data is read
    from dataflex.integrations.llamafactory import run as train

    train(spec)
    torchrun.settle()
    return 0
