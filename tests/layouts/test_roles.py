"""Roles of the layers of real blocks, as each library names them."""

from __future__ import annotations

import pytest

from keras_trainops.layouts.roles import attention_roles, roles_in_block, roles_outside, side_of

pytestmark = pytest.mark.once

PRE_NORM = {
    "attention_norm",
    *("query", "key", "value", "attention_output"),
    "feedforward_norm",
    *("gate", "up", "down"),
}


@pytest.mark.parametrize(
    "block",
    [
        {  # Llama in transformers
            "input_layernorm": "attention_norm",
            "self_attn.q_proj": "query",
            "self_attn.k_proj": "key",
            "self_attn.v_proj": "value",
            "self_attn.o_proj": "attention_output",
            "post_attention_layernorm": "feedforward_norm",
            "mlp.gate_proj": "gate",
            "mlp.up_proj": "up",
            "mlp.down_proj": "down",
        },
        {  # Llama in keras_hub
            "self_attention_layernorm": "attention_norm",
            "self_attention/query": "query",
            "self_attention/key": "key",
            "self_attention/value": "value",
            "self_attention/attention_output": "attention_output",
            "feedforward_layernorm": "feedforward_norm",
            "feedforward_gate_dense": "gate",
            "feedforward_intermediate_dense": "up",
            "feedforward_output_dense": "down",
        },
    ],
)
def test_both_sides_of_a_pre_norm_block_have_the_same_roles(block: dict[str, str]) -> None:
    assert roles_in_block(list(block)) == block
    assert set(block.values()) == PRE_NORM


@pytest.mark.parametrize(
    "block",
    [
        {  # BERT in transformers, whose blocks normalise after each part
            "attention.self.query": "query",
            "attention.output.dense": "attention_output",
            "attention.output.LayerNorm": "attention_norm",
            "intermediate.dense": "up",
            "output.dense": "down",
            "output.LayerNorm": "feedforward_norm",
        },
        {  # GPT-2
            "ln_1": "attention_norm",
            "attn.c_attn": "qkv",
            "attn.c_proj": "attention_output",
            "ln_2": "feedforward_norm",
            "mlp.c_fc": "up",
            "mlp.c_proj": "down",
        },
        {  # timm
            "norm1": "attention_norm",
            "attn.qkv": "qkv",
            "attn.proj": "attention_output",
            "norm2": "feedforward_norm",
            "mlp.fc1": "up",
            "mlp.fc2": "down",
            "ls1": "layer_scale_1",
        },
        {  # Gemma 2 normalises before and after
            "input_layernorm": "attention_norm",
            "post_attention_layernorm": "post_attention_norm",
            "pre_feedforward_layernorm": "feedforward_norm",
            "post_feedforward_layernorm": "post_feedforward_norm",
        },
        {  # Qwen 3 normalises queries and keys
            "self_attn.q_proj": "query",
            "self_attn.q_norm": "query_norm",
            "self_attn.k_norm": "key_norm",
        },
        {  # a decoder with a cross-attention
            "self_attn.q_proj": "query",
            "encoder_attn.q_proj": "cross_query",
            "encoder_attn.out_proj": "cross_attention_output",
        },
        {  # Mixtral
            "block_sparse_moe.gate": "router",
            "block_sparse_moe.experts.0.w1": "expert_gate",
            "block_sparse_moe.experts.0.w2": "expert_down",
            "block_sparse_moe.experts.0.w3": "expert_up",
        },
        {"conv1": "", "downsample.0": "shortcut", "downsample.1": "shortcut"},
    ],
)
def test_roles_in_blocks(block: dict[str, str]) -> None:
    assert roles_in_block(list(block)) == block


def test_a_word_means_what_its_neighbours_make_of_it() -> None:
    """The second of two normalisations, or the one after the attention of four."""
    name = "post_attention_layernorm"
    assert roles_in_block(["input_layernorm", name])[name] == "feedforward_norm"
    four = ["input_layernorm", name, "pre_feedforward_layernorm", "post_feedforward_layernorm"]
    assert roles_in_block(four)[name] == "post_attention_norm"


def test_norms_of_t5_have_the_role_of_their_sublayer() -> None:
    names = ["layer.0.SelfAttention.q", "layer.0.layer_norm", "layer.1.DenseReluDense.wo"]
    roles = roles_in_block([*names, "layer.1.layer_norm"])
    assert roles["layer.0.layer_norm"] == "attention_norm"
    assert roles["layer.1.layer_norm"] == "feedforward_norm"


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("transformer.wte", "token_embedding"),
        ("embeddings.word_embeddings", "token_embedding"),
        ("transformer.wpe", "position_embedding"),
        ("embeddings.token_type_embeddings", "segment_embedding"),
        ("embeddings.LayerNorm", "embedding_norm"),
        ("embeddings.cls_token", "class_token"),
        ("patch_embed.proj", "patch_embedding"),
        ("transformer.ln_f", "final_norm"),
        ("lm_head", "head"),
        ("token_embedding/reverse", "head"),
        ("pooler.dense", "pooler"),
    ],
)
def test_roles_outside_of_blocks(name: str, role: str) -> None:
    assert roles_outside([name]) == {name: role}


def test_names_that_say_nothing_have_no_role() -> None:
    assert roles_outside(["net.0", "stem.conv"]) == {}
    assert roles_in_block(["conv1", "x"]) == {"conv1": "", "x": ""}


def test_attentions_outside_of_blocks() -> None:
    names = ["head.attention.in_proj", "head.attention.out_proj", "head.in_proj"]
    assert attention_roles(names) == {names[0]: "qkv", names[1]: "attention_output"}


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("model.encoder.layers.0", "encoder"),
        ("decoder_layer_3", "decoder"),
        ("vision_model.encoder", "encoder"),
        ("text_model.layers", "text"),
        ("h.0", ""),
        ("encoders", ""),
    ],
)
def test_sides(name: str, side: str) -> None:
    assert side_of(name) == side
