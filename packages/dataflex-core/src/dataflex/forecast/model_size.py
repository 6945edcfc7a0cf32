"""How many weights a model has and trains, from its configuration alone: it is made on the meta device, without memory.

Nothing is fetched: a model that is not on this machine is not known here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from dataflex.config.checks.parsed_config import names_in

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")
_LORA = ("lora", "oft")  # what trains small matrices beside the frozen ones
_RANK = 8  # LLaMA-Factory's, where none is given
_LAYERS = 2  # its freeze_trainable_layers


@dataclass(frozen=True)
class ModelSize:
    """What passes through a model cost depends on.

    Attributes:
        body: Weights that a token is multiplied with, up to the last hidden states; of experts, its own.
        head: Weights of the output layer.
        attended: Numbers of all layers together that a token's attention multiplies with each token before it.
        width: Numbers of a hidden state.
        weights: All weights.
        trained: Weights of the body that are trained and their own; adapters are counted apart.
        head_trained: Whether the output layer is trained.
        adapters: Weights of adapters.
        trainable: Numbers that are trained, all together.
        matrices: Rows and columns of each matrix that is trained.
        depth: The share of the body from the lowest trained layer on: how far a backward pass goes.
        bytes: Memory of the weights, in the type that the configuration names.
    """

    body: float
    head: float
    attended: float = 0.0
    width: int = 0
    weights: int = 0
    trained: float = 0.0
    head_trained: bool = True
    adapters: float = 0.0
    trainable: int = 0
    matrices: tuple[tuple[int, int], ...] = ()
    depth: float = 1.0
    bytes: float = 0.0


@dataclass(frozen=True)
class Known:
    """A size, or why it is not known.

    Attributes:
        size: The size; None where it is not known.
        why: Why not.
    """

    size: ModelSize | None
    why: str = ""


def model_size(path: str, keys: Mapping[str, Any]) -> Known:
    """Returns the size of a model that is on this machine.

    Args:
        path: Its folder, or a name on a hub that was fetched before.
        keys: LLaMA-Factory's, for what is trained: ``finetuning_type`` and those that belong to it.
    """
    trusted = {"trust_remote_code": keys.get("trust_remote_code") is True}
    auto: Any = AutoConfig
    try:
        config = auto.from_pretrained(path, local_files_only=True, **trusted)
    except (OSError, ValueError, ImportError, KeyError) as error:
        return Known(None, f"the configuration of {path} is not to be had here: {_line(error)}")
    text = config.get_text_config()
    for kind in (AutoModelForCausalLM, AutoModelForImageTextToText):
        made: Any = kind
        try:
            with torch.device("meta"):
                model = made.from_config(config, **trusted)
        except (ValueError, ImportError, NotImplementedError, RuntimeError, AttributeError, TypeError) as error:
            why = _line(error)
            continue
        return Known(_measured(model, text, keys))
    return Known(None, f"{path} cannot be made without its weights: {why}")


def _measured(model: torch.nn.Module, text: Any, keys: Mapping[str, Any]) -> ModelSize:
    output: Any = model.get_output_embeddings()  # type: ignore[operator]  # a model of transformers
    linear = [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not output]
    share = _active(text)
    embedded = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    of_output = set() if output is None else {id(p) for p in output.parameters()}
    body: dict[str, float] = {}  # parameter -> how much of it a token meets
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and id(parameter) not in embedded | of_output:
            body[name] = parameter.numel() * (share if ".experts." in name or parameter.ndim == 3 else 1.0)
    weights = sum(parameter.numel() for parameter in model.parameters())
    head = 0 if output is None else output.weight.numel()
    layers = max([int(found[1]) + 1 for name in body if (found := _LAYER.search(name))], default=1)
    known = text.to_dict()
    heads, width = (int(known.get(key) or 0) for key in ("num_attention_heads", "hidden_size"))
    of_head = int(known.get("head_dim") or (width // heads if heads else 0))
    common: dict[str, Any] = {
        "body": sum(body.values()), "head": float(head), "attended": float(layers * heads * of_head), "width": width,
        "weights": weights, "bytes": weights * _item_bytes(text),
    }  # fmt: skip
    method = str(keys.get("finetuning_type") or "lora")
    if method in _LORA:
        return ModelSize(**common, **_adapters(linear, keys))
    if method == "freeze":
        return ModelSize(
            **common, **_last_layers(model, body, layers, int(keys.get("freeze_trainable_layers", _LAYERS)))
        )
    matrices = tuple((p.shape[0], p.numel() // p.shape[0]) for p in model.parameters() if p.ndim > 1)
    return ModelSize(**common, trained=common["body"], trainable=weights, matrices=matrices)


def _adapters(linear: list[tuple[str, torch.nn.Linear]], keys: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a model with low-rank adapters beside its linear layers."""
    given, rank = keys.get("lora_target", "all"), int(keys.get("lora_rank") or _RANK)
    kept = _adapter_config(keys)
    if kept:
        given, rank = kept.get("target_modules", given), int(kept.get("r", rank))
    wanted = None if given in ("all", "all-linear") else set(given if isinstance(given, list) else names_in(given))
    chosen = [(n, m) for n, m in linear if wanted is None or n.rpartition(".")[2] in wanted or n in wanted]
    sides = [(rank, m.in_features) for _, m in chosen] + [(m.out_features, rank) for _, m in chosen]
    numbers = sum(one * other for one, other in sides)
    lowest = [int(found[1]) for name, _ in chosen if (found := _LAYER.search(name))]
    every = [int(found[1]) for name, _ in linear if (found := _LAYER.search(name))]
    depth = 1.0 if not lowest else 1 - min(lowest) / (max(every) + 1)
    return {
        "head_trained": False,
        "adapters": float(numbers),
        "trainable": numbers,
        "matrices": tuple(sides),
        "depth": depth,
    }


