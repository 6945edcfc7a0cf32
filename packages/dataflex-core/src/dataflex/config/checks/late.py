"""What LLaMA-Factory finds late, or ends in a traceback at, in a run of any type: folders, and keys that do not fit."""

from __future__ import annotations

from pathlib import Path

from dataflex.config.checks.parsed_config import Draft, expanded, named_checkpoint, names_in
from dataflex.core.errors import Problem

_BITS = {"bnb": (4, 8), "hqq": (1, 2, 3, 4, 5, 6, 8), "eetq": (8,)}
"""``quantization_method`` -> the bits that it has."""


def late_problems(draft: Draft) -> list[Problem]:
    """Returns what is wrong with the folders of a run, and with keys of LLaMA-Factory beside each other."""
    return [*_output(draft), *_checkpoint(draft), *_bits(draft), *_modules(draft), *_predicting(draft)]


def _output(draft: Draft) -> list[Problem]:
    value = draft.theirs.get("output_dir")
    if not isinstance(value, str) or not value:
        return []
    path = expanded(value).absolute()
    file = next((place for place in (path, *path.parents) if place.exists()), path)
    if not file.exists() or file.is_dir():
        return []
    what = f"{value} is a file" if file == path else f"{value} lies under {file}, which is a file"
    return [Problem("output_dir", what, "name a folder")]


def _checkpoint(draft: Draft) -> list[Problem]:
    value = named_checkpoint(draft.theirs.get("resume_from_checkpoint"))
    if not isinstance(value, str) or not draft.on("do_train"):
        return []
    if Path(value).is_dir():
        return []
    found = "is no folder" if Path(value).exists() else f"does not exist (looked from {Path.cwd()})"
    way_out = "give the folder of a checkpoint, or true for the newest one of output_dir"
    return [Problem("resume_from_checkpoint", f"{value} {found}", way_out)]


def _bits(draft: Draft) -> list[Problem]:
    method, bits = draft.theirs.get("quantization_method") or "bnb", draft.theirs.get("quantization_bit")
    allowed = _BITS.get(str(method))
    if bits is None or allowed is None or bits in allowed:
        return []
    shown = " | ".join(map(str, allowed))
    way_out = f"write {min(allowed, key=lambda each: abs(each - draft.number('quantization_bit', 0)))}"
    what = f"found {bits!r}, allowed with quantization_method: {method}: {shown}"
    return [Problem("quantization_bit", what, way_out)]


def _modules(draft: Draft) -> list[Problem]:
    value = draft.theirs.get("lora_target", "all")
    if draft.theirs.get("finetuning_type", "lora") != "lora" or names_in(value) or not draft.on("do_train"):
        return []
    return [
        Problem("lora_target", f"found {value!r}, allowed: names of modules, or all", "write all, or remove the key")
    ]


def _predicting(draft: Draft) -> list[Problem]:
    if not draft.on("predict_with_generate") or draft.stage == "sft":
        return []
    what = f"is true, and stage: {draft.stage} generates nothing"
    return [Problem("predict_with_generate", what, "set it to false, or use stage: sft")]
