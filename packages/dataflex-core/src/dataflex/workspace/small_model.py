"""The tiny model of a workspace and its tokenizer, saved so that any supported transformers loads them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

VOCAB_SIZE = 2048
HIDDEN_SIZE = 128
LAYERS = 2

HEAD_SCALE = 5.0
"""Factor on the fresh output embedding. As initialised, logits differ by about 0.2, so LoRA, which leaves the output
embedding alone, could not get below a loss of 6.9; with it a run of 60 steps goes from 7.7 to below 5."""


def write_model(folder: Path, texts: Iterable[str], seed: int) -> int:
    """Trains a tokenizer on ``texts``, builds a randomly initialised Qwen2 and saves both. Returns its parameters.

    Embeddings are not tied, as in the larger models of the family, so LoRA and gradient scores see the usual layers.
    """
    import torch

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

    model: Any = tiny_model(len(tokenizer), HIDDEN_SIZE, LAYERS, seed, kind="qwen2")
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(HEAD_SCALE)
    with _no_progress_bar():
        model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keeps transformers from drawing a bar for a file of 4 MB."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
