"""Tiny models that stand in for those that LLaMA-Factory's examples name: of the same class, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from dataflex.testing import tiny_tokenizer

SPARE = 64
"""Rows of the embedding behind the tokenizer's own: templates of LLaMA-Factory add tokens."""

_SHAPE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_VISION_TOKENS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]

FAMILIES = {
    "qwen3-vl": ("Qwen3-VL-4B",),
    "qwen3": ("Qwen3-4B",),
    "qwen2": ("Qwen2-1.5B", "Qwen2.5-0.5B", "Qwen2.5-7B"),
    "llama": ("Llama-3-8B", "Llama-2-7b", "Llama-3.1-8B", "Llama-3.2-1B", "llama3-8b-pro"),
}
"""Family -> parts of the names of its models."""


def family(model: str) -> str | None:
    """Returns the family of a model's name; None where there is no stand-in."""
    for name, parts in FAMILIES.items():
        if any(part in model for part in parts):
            return name
    return None


def write(folder: Path) -> dict[str, Path]:
    """Writes a model of each family with its tokenizer. Returns family -> folder."""
    found = {}
    for name in FAMILIES:
        found[name] = folder / name
        _write_vision(found[name]) if name == "qwen3-vl" else _write_text(name, found[name])
    return found


def _write_text(name: str, folder: Path) -> None:
    kinds: dict[str, tuple[Any, Any]] = {
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    }
    config, model = kinds[name]
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    model(config(vocab_size=len(tokenizer) + SPARE, tie_word_embeddings=False, **_SHAPE)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _write_vision(folder: Path) -> None:
    """A Qwen3-VL: its processor cuts images into patches of 16 points and puts a token for each 4 of them."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": _VISION_TOKENS})
    ids = dict(zip(_VISION_TOKENS, tokenizer.convert_tokens_to_ids(_VISION_TOKENS), strict=True))
    text = _SHAPE | {
        "vocab_size": len(tokenizer) + SPARE,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0},
    }
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32,
        "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1], "patch_size": 16, "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }  # fmt: skip
    untyped: Any = transformers
    config = untyped.Qwen3VLConfig(
        text_config=text, vision_config=vision, image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"], vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"], tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    untyped.Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    points = {"size": {"shortest_edge": 1024, "longest_edge": 16384}, "patch_size": 16, "merge_size": 2}
    processor = untyped.Qwen3VLProcessor(
        image_processor=untyped.Qwen2VLImageProcessor(**points),
        tokenizer=tokenizer,
        video_processor=untyped.Qwen3VLVideoProcessor(**points),
        chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}",
    )
    processor.save_pretrained(folder)
