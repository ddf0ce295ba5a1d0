"""Judge by names how the parts of a fused tensor are ordered; shapes do not show that."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from keras_trainops.layouts.reading import Convention

FusedOrder: TypeAlias = Literal["blocks", "per_head", "groups"]
"""The order of the rows of a fused query, key and value.

"blocks": all of the query, then all of the key and of the value. "per_head": the three parts of the
first head, then those of the next. "groups": the query heads that share a key and a value, then
these two.
"""
HalvesOrder: TypeAlias = Literal["gate_up", "up_gate", "even_odd"]
"""The order of a fused feed-forward projection; the gate is the half that gets the activation.

"gate_up": the gate, then the other half. "up_gate": the other way round. "even_odd": the gate has
the even rows.
"""
_Config: TypeAlias = "Mapping[str, Any]"


def fused_order(
    key: str, config: _Config | None = None, convention: Convention | None = None
) -> FusedOrder | None:
    """Return the order of a fused query, key and value, or of a fused key and value.

    Args:
        key: The key of the tensor.
        config: Contents of the model's `config.json`, if known.
        convention: The axis order of the tensor, if known.

    Returns:
        The order; None if the names do not tell.

    Example:
        >>> fused_order("layers.0.self_attn.in_proj_weight")
        'blocks'
        >>> fused_order("h.0.self_attention.query_key_value.weight")
        >>> fused_order("h.0.self_attention.query_key_value.weight", {"model_type": "bloom"})
        'per_head'
    """
    words = _components(key)
    config = config or {}
    for word in reversed(words):
        special = _FUSED_IN.get((config.get("model_type", ""), word))
        if special is not None:
            return special(config)
        if word in _FUSED:
            return _FUSED[word](words, config, convention)
    return None


def halves_order(key: str, config: _Config | None = None) -> HalvesOrder | None:
    """Return the order of a fused gate and up projection.

    Args:
        key: The key of the tensor.
        config: Contents of the model's `config.json`, if known.

    Returns:
        The order; None if the names do not tell.

    Example:
        >>> halves_order("layers.0.mlp.gate_up_proj.weight")
        'gate_up'
        >>> halves_order("layers.0.mlp.experts.gate_up_proj")  # GPT-OSS alternates
    """
    words, model = _components(key), (config or {}).get("model_type")
    for word in reversed(words):
        word = word.removesuffix("_bias").removesuffix("_weight")
        if (model, word) in _HALVES_IN:
            return _HALVES_IN[model, word]
        if word == "gate_up_proj":
            return _gate_up_proj(words, model)
        if word in _HALVES:
            return _HALVES[word]
    return None


def _components(key: str) -> list[str]:
    return re.split("[./]", key)


def _gate_up_proj(words: Sequence[str], model: str | None) -> HalvesOrder | None:
    if any("audio" in word for word in words):
        return "up_gate" if model == "phi4_multimodal" else None
    return "gate_up" if model or "experts" not in words else None


def _always(order: FusedOrder | None) -> Callable[..., FusedOrder | None]:
    return lambda *_: order


def _falcon(config: _Config) -> FusedOrder:
    if config.get("new_decoder_architecture"):
        return "groups"
    return "blocks" if config.get("multi_query", True) else "per_head"


def _bigcode(config: _Config) -> FusedOrder:
    return "blocks" if config.get("multi_query", True) else "per_head"


def _qkv(words: Sequence[str], config: _Config, _: Convention | None) -> FusedOrder | None:
    """Judge `qkv`, which has blocks except in some hybrids of convolutions and attention."""
    has_stages = any(word in _HYBRID or word.startswith("stage") for word in words)
    return None if has_stages or words[-1] in ("c", "linear") or "linear" in words else "blocks"


def _kv(words: Sequence[str], config: _Config, _: Convention | None) -> FusedOrder | None:
    return None if "linear" in words or any(word in _HYBRID for word in words) else "blocks"


def _qkv_proj(words: Sequence[str], config: _Config, _: Convention | None) -> FusedOrder | None:
    return "blocks" if "self_attn" in words else None  # CodeGen's is under `attn`


def _c_attn(
    words: Sequence[str], config: _Config, convention: Convention | None
) -> FusedOrder | None:
    """Judge `c_attn` of GPT-2; the `Linear` of that name has other orders in GPT-BigCode."""
    return "blocks" if config.get("model_type") or convention != "torch" else None


_HYBRID = {"attn_block", "attn_grid", "attn_downsample", "token_mixer", "context_module"}

# Components of keys -> what tells the order.
_FUSED: dict[str, Callable[[Sequence[str], _Config, Convention | None], FusedOrder | None]] = {
    **dict.fromkeys(("in_proj_weight", "in_proj_bias"), _always("blocks")),
    **dict.fromkeys(("Wqkv", "att_proj", "qkv_linear", "to_qkv", "to_kv"), _always("blocks")),
    **dict.fromkeys(("query_key_value", "wqkv", "in_proj", "qkv_einsum"), _always(None)),
    "c_attn": _c_attn,
    "kv": _kv,
    "qkv": _qkv,
    "qkv_proj": _qkv_proj,
}

# `model_type` and component of the key -> order.
_FUSED_IN: dict[tuple[str, str], Callable[[_Config], FusedOrder | None]] = {
    ("bloom", "query_key_value"): _always("per_head"),
    ("codegen", "qkv_proj"): _always(None),
    ("deberta", "in_proj"): _always("per_head"),
    ("falcon", "query_key_value"): _falcon,
    ("gpt_bigcode", "c_attn"): _bigcode,
    ("gpt_neox", "query_key_value"): _always("per_head"),
    ("gpt_neox_japanese", "query_key_value"): _always("per_head"),
    ("internlm2", "wqkv"): _always("groups"),
    ("minimax", "qkv_proj"): _always("per_head"),
    ("persimmon", "query_key_value"): _always("per_head"),
    ("phi3", "qkv_proj"): _always("blocks"),
}

_HALVES: dict[str, HalvesOrder] = {
    "Wi": "gate_up",  # ModernBERT
    "ff_proj": "up_gate",  # Molmo 2
    "input_linear": "gate_up",  # Granite, JetMoE
    "w12": "gate_up",  # DINOv2 of Meta
    "weights_in": "gate_up",  # DINOv2
}

_HALVES_IN: dict[tuple[str | None, str], HalvesOrder] = {
    ("aya_vision", "linear_1"): "up_gate",
    ("clvp", "proj"): "up_gate",
    ("gpt_oss", "gate_up_proj"): "even_odd",
    ("moonshine", "fc1"): "up_gate",
}
