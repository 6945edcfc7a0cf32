"""Data and a model to try a component in: written in a second, without torch. The model has no weights of its own."""

from __future__ import annotations

import json
import random
from pathlib import Path

from dataflex.testing.special_tokens import TINY_SPECIAL_TOKENS

ROWS, HELD_OUT = 80, 16
_SEED = 42
_WORDS = ("red", "blue", "green", "small", "large", "round", "flat", "warm", "cold", "old", "new", "fast", "slow")
_MODEL = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 32, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
    "tie_word_embeddings": False, "use_cache": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def write_tiny_run(folder: Path) -> dict[str, int]:
    """Writes ``data`` and ``model`` below a folder and returns dataset -> rows.

    The datasets are sums of numbers and words in reverse order, and some of both that are held out.
    """
    data, model = folder / "data", folder / "model"
    data.mkdir(parents=True)
    model.mkdir()
    rng = random.Random(_SEED)
    sums = [_sum(rng) for _ in range(ROWS + HELD_OUT // 2)]
    words = [_reversed(rng) for _ in range(ROWS + HELD_OUT // 2)]
    sets = {"sums": sums[:ROWS], "words": words[:ROWS], "held_out": [*sums[ROWS:], *words[ROWS:]]}
    for name, rows in sets.items():
        _write(data / f"{name}.json", rows)
    _write(data / "dataset_info.json", {name: {"file_name": f"{name}.json"} for name in sets})
    _write_tokenizer(model)
    return {name: len(rows) for name, rows in sets.items()}


def _sum(rng: random.Random) -> dict[str, str]:
    left, right = rng.randrange(1000), rng.randrange(1000)
    return {"instruction": "Add the numbers.", "input": f"{left} {right}", "output": str(left + right)}


def _reversed(rng: random.Random) -> dict[str, str]:
    words = rng.sample(_WORDS, rng.randrange(2, 6))
    return {"instruction": "Say the words backwards.", "input": " ".join(words), "output": " ".join(words[::-1])}


def _write_tokenizer(folder: Path) -> None:
    """Writes a tokenizer with a token for each byte, and the model's configuration."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # here: who asks for help does without

    specials = list(TINY_SPECIAL_TOKENS.values())
    tokens = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 2048, "padding_side": "right"}
    _write(folder / "tokenizer_config.json", config | {"clean_up_tokenization_spaces": False} | TINY_SPECIAL_TOKENS)
    _write(folder / "config.json", _MODEL | {"vocab_size": len(tokens)})


def _write(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
