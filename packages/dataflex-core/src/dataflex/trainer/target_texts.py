"""The texts of the target rows that explanations name, in ``dataflex_rows.jsonl``.

The one place that writes them: the record of rows takes it over, see :class:`dataflex.trainer.explanations`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from dataflex.core.files import ROWS, replacing
from dataflex.trainer.host import Host
from dataflex.utils.secret_values import scrubbed

CHARACTERS = 2000
"""Characters of a text, at most."""
_VERSION = 1


class TargetTexts:
    """Writes each target row once. On a rank that does not write, and without a tokenizer, it does nothing.

    Args:
        trainer: The trainer, with the run's tokenizer.
    """

    def __init__(self, trainer: Host) -> None:
        self._trainer = trainer
        self._path = Path(trainer.output_dir) / ROWS
        self._known: set[tuple[str, int]] = set()
        self._open = False

    def begin(self) -> None:
        """Forgets which rows are written, and deletes the file of another run. Called on rank 0, when one begins."""
        self._known, self._open = set(), False
        lines = _read(self._path)
        if lines and "run" in lines[0] and lines[0]["run"] != self._trainer.run_id:
            self._path.unlink()

    def add(self, targets: Mapping[tuple[str, int], Sequence[int]]) -> None:
        """Writes the target rows that are not there yet.

        Args:
            targets: (set, target row) -> its token ids.
        """
        tokenizer = self._trainer.processing_class
        if not self._trainer.is_world_process_zero() or not isinstance(tokenizer, PreTrainedTokenizerBase):
            return
        if not self._open and targets:
            self._go_on()
        lines = []
        for key in sorted(targets.keys() - self._known):
            text = str(tokenizer.decode(list(targets[key]), skip_special_tokens=True))
            line = {"set": key[0], "target": key[1], "tokens": len(targets[key]), "text": text[:CHARACTERS]}
            lines.append(line | {"cut": len(text) > CHARACTERS})
        self._known |= targets.keys()
        if lines:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(scrubbed("".join(json.dumps(line) + "\n" for line in lines)))

    def _go_on(self) -> None:
        """Goes on with the file of the same run, or begins it."""
        self._open = True
        rows = len(self._trainer.train_dataset)
        header = {"version": _VERSION, "run": self._trainer.run_id, "rows": rows, "characters": CHARACTERS}
        lines = _read(self._path)
        if lines and lines[0] == header:
            self._known = {(line["set"], line["target"]) for line in lines[1:] if "set" in line}
        else:
            lines = [header]
        with replacing(self._path) as temporary:  # without a line that was cut off
            temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _read(path: Path) -> list[dict[str, Any]]:
    """Returns the lines up to the first that cannot be read."""
    found: list[dict[str, Any]] = []
    content = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for text in content[:-1]:
        try:
            line = json.loads(text.decode("utf-8"))
        except (ValueError, RecursionError):
            break
        if not isinstance(line, dict):
            break
        found.append(line)
    return found
