"""What the rules of :mod:`tests.models.shrink` get wrong, and what a class wants in its batch, by model type.

Each entry is here because the class could not be built, or not be run on text alone, without it.
"""

from __future__ import annotations

from typing import Any

_TURNED = {"rope_type": "default", "rope_theta": 10000.0}
_IMAGES = {**_TURNED, "mrope_section": [2, 1, 1]}
_HALF = {**_TURNED, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0]}
_ATTENTION_SECOND = {"attn_layer_period": 2, "attn_layer_offset": 1}

OVERRIDES: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"head_dim": 8},
    "bamba": {"attn_layer_indices": [1]},
    "big_bird": {"attention_type": "original_full"},
    "blt": {
        "encoder_hash_byte_group_vocab": 64, "vocab_size": 260, "patcher_config.vocab_size": 260,
        "encoder_config.vocab_size": 260, "decoder_config.vocab_size": 260, "patcher_config.head_dim": 8,
    },
    "cohere_compass": {"text_config.layer_types": ["full_attention", "sliding_attention"]},
    "cohere_compass_text": {"layer_types": ["full_attention", "sliding_attention"]},
    "dbrx": {"num_key_value_heads": 1},
    "dory": {"n_input_layers": 1, "n_recurrent_layers": 1, "n_output_layers": 1, "num_hidden_layers": 3},
    "dots1": {"n_shared_experts": 1},
    "dots3_note_text": {"num_key_value_heads": 4},
    "falcon_h1": {"mamba_d_ssm": 64},
    "glm46v": {"text_config.rope_parameters": _IMAGES},
    "glm4v": {"text_config.rope_parameters": _IMAGES},
    "glm4v_moe": {"text_config.rope_parameters": _HALF},
    "glm_ocr": {"text_config.rope_parameters": _IMAGES},
    "glmga": {"text_config.rope_parameters": _IMAGES},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {**_ATTENTION_SECOND, "expert_layer_period": 2, "expert_layer_offset": 1},
    "kimi_linear": {"num_experts_per_token": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8},
    "nemotron": {"num_key_value_heads": 2},
    "paddleocr_vl": {"text_config.rope_parameters": _IMAGES},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 80},
    "qwen2_5_vl": {"text_config.rope_parameters": _IMAGES},
    "qwen2_vl": {"text_config.rope_parameters": _IMAGES},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 80},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {"axial_pos_embds": False, "feed_forward_size": 64, "hash_seed": 0, "num_buckets": 2},
    "xlstm": {"embedding_dim": 32, "num_blocks": 2, "hidden_size": 32, "num_heads": 4},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "layers_block_type": ["mamba", "hybrid", "hybrid"], "num_hidden_layers": 3, "attention_hidden_size": 64,
        "attention_head_dim": 16, "n_mamba_heads": 2, "attn_layer_period": 2, "attn_layer_offset": 1,
    },
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid", "hybrid"], "num_hidden_layers": 3, "attention_hidden_size": 64,
        "attention_head_dim": 16, "mamba_headdim": 8, "n_mamba_heads": 8, "num_mem_blocks": 1, "adapter_rank": 4,
        "hybrid_layer_ids": [1, 2],
    },
}  # fmt: skip
"""Model type -> keys of its configuration; ``text_config.hidden_size`` is a key of a part."""

_TOKEN_TYPES = ("token_type_ids",)
INPUTS: dict[str, tuple[str, ...]] = {"gemma3": _TOKEN_TYPES, "paligemma": _TOKEN_TYPES, "shieldgemma2": _TOKEN_TYPES}
"""Model type -> tensors of (B, T) zeros that a collator of this model adds."""
