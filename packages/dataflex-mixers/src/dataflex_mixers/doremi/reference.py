"""The reference model: token losses that the proxy is measured against."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from dataflex.core.errors import ConfigError, Problem
from dataflex.core.parameter_checks import text
from dataflex.model.autocast import autocast
from dataflex.model.label_logits import IGNORED
from dataflex.model.unwrapped import output_embeddings, pretrained_models
from dataflex.model.whole import full_shape
from dataflex.scoring import token_losses
from dataflex.scoring.model_beside import load_beside


def reference_problem(key: str, path: Any) -> Problem | None:
    """Returns a problem where ``path`` is no model on disk or only an adapter. Loads nothing."""
    problem = text(key, path)
    if problem is not None:
        return problem
    folder = Path(path)
    if "\0" in path or not folder.is_dir():
        return Problem(key, f"{path} is no folder", "train the reference model first, and give its output_dir")
    if (folder / "adapter_config.json").exists():
        way_out = "train the reference with finetuning_type: full, or merge it with llamafactory-cli export"
        return Problem(key, f"{path} holds an adapter, not a whole model", way_out)
    if not (folder / "config.json").exists():
        return Problem(key, f"{path} holds no config.json", "give the output_dir of the reference run")
    return None


class Reference:
    """A frozen model in eval mode.

    Each rank holds all of it, also under an engine that shards the proxy.

    Args:
        path: Its folder.
        like: The proxy, for the type and the vocabulary.
        accelerator: The run's accelerator, for the device and mixed precision.

    Raises:
        ConfigError: Its vocabulary is another one.
    """

    def __init__(self, path: str, like: torch.nn.Module, accelerator: Accelerator) -> None:
        types = [p.dtype for p in like.parameters() if p.is_floating_point()]
        dtype = types[0] if types else torch.float32
        found = load_beside("reference_model", path, None, "train the reference model again")
        self._accelerator = accelerator
        self.model: torch.nn.Module = found.to(accelerator.device, dtype).eval().requires_grad_(False)
        mine, theirs = _vocabulary(self.model), _vocabulary(like)
        if mine is not None and theirs is not None and mine != theirs:
            raise ConfigError(
                f"the reference model {path} has {mine} output tokens, the model that is trained {theirs} -> train "
                "both with the same tokenizer"
            )

    @torch.no_grad()
    def losses(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Returns the token losses of a batch, (B, T) float32, aligned as the training's: at t, of token t + 1.

        Args:
            inputs: The training batch with ``labels``.
        """
        given = {key: value for key, value in inputs.items() if key != "labels"}
        with autocast(self._accelerator):
            logits_BTV = self.model(**given, use_cache=False, return_dict=True)["logits"]
        targets_BT = torch.nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORED).to(logits_BTV.device)
        return token_losses(logits_BTV.flatten(0, 1), targets_BT.flatten()).view(targets_BT.shape)


def _vocabulary(model: torch.nn.Module) -> int | None:
    layer = output_embeddings(pretrained_models(model))
    weight = getattr(layer, "weight", None)  # the output layer may be any module
    return None if weight is None else int(full_shape(weight)[0])
