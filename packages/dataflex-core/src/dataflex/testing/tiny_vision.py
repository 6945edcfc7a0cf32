"""A model of images and text small enough to be built inside a test, its processor, and rows in LLaMA-Factory's form.

The model is a Qwen2-VL: its processor cuts an image into patches of 8 by 8 points, and each 4 of them are one token.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from dataflex.testing.devices import device
from dataflex.testing.tiny_models import tiny_tokenizer

SPARE_TOKENS = 64
"""Rows of the embedding behind the tokenizer's own: templates of LLaMA-Factory add tokens."""

VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_UNTYPED: Any = transformers  # its constructors are untyped, and some of these classes are found by name alone
_POINTS = {"size": {"shortest_edge": 256, "longest_edge": 4096}, "patch_size": 8, "merge_size": 2}
_WORDS = ("red", "green", "blue", "square", "bright", "dark", "wide", "tall")


def tiny_vision_processor() -> Any:
    """Returns a Qwen2-VL processor with the tokenizer of :func:`~dataflex.testing.tiny_tokenizer`.

    An image has at least 256 and at most 4,096 points, so 1 to 16 tokens.
    """
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(VISION_TOKENS)})
    return _UNTYPED.Qwen2VLProcessor(
        image_processor=_UNTYPED.Qwen2VLImageProcessor(**_POINTS),
        tokenizer=tokenizer,
        video_processor=_UNTYPED.Qwen2VLVideoProcessor(**_POINTS),
        chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}",
    )


def tiny_vision_model(processor: Any = None, layers: int = 2, seed: int = 0) -> PreTrainedModel:
    """Returns a randomly initialised fp32 Qwen2-VL on :func:`~dataflex.testing.device`.

    The global random state is left as it was.

    Args:
        processor: What reads the rows; None for that of :func:`tiny_vision_processor`.
        layers: Decoder layers; the vision tower has 2 blocks.
        seed: Seed of the weights.
    """
    tokenizer = (tiny_vision_processor() if processor is None else processor).tokenizer
    start, end, image, video = (int(token) for token in tokenizer.convert_tokens_to_ids(list(VISION_TOKENS)))
    text = {
        "vocab_size": len(tokenizer) + SPARE_TOKENS, "hidden_size": 32, "intermediate_size": 64, "pad_token_id": 0,
        "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1,
        "max_position_embeddings": 2048, "eos_token_id": 2, "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0},
    }  # fmt: skip
    vision = {
        "depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": 8,
        "spatial_merge_size": 2, "temporal_patch_size": 2,
    }  # fmt: skip
    config = _UNTYPED.Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=image, video_token_id=video,
        vision_start_token_id=start, vision_end_token_id=end, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = _UNTYPED.Qwen2VLForConditionalGeneration(config).float()
    model.to(device())  # type: ignore[arg-type]  # transformers' annotation of it
    return model


def write_vision_model(folder: Path, layers: int = 2, seed: int = 0) -> Path:
    """Writes :func:`tiny_vision_model` and its processor into a folder that LLaMA-Factory can load, and returns it."""
    processor = tiny_vision_processor()
    tiny_vision_model(processor, layers, seed).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def write_image_rows(
    folder: Path, name: str = "pictures", images: Sequence[int] = (1, 0, 2, 1, 1, 0, 1, 3), seed: int = 0
) -> Path:
    """Writes chats about images, as LLaMA-Factory's ``mllm_demo`` has them, and their ``dataset_info.json``.

    Entries that stand in ``dataset_info.json`` already are kept.

    Args:
        folder: The ``dataset_dir``; images come into a folder below it.
        name: Of the dataset.
        images: How many images each row has; as many rows as numbers.
        seed: Of the images and the words.
    """
    from PIL import Image  # here, because dataflex-core does not depend on it

    draw, rows = random.Random(seed), []
    (folder / name).mkdir(parents=True, exist_ok=True)
    for number, count in enumerate(images):
        paths = []
        for place in range(count):
            size = (draw.randrange(16, 49), draw.randrange(16, 49))
            colour = tuple(draw.randrange(256) for _ in range(3))
            picture = Image.new("RGB", size, colour)
            picture.putpixel((draw.randrange(16), draw.randrange(16)), (255, 255, 255))
            paths.append(f"{name}/{number}-{place}.png")
            picture.save(folder / paths[-1])
        words = draw.choices(_WORDS, k=draw.randrange(2, 9))
        asked = {"role": "user", "content": "<image>" * count + f"What is {words[0]}?"}
        said = {"role": "assistant", "content": " ".join(words)}
        rows.append({"messages": [asked, said], "images": paths})
    (folder / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    info = folder / "dataset_info.json"
    known = json.loads(info.read_text(encoding="utf-8")) if info.exists() else {}
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    columns = {"messages": "messages", "images": "images"}
    known[name] = {"file_name": f"{name}.json", "formatting": "sharegpt", "columns": columns, "tags": tags}
    info.write_text(json.dumps(known), encoding="utf-8")
    return folder
