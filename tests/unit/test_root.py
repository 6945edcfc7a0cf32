"""The root of the repository is no distribution, and says so to whoever installs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOOKS = ("build_wheel", "build_sdist", "build_editable")


def called(hook: str) -> subprocess.CompletedProcess[str]:
    """Calls a hook as an installer does: in a process of its own, in the root, the backend on its path."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]
    assert settings["requires"] == [], "an installer would look for them before it asks"
    (folder,) = settings["backend-path"]
    code = f"import {settings['build-backend']} as backend; backend.{hook}('wheels', None)"
    environ = {**os.environ, "PYTHONPATH": str(ROOT / folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environ, check=False
    )


@pytest.mark.parametrize("hook", HOOKS)
def test_installing_the_root_stops_with_the_line_that_installs_the_four(hook):
    done = called(hook)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "none itself -> install them, as README.md does" in done.stderr
    named = re.findall(r"(\./packages/[\w-]+)", done.stderr)
    assert sorted(named) == sorted(
        f"./{path.parent.relative_to(ROOT)}" for path in ROOT.glob("packages/*/pyproject.toml")
    )
    assert all(path in (ROOT / "README.md").read_text(encoding="utf-8") for path in named)
    assert len(re.findall(r'-e "?\./', done.stderr)) == (4 if hook == "build_editable" else 0)
    assert '"./packages/dataflex-core[llamafactory]"' in done.stderr
