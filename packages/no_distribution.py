"""The build backend of the repository's root, which is no distribution: it stops whoever installs it.

Without it, ``pip install .`` finds no build backend, takes setuptools, and installs an empty distribution with success.
"""

from __future__ import annotations

import sys
from typing import Any, NoReturn

WAY_OUT = """\
This folder holds four distributions and is none itself -> install them, as README.md does:

    pip install -c constraints.txt {editable}"./packages/dataflex-core[llamafactory]" \
{editable}./packages/dataflex-selectors {editable}./packages/dataflex-mixers {editable}./packages/dataflex-weighters

[llamafactory] brings LLaMA-Factory, with which dataflex-cli trains; leave it out where that is there already, or where
you train from Python.
"""


def build_wheel(*_: Any, **__: Any) -> NoReturn:
    """Stops ``pip install .`` and ``pip wheel .``."""
    sys.exit(WAY_OUT.format(editable=""))


def build_editable(*_: Any, **__: Any) -> NoReturn:
    """Stops ``pip install -e .``."""
    sys.exit(WAY_OUT.format(editable="-e "))


build_sdist = build_wheel
