"""The YAML of each kind of run and the README, filled in from the files in ``templates``.

A run's YAML is its own template, which explains dataflex's keys, followed by the template of its stage.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template

from dataflex.workspace.tasks import NOISE

RUNS: Mapping[str, str] = {
    "select_random": "sft",
    "select_less": "sft",
    "select_loss": "sft",
    "weight_loss": "sft",
    "static_sft": "sft",
    "mix_random": "pt",
    "mix_static": "pt",
    "static_pt": "pt",
}
"""Run -> stage, in the order to try them in."""

_DATASETS = {
    "code": "source code without docstrings",
    "docstrings": "docstrings of functions and classes",
    "prose": "the language reference and module docstrings",
    "pretrain_eval": "the three sources, held out, each row with its `source`",
    "instructions": "tasks in ten families (sums, sorting, spelling, opposites, questions about the library, ...)",
    "instructions_eval": "the same families, held out, every answer right",
    "sorting_eval": "more sorting tasks, every answer right: what `select_less.yaml` aims at; never trained on",
    "sorting_test": "sorting tasks that no run looks at: whether what was gained holds for them too",
}

_EVALUATION = {
    "select_random": "sorting_eval  # tasks of one family that are not trained on; what select_less.yaml aims at",
    "select_less": "sorting_eval  # what is aimed at: tasks of one family that are not trained on, every answer right",
}
_EVERY_FAMILY = "instructions_eval  # 100 tasks that are not trained on, every answer right"


def run_config(name: str, root: Path) -> str:
    """Returns the YAML of the run ``name`` in the workspace ``root``; every path is absolute and quoted."""
    quoted = {
        "MODEL": root / "model",
        "DATA": root / "data",
        "COMPONENTS": root / "components.yaml",
        "OUTPUT": root / "saves" / name,
    }
    values = {key: json.dumps(str(path), ensure_ascii=False) for key, path in quoted.items()}  # JSON strings are YAML
    values["EVALUATION"] = _EVALUATION.get(name, _EVERY_FAMILY)
    values["THIS"] = shlex.quote(str(root / f"{name}.yaml"))
    return _template(f"{name}.yaml").substitute(values) + _template(f"{RUNS[name]}.yaml").substitute(values)


def comparison(root: Path) -> str:
    """Returns the YAML of the comparison in the workspace ``root``."""
    output = json.dumps(str(root / "saves" / "compare"), ensure_ascii=False)
    return _template("compare.yaml").substitute(THIS=shlex.quote(str(root / "compare.yaml")), OUTPUT=output)


def readme(root: Path, datasets: Mapping[str, int], parameters: int) -> str:
    """Returns the text of the workspace's README."""
    return _template("README.md").substitute(
        STATIC=shlex.quote(str(root / "static_sft.yaml")),
        TESTED=shlex.quote(str(root / "saves" / "tested")),
        RANDOM=shlex.quote(str(root / "select_random.yaml")),
        LESS=shlex.quote(str(root / "select_less.yaml")),
        SAVED_RANDOM=shlex.quote(str(root / "saves" / "select_random")),
        COMPARISON=shlex.quote(str(root / "compare.yaml")),
        SAVED_LESS=shlex.quote(str(root / "saves" / "select_less")),
        DATASETS="\n".join(f"| `{name}` | {rows} | {_DATASETS[name]} |" for name, rows in datasets.items()),
        NOISE=f"{NOISE:.0%}",
        PARAMETERS=f"{parameters:,}",
    )


def _template(name: str) -> Template:
    return Template((files("dataflex.workspace") / "templates" / name).read_text(encoding="utf-8"))
