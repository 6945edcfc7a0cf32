"""Runs the commands of the tutorials, made short, one after the other in one process: LLaMA-Factory is imported once.

``python tutorial_commands.py JOBS RESULTS``: JOBS is a JSON file with a list of [page, kind, text]; ``kind`` is
``command``, ``python``, ``save:FILE`` or ``add:FILE``. RESULTS gets a JSON list of [page, text, exit code, output].
"""

from __future__ import annotations

import gc
import json
import os
import shlex
import sys
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from dataflex.cli.main import run
from shortened_tutorials import shortened, shrink


def done(kind: str, text: str) -> int:
    """Does one thing that a reader of the page does, and returns its exit code."""
    action, _, file = kind.partition(":")
    if action == "save":
        Path(file).write_text(text, encoding="utf-8")
    elif action == "add":
        with Path(file).open("a", encoding="utf-8") as written:
            written.write(text)
    elif action == "python":
        exec(compile(text, "tutorial", "exec"), {"__name__": "__tutorial__"})
    else:
        program, *arguments = shlex.split(text)
        assert program == "dataflex-cli", text
        code = run(shortened(arguments))
        if arguments[0] == "init":
            shrink(Path(arguments[1]))
        return code
    return 0


def heard(kind: str, text: str) -> tuple[int, str]:
    """Returns the exit code and all that was written to stdout and stderr, also below Python."""
    kept = [os.dup(1), os.dup(2)]
    with TemporaryFile() as file:
        try:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
            code = done(kind, text)  # what it raises ends the process, and the test shows it
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            for stream, place in zip((1, 2), kept, strict=True):
                os.dup2(place, stream)
                os.close(place)
        file.seek(0)
        return code, file.read().decode("utf-8", errors="replace")


def main(jobs: Path, results: Path) -> None:
    """Runs all jobs in the working directory."""
    found: list[Any] = []
    imported = 0
    for page, kind, text in json.loads(jobs.read_text(encoding="utf-8")):
        found.append([page, text, *heard(kind, text)])
        if len(sys.modules) > imported:  # each training collects garbage, and need not look at what is imported
            gc.collect()
            gc.freeze()
            imported = len(sys.modules)
        results.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
