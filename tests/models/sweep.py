"""Every causal model class of the installed transformers, tried: `nox -s models` runs it.

    python -m tests.models.sweep --json FILE [--only gemma2,mixtral] [--what losses,lora,full]

Each class has a process of its own, so that a crash or a hang is an outcome and not the end.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from datetime import date
from pathlib import Path
from typing import Any

from tests.models.report import write

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

SECONDS = 240
"""Most seconds of a class; one that needs more hangs."""

WHAT = ("losses", "chunked", "weighter", "weighter_chunked", "hidden", "states", "lora", "full")
EXACT, REFUSED, NOT_BUILT, DEFECT = "exact", "refused", "not built", "defect"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the outcomes are written; read and completed with --keep")
    parser.add_argument("--keep", action="store_true", help="keep what the file says of others")
    parser.add_argument("--only", default="", help="model types, with commas")
    parser.add_argument("--what", default=",".join(WHAT), help="cells, with commas")
    parser.add_argument("--trace", action="store_true", help="print tracebacks")
    given = parser.parse_args()
    only, what = set(filter(None, given.only.split(","))), given.what.split(",")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.models.one"])
    found: dict[str, Any] = {}
    if given.keep and given.json.exists():
        found = json.loads(given.json.read_text(encoding="utf-8"))["classes"]
    for model_type, class_name, group in _classes(context):
        if only and model_type not in only:
            continue
        outcome = _tried(context, model_type, class_name, group, what, given.trace)
        name = f"{model_type} {class_name}"
        before = found.get(name, {}).get("cells", {})
        found[name] = {**outcome, "cells": before | outcome["cells"], "group": group}
        print(_line(model_type, class_name, outcome), flush=True)
        if given.json:
            report = {"date": date.today().isoformat(), "versions": _versions(), "classes": found}
            write(report, given.json)
    defects = [name for name, outcome in found.items() if _is_defect(outcome)]
    print(f"{len(found)} classes, {len(defects)} with a defect: {', '.join(defects) or 'none'}")
    return int(bool(defects))


def _classes(context: Any) -> list[tuple[str, str, str]]:
    with context.Pool(1) as pool:
        found: list[tuple[str, str, str]] = pool.apply(_listed)
    return found


def _listed() -> list[tuple[str, str, str]]:
    from tests.models.classes import every_class

    return [(one.model_type, one.class_name, one.group) for one in every_class()]


def _tried(context: Any, model_type: str, class_name: str, group: str, what: list[str], trace: bool) -> dict[str, Any]:
    from tests.models.one import try_class

    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=try_class, args=(model_type, class_name, group, what, trace, send), daemon=True)
    process.start()
    send.close()
    outcome: dict[str, Any] = {"built": "", "cells": {}}
    try:
        while receive.poll(SECONDS):
            place, value = receive.recv()
            if place == "built":
                outcome["built"] = value
            else:
                outcome["cells"][place] = value
        process.kill()
        outcome["built" if not outcome["cells"] else "ended"] = f"took more than {SECONDS} s"
    except EOFError:
        process.join()
        if process.exitcode:
            outcome["built" if not outcome["cells"] else "ended"] = f"the process ended with {process.exitcode}"
    return outcome


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("transformers", "torch", "peft")}


def _is_defect(outcome: dict[str, Any]) -> bool:
    return "ended" in outcome or any(cell["outcome"] == DEFECT for cell in outcome["cells"].values())


def _line(model_type: str, class_name: str, outcome: dict[str, Any]) -> str:
    if outcome["built"]:
        return f"{model_type} {class_name}: not built: {outcome['built']}"
    cells = [
        f"{place}={cell['outcome']}" + (f" ({cell['detail']})" if cell["detail"] else "")
        for place, cell in outcome["cells"].items()
    ]
    return f"{model_type} {class_name}: {' '.join(cells)} {outcome.get('ended', '')}"


if __name__ == "__main__":
    sys.exit(main())