def _adapter_config(keys: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the configuration of the adapter that is trained on; nothing where a new one is made."""
    named = names_in(keys.get("adapter_name_or_path"))
    if not named or keys.get("create_new_adapter") is True:
        return {}
    try:
        found = json.loads(Path(named[-1], "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a name on a hub
        return {}
    return found if isinstance(found, dict) else {}


def _last_layers(model: torch.nn.Module, body: Mapping[str, float], layers: int, count: int) -> dict[str, Any]:
    """Returns the fields of a model whose last layers are trained, or the first ones for a ``count`` below 0."""
    first, end = (layers - count, layers) if count >= 0 else (0, -count)
    chosen = {name for name, _ in model.named_parameters() if (f := _LAYER.search(name)) and first <= int(f[1]) < end}
    own = [parameter for name, parameter in model.named_parameters() if name in chosen]
    return {
        "trained": sum(size for name, size in body.items() if name in chosen),
        "head_trained": False,
        "trainable": sum(parameter.numel() for parameter in own),
        "matrices": tuple((p.shape[0], p.numel() // p.shape[0]) for p in own if p.ndim > 1),
        "depth": (layers - max(0, first)) / layers,
    }


def _active(text: Any) -> float:
    """Returns the share of a mixture's experts that a token is sent to; 1 for a dense model."""
    known = text.to_dict()
    counts = [known.get(key) for key in ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")]
    experts = next((int(count) for count in counts if count), 0)
    chosen = int(known.get("num_experts_per_tok") or known.get("moe_topk") or 0)
    return min(1.0, chosen / experts) if experts and chosen else 1.0


def _item_bytes(config: Any) -> int:
    kind = config.to_dict().get("dtype") or config.to_dict().get("torch_dtype") or "float32"
    found = vars(torch).get(str(kind).removeprefix("torch."), torch.float32)
    return int(found.itemsize)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
