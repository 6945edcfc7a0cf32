"""Puts the outcomes of several runs of the sweep together; what a later file says of a cell counts.

python -m tests.models.merge --out ALL.json FIRST.json SECOND.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tests.models.report import write


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outcomes", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    merged = json.loads(given.outcomes[0].read_text(encoding="utf-8"))
    for file in given.outcomes[1:]:
        for name, found in json.loads(file.read_text(encoding="utf-8"))["classes"].items():
            before = merged["classes"].get(name, {}).get("cells", {})
            merged["classes"][name] = {**found, "cells": before | found["cells"]}
    write(merged, given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
