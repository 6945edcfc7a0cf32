"""Which weights ``dataflex-cli score`` scores with: said before it starts, loaded then, and written into the file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from dataflex.config.checks.parsed_config import named_checkpoint
from dataflex.config.resolved import recorded_run
from dataflex.config.spec import RunSpec
from dataflex.core.errors import ConfigError
from dataflex.run.newest import newest_of_run, newest_to_resume
from dataflex.utils.secret_values import masked

_WHOLE = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_MODELS = ("adapter_model.safetensors", "adapter_model.bin", *_WHOLE)  # what training saves at its end


@dataclass(frozen=True)
class ScoringWeights:
    """The weights.

    Attributes:
        model: ``model_name_or_path``.
        adapter: ``adapter_name_or_path``, if any.
        checkpoint: The checkpoint whose weights are loaded over them, if any.
        folder: ``output_dir``, where a checkpoint was looked for; None where none was.
    """

    model: str
    adapter: str | None
    checkpoint: str | None
    folder: str | None = None

    @classmethod
    def of(cls, spec: RunSpec, checkpoint: str | None, folder: str | None = None) -> ScoringWeights:
        """Returns the weights of a run's model, with those of a checkpoint over them where there is one."""
        keys = masked(spec.llamafactory)
        adapter = keys.get("adapter_name_or_path")
        if isinstance(adapter, list | tuple):
            adapter = ", ".join(map(str, adapter))
        return cls(str(keys.get("model_name_or_path")), str(adapter) if adapter else None, checkpoint, folder)

    def __str__(self) -> str:
        """Returns what the command says first."""
        base = f"the model {self.model}" + (f" and the adapter {self.adapter}" if self.adapter else "")
        if self.checkpoint is not None:
            return f"the checkpoint {self.checkpoint} of {base}"
        return f"{base} as it is" + (f": {self.folder} holds no checkpoint" if self.folder else "")

    def about(self) -> dict[str, Any]:
        """Returns what the file of scores says of them."""
        return {"model": self.model, "adapter": self.adapter, "checkpoint": self.checkpoint}


def scoring_weights(spec: RunSpec) -> ScoringWeights:
    """Returns the weights that a run is scored with. Loads nothing.

    ``overwrite_output_dir`` says that training begins anew; nothing is trained here, so it changes nothing.

    Raises:
        ConfigError: ``resume_from_checkpoint: true``, and there is no checkpoint; the record there is unreadable;
            or the folder holds a trained model and no checkpoint, and the run does not say which is meant.
    """
    given = named_checkpoint(spec.llamafactory.get("resume_from_checkpoint"))
    folder = str(spec.llamafactory.get("output_dir"))
    checkpoint: str | None = None
    if given is True:
        checkpoint = newest_to_resume(folder, recorded_run(folder))
    elif given is None:
        checkpoint = newest_of_run(folder) if os.path.isdir(folder) else None
        if checkpoint is None and os.path.abspath(folder) not in _named(spec):
            _require_no_model(folder)
    elif isinstance(given, str):
        checkpoint = given
    return ScoringWeights.of(spec, checkpoint, folder if given is None else None)


def _named(spec: RunSpec) -> set[str]:
    """Returns the folders that the run takes weights from."""
    keys = [spec.llamafactory.get(key) for key in ("model_name_or_path", "adapter_name_or_path")]
    texts = [str(part) for key in keys for part in (key if isinstance(key, list | tuple) else [key or ""])]
    return {os.path.abspath(part.strip()) for text in texts for part in text.split(",") if part.strip()}


def _require_no_model(folder: str) -> None:
    trained = [name for name in _MODELS if os.path.isfile(os.path.join(folder, name))]
    if trained:
        raise ConfigError(
            f"output_dir: {folder} holds a trained model ({trained[0]}) and no checkpoint, so it is not clear which "
            f"weights are to score -> adapter_name_or_path={folder} for a trained adapter, model_name_or_path={folder} "
            "for a whole model, resume_from_checkpoint=false for the model as it was before"
        )
