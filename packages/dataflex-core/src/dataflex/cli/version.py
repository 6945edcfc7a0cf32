"""``dataflex-cli version``: versions of dataflex and of what it runs on.

Read from metadata: nothing is imported. Put the output into every report of a problem.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence

from dataflex.core import registry
from dataflex.core.errors import ConfigError
from dataflex.core.kinds import KINDS
from dataflex.discovery.installed import has_package, version_of

SUMMARY = "print the versions of dataflex and of what it runs on"
USAGE = "dataflex-cli version"
BELOW = ("llamafactory", "transformers", "torch", "torchaudio")


def run(argv: Sequence[str]) -> int:
    """Prints one package per line. Returns the exit code."""
    if argv:
        raise ConfigError(f"unexpected argument '{argv[0]}' -> {USAGE}")
    installed = {p.dist.name: p.dist.version for kind in KINDS for p in registry.provided(kind) if p.dist is not None}
    versions = {"dataflex-core": _version("dataflex-core"), **dict(sorted(installed.items()))}
    versions |= {package: _version(package) for package in BELOW} | {"python": platform.python_version()}
    width = max(map(len, versions))
    sys.stdout.write("".join(f"{package:<{width}}  {number}\n" for package, number in versions.items()))
    return 0


def _version(package: str) -> str:
    return version_of(package) or ("there, but says no version" if has_package(package) else "not installed")
