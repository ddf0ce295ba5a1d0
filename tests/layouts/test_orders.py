"""Names, and the model's configuration, tell how a fused tensor is ordered."""

from __future__ import annotations

from typing import Any

import pytest

from keras_trainops.layouts.orders import fused_order, halves_order

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("key", "config", "expected"),
    [
        ("attn.in_proj_weight", None, "blocks"),
        ("in_proj_bias", None, "blocks"),
        ("h.0.attn.in_proj.weight", None, None),
        ("deberta.attention.self.in_proj.weight", {"model_type": "deberta"}, "per_head"),
        ("blocks.0.attn.qkv.weight", None, "blocks"),
        ("layers.0.blocks.1.attn.qkv.bias", None, "blocks"),
        ("stages.1.blocks.0.attn.qkv.weight", None, None),  # tiny_vit, coatnet
        ("stages.0.blocks.0.attn_grid.attn.qkv.weight", None, None),  # maxvit
        ("blocks.0.attn.qkv.linear.weight", None, None),  # levit
        ("transformer.blocks.0.attn.Wqkv.weight", None, "blocks"),
        ("layers.0.attention.wqkv.weight", None, None),
        ("layers.0.attention.wqkv.weight", {"model_type": "internlm2"}, "groups"),
        ("model.layers.0.self_attn.qkv_proj.weight", None, "blocks"),
        ("transformer.h.0.attn.qkv_proj.weight", None, None),
        ("transformer.h.0.attn.qkv_proj.weight", {"model_type": "codegen"}, None),
        ("model.layers.0.self_attn.qkv_proj.weight", {"model_type": "minimax"}, "per_head"),
        ("h.0.attn.c_attn.weight", None, "blocks"),
        ("h0/attn/c_attn/w", None, "blocks"),
        ("h.0.attn.c_attn.weight", {"model_type": "gpt2"}, "blocks"),
        ("h.0.attn.c_attn.weight", {"model_type": "gpt_bigcode", "multi_query": True}, "blocks"),
        ("h.0.attn.c_attn.weight", {"model_type": "gpt_bigcode", "multi_query": False}, "per_head"),
        ("h.0.query_key_value.weight", None, None),
        ("h.0.query_key_value.weight", {"model_type": "bloom"}, "per_head"),
        ("h.0.query_key_value.weight", {"model_type": "gpt_neox"}, "per_head"),
        ("h.0.query_key_value.weight", {"model_type": "falcon"}, "blocks"),
        ("h.0.query_key_value.bias", {"model_type": "falcon", "multi_query": False}, "per_head"),
        (
            "h.0.query_key_value.bias",
            {"model_type": "falcon", "new_decoder_architecture": True},
            "groups",
        ),
        ("blocks.0.attn.kv.weight", None, "blocks"),
        ("layers.0.self_attn.q_proj.weight", None, None),
    ],
)
def test_fused_order(key: str, config: Any, expected: str | None) -> None:
    assert fused_order(key, config) == expected


def test_a_linear_c_attn_may_have_another_order() -> None:
    key = "h.0.attn.c_attn.weight"
    assert fused_order(key, convention="torch") is None
    assert fused_order(key, convention="keras") == "blocks"


@pytest.mark.parametrize(
    ("key", "config", "expected"),
    [
        ("layers.0.mlp.gate_up_proj.weight", None, "gate_up"),
        ("layers.0.mlp.experts.gate_up_proj", None, None),
        ("layers.0.mlp.experts.gate_up_proj", {"model_type": "qwen3_moe"}, "gate_up"),
        ("layers.0.mlp.experts.gate_up_proj", {"model_type": "gpt_oss"}, "even_odd"),
        ("layers.0.mlp.experts.gate_up_proj_bias", {"model_type": "gpt_oss"}, "even_odd"),
        ("audio.0.gate_up_proj.weight", {"model_type": "phi4_multimodal"}, "up_gate"),
        ("model.layers.0.mlp.gate_up_proj.weight", {"model_type": "phi4_multimodal"}, "gate_up"),
        ("layers.0.mlp.Wi.weight", None, "gate_up"),
        ("decoder.layers.0.mlp.fc1.weight", None, None),
        ("decoder.layers.0.mlp.fc1.weight", {"model_type": "moonshine"}, "up_gate"),
        ("encoder.layer.0.mlp.weights_in.weight", None, "gate_up"),
    ],
)
def test_halves_order(key: str, config: Any, expected: str | None) -> None:
    assert halves_order(key, config) == expected
