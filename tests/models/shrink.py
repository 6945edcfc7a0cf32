"""A tiny configuration of any model class of transformers: every size in it made small, by the name of its key.

Kinds of layers are kept: where a list in the configuration says of each layer what it is (attention or state space,
dense or experts), one layer of each kind is left.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from transformers import PretrainedConfig

WORDS = 96
"""Size of every vocabulary. Rows of the sweep use the first 64; the tokens of images and sounds stand behind them."""

_FIRST_SPECIAL = 70
_WIDTH, _HEADS, _HEAD, _FEW_LAYERS, _MOST_LAYERS = 32, 4, 8, 2, 4

Rule = Callable[[Any], Any]


def _at_most(limit: int) -> Rule:
    return lambda value: min(value, limit)


# The first pattern that matches a key decides; a value that is no int, or 0, or -1, is left as it is.
_SIZES: list[tuple[str, Rule]] = [
    (r"vocab_size|.*_vocab_size|vocab_size_.*", lambda _: WORDS),
    (r"(num_)?(mtp|nextn).*|num_nextn_predict_layers", lambda _: 0),
    (r"first_k_dense_replace|num_dense_layers|num_first_dense_layers", lambda _: 1),
    (r".*lora_rank|.*_lora_rank|.*lora_dim|decay_low_rank_dim|gate_low_rank_dim", lambda _: 8),
    (r"qk_head_dim", lambda _: 2 * _HEAD),
    (r".*head_dim|.*d_head|d_kv|.*head_size|kv_channels|attention_head_size", lambda _: _HEAD),
    (r"(n_group|topk_group|n_groups|.*_n_groups|.*num_groups|norm_groups)", lambda _: 1),
    (r"(num|n)_shared_experts|moe_num_shared_experts", lambda _: 1),
    (r"zero_expert_num", lambda _: 2),
    (r".*experts_per_tok.*|.*top_?k|moe_k|num_selected_experts|.*topk(_experts)?", _at_most(2)),
    (r".*experts|n_routed_experts|.*num_experts.*", lambda _: 4),
    (r"linear_num.*heads", lambda _: _HEADS),
    (r"mamba.*heads", lambda _: 2 * _WIDTH // _HEAD),
    (r"rotary_dim", lambda _: _HEAD // 2),
    (r".*(key_value_heads|kv_heads|kv_n_heads)|num_kv|.*num_query_groups", _at_most(2)),
    (r".*heads?|n_head", _at_most(_HEADS)),
    (r"(moe|expert|shared|.*_expert).*(intermediate|ffn|hidden).*size.*|moe_.*_dim|expert_dim", lambda _: 16),
    (r".*intermediate_size.*|.*ffn_dim|.*ffn_size|d_ff|n_inner|.*ffn_hidden_size|mlp_hidden_size|dim_ff", lambda _: 64),
    (r".*state_size|.*d_state|ssm_.*state.*|.*state_dim", lambda _: 8),
    (r".*(time_step_rank|dt_rank)", lambda _: 4),
    (r".*chunk_size|.*block_size", _at_most(8)),
    (r".*window.*|attention_chunk_size", _at_most(8)),
    (r"lru_width|.*hidden_size.*|d_model|d_embed|n_embd|.*embed_dim|embedding_size|emb_dim|dim|model_dim|n_embed|"
     r".*_embed_proj_dim|.*projection_dim|(.*_)?hidden_dim|dim_model|.*projector_dim|conv_dim", lambda _: _WIDTH),
    (r".*layers?|depth|n_layer", _at_most(_FEW_LAYERS)),
    (r"max_(.*position|seq|length|context).*|n_positions|n_ctx|seq_length|context_length", _at_most(128)),
]  # fmt: skip
_ROLES = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "sep_token_id": 2}
_UNSAID = {"head_dim": _HEAD, "num_experts_per_tok": 2, "n_routed_experts": 4}
_ZERO = re.compile(r".*(drop|jitter).*")
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers")


def tiny_config(config_class: type, overrides: Mapping[str, Any]) -> Any:
    """Returns a small configuration.

    Args:
        config_class: A subclass of ``PretrainedConfig``.
        overrides: Keys that the rules get wrong; ``text_config.hidden_size`` is a key of a part. ``None`` as the
            value of ``DROP`` leaves a key to the class.
    """
    return config_class(**_arguments(config_class(), count(_FIRST_SPECIAL), overrides))


def _arguments(default: Any, specials: Any, overrides: Mapping[str, Any]) -> dict[str, Any]:
    parts = {name: getattr(default, name) for name in type(default).sub_configs if getattr(default, name, None)}
    own = {key: value for key, value in vars(default).items() if not key.startswith("_") and key not in parts}
    found = {key: _small(key, value, specials) for key, value in own.items() if _is_ours(key, value)}
    found |= _layers(own) | _key_heads(own)
    for name, part in parts.items():
        inside = {k.partition(".")[2]: v for k, v in overrides.items() if k.partition(".")[0] == name and "." in k}
        if isinstance(part, dict):
            continue
        found[name] = type(part)(**_arguments(part, specials, inside))
    found |= {key: value for key, value in overrides.items() if "." not in key}
    return {key: value for key, value in found.items() if value is not DROP}


DROP = object()
"""The value of an override that leaves the key out."""

_OF_EVERY_CLASS = set(vars(PretrainedConfig())) - {*_ROLES, "is_decoder"}
"""Keys that every configuration has, of generation in the older transformers: they say nothing of a size."""


def _is_ours(key: str, value: Any) -> bool:
    ours = key not in _OF_EVERY_CLASS and key not in ("transformers_version", "model_type", "attn_implementation")
    return ours and isinstance(value, (bool, int, float, str, list, tuple, dict, type(None)))


def _small(key: str, value: Any, specials: Any) -> Any:
    if key == "is_decoder":
        return True
    if key.startswith("rope_") and isinstance(value, dict):
        return _rope(value)
    if isinstance(value, float) and _ZERO.fullmatch(key):
        return 0.0
    if value is None:
        return _UNSAID.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if key in _ROLES:
        return _ROLES[key]
    if re.fullmatch(r".*token_(id|index)|.*_token", key):
        return next(specials) if value >= 0 else value
    if value <= 0:
        return value
    for pattern, rule in _SIZES:
        if re.fullmatch(pattern, key):
            return rule(value)
    return value


def _rope(value: dict[str, Any]) -> dict[str, Any]:
    found = {key: _rope(inner) if isinstance(inner, dict) else inner for key, inner in value.items()}
    if "mrope_section" in found:  # their sum is half of a head, or of the part of it that is turned
        turned = int(_HEAD * found.get("partial_rotary_factor", 1)) // 2
        found["mrope_section"] = [turned - 2 * (turned // 4), turned // 4, turned // 4]
    for key in ("short_factor", "long_factor"):
        if isinstance(found.get(key), list):
            found[key] = found[key][: _HEAD // 2]
    return found


def _key_heads(own: Mapping[str, Any]) -> dict[str, Any]:
    """Returns as many heads for keys as for queries where the class has as many: some ask for it."""
    queries = next((own[key] for key in ("num_attention_heads", "num_heads") if isinstance(own.get(key), int)), None)
    key = "num_key_value_heads"
    return {key: min(_HEADS, queries)} if queries is not None and own.get(key) in (None, queries) and key in own else {}


def _layers(own: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys that say how many layers there are and of which kind: one of each kind, two at least."""
    number = next((own[key] for key in _LAYER_COUNTS if isinstance(own.get(key), int)), None)
    lists = {k: v for k, v in own.items() if number and isinstance(v, (list, tuple, str)) and len(v) == number > 1}
    if number is None or not lists:
        return {}
    kinds: dict[tuple[Any, ...], int] = {}
    for place, kind in enumerate(zip(*lists.values(), strict=True)):
        kinds.setdefault(tuple(map(str, kind)), place)
    chosen = list(kinds.values())[:_MOST_LAYERS]
    chosen += [chosen[-1]] * (_FEW_LAYERS - len(chosen))
    found: dict[str, Any] = {
        key: "".join(v[i] for i in chosen) if isinstance(v, str) else [v[i] for i in chosen] for key, v in lists.items()
    }
    return found | {key: len(chosen) for key in _LAYER_COUNTS if isinstance(own.get(key), int)}
