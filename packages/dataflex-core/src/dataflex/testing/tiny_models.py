"""A causal language model and a tokenizer small enough to be built inside a test."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from dataflex.testing.devices import device
from dataflex.testing.special_tokens import TINY_SPECIAL_TOKENS

_POSITIONS = 2048
_KINDS: dict[str, tuple[Any, Any]] = {  # Any, because transformers' constructors are untyped
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "mixtral": (MixtralConfig, MixtralForCausalLM),
    "qwen2_moe": (Qwen2MoeConfig, Qwen2MoeForCausalLM),
}
_EXPERTS: dict[str, dict[str, int]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
}
_FAST_TOKENIZER: Any = PreTrainedTokenizerFast


def tiny_model(
    vocab_size: int = 128,
    hidden: int = 32,
    layers: int = 2,
    seed: int = 0,
    kind: Literal["llama", "qwen2", "mixtral", "qwen2_moe"] = "llama",
) -> PreTrainedModel:
    """Returns a randomly initialised fp32 model on :func:`~dataflex.testing.device`, with embeddings of its own.

    The same arguments give the same weights on any device, and the global random state is left as it was: a test that
    builds a model draws the same numbers afterwards as one that does not.

    Args:
        vocab_size: Rows of the embedding.
        hidden: Width; a multiple of 8, because there are 4 heads and a rotary embedding halves each.
        layers: Number of decoder layers.
        seed: Seed of the weights.
        kind: The architecture. ``qwen2`` has biases in its attention, ``llama`` has none; ``mixtral`` (4 experts) and
            ``qwen2_moe`` (6, and a shared one) send each token to 2 experts.
    """
    config_class, model_class = _KINDS[kind]
    config = config_class(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=_POSITIONS,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **_EXPERTS.get(kind, {}),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = model_class(config).float()
    model.to(device())  # type: ignore[arg-type]  # transformers' annotation of it
    return model


def tiny_tokenizer(texts: Iterable[str] | None = None, vocab_size: int = 512) -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE tokenizer trained on the spot. It pads on the right and adds no token by itself.

    Every byte is in the vocabulary, so any text survives a round trip.

    Args:
        texts: What to train on; None takes the source of a module of the standard library.
        vocab_size: At least 259: 256 bytes and three special tokens.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(TINY_SPECIAL_TOKENS.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator([inspect.getsource(inspect)] if texts is None else texts, trainer=trainer)
    tokenizer: PreTrainedTokenizerFast = _FAST_TOKENIZER(
        tokenizer_object=bpe,
        model_max_length=_POSITIONS,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        **TINY_SPECIAL_TOKENS,
    )
    return tokenizer
