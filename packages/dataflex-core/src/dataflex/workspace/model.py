"""The tiny model of a workspace and its tokenizer, saved so that any supported transformers loads them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

VOCAB_SIZE = 2048
HIDDEN_SIZE = 128
LAYERS = 2


def write_model(folder: Path, texts: Iterable[str], seed: int) -> int:
    """Trains a tokenizer on ``texts``, builds a randomly initialised Qwen2 and saves both. Returns its parameters.

    Embeddings are not tied, as in the larger models of the family, so LoRA and gradient scores see the usual layers.
    """
    from dataflex.testing import TINY_SPECIAL_TOKENS, tiny_model, tiny_tokenizer

    tokenizer = tiny_tokenizer(texts, VOCAB_SIZE)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    # Written by hand, because transformers 5 saves a class name here that transformers 4 does not know.
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": tokenizer.model_max_length,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        **TINY_SPECIAL_TOKENS,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    model = tiny_model(len(tokenizer), HIDDEN_SIZE, LAYERS, seed, kind="qwen2")
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())
