"""Decoders of text."""

from __future__ import annotations

from typing import Any

from tests.real.architectures.case import Case
from tests.real.architectures.oracles import linear, part, per_head
from tests.real.architectures.transformers_cases import tokens, transformers_case
from tests.real.architectures.transformers_encoders import HUB, SIZES

# Heads, key heads, head size and width differ pairwise.
GROUPED = {
    "vocab_size": 41,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 36,
    "pad_token_id": 0,
}
EPSILON = {"rms_norm_eps": 1e-6}
WIDE = {**GROUPED, "head_dim": 10}  # 4 * 10 is not the width
SPARSE = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}


def affine(path: str, key: str, kernel: object = linear) -> dict[str, object]:
    """Rules for a layer with kernel and bias."""
    return {f"{path}/kernel": (f"{key}.weight", kernel), f"{path}/bias": f"{key}.bias"}


def norm(path: str, key: str) -> dict[str, object]:
    return {f"{path}/gamma": f"{key}.weight", f"{path}/beta": f"{key}.bias"}


def fused(path: str, key: str, names: str, take: object) -> dict[str, object]:
    """Rules for the parts of one tensor; `take` makes a part from index and count."""
    rules: dict[str, object] = {}
    for index, name in enumerate(names.split()):
        rules[f"{path}/{name}/kernel"] = (f"{key}.weight", take(index, 3))
        rules[f"{path}/{name}/bias"] = (f"{key}.bias", take(index, 3))
    return rules


NEOX_LAYER = r"gpt_neox.layers.\1"
NEOX = {
    "token_embedding/embeddings": "gpt_neox.embed_in.weight",
    **affine(r".*_(\d+)/.*query_key_value", rf"{NEOX_LAYER}.attention.query_key_value"),
    **affine(r".*_(\d+)/.*attention_output", rf"{NEOX_LAYER}.attention.dense"),
    **norm(r".*_(\d+)/self_attention_layer_norm", rf"{NEOX_LAYER}.input_layernorm"),
    **norm(r".*_(\d+)/feedforward_layer_norm", rf"{NEOX_LAYER}.post_attention_layernorm"),
    **affine(r".*_(\d+)/.*intermediate_dense", rf"{NEOX_LAYER}.mlp.dense_h_to_4h"),
    **affine(r".*_(\d+)/.*output_dense", rf"{NEOX_LAYER}.mlp.dense_4h_to_h"),
    **norm("layer_norm", "gpt_neox.final_layer_norm"),
}
PARTS = "query_dense key_dense value_dense"


def bloom_like(attention: str, ff_in: str, ff_out: str, first_norm: str) -> dict[str, object]:
    """Rules for BLOOM and Falcon, which differ in the names of the Keras layers."""
    layer = r"transformer.h.\1"
    return {
        "token_embedding/embeddings": "transformer.word_embeddings.weight",
        **norm("embedding_layernorm", "transformer.word_embeddings_layernorm"),
        **fused(
            rf".*_(\d+)/{attention}", rf"{layer}.self_attention.query_key_value", PARTS, per_head
        ),
        **affine(rf".*_(\d+)/{attention}/output_dense", rf"{layer}.self_attention.dense"),
        **norm(rf".*_(\d+)/{first_norm}", rf"{layer}.input_layernorm"),
        **norm(r".*_(\d+)/post_attention_layernorm", rf"{layer}.post_attention_layernorm"),
        **affine(rf".*_(\d+)/{ff_in}", rf"{layer}.mlp.dense_h_to_4h"),
        **affine(rf".*_(\d+)/{ff_out}", rf"{layer}.mlp.dense_4h_to_h"),
        **norm("final_layernorm", "transformer.ln_f"),
    }


OPT_LAYER = r"model.decoder.layers.\1"
OPT = {
    "token_embedding/embeddings": "model.decoder.embed_tokens.weight",
    "position_embedding/embeddings": (
        "model.decoder.embed_positions.weight",
        lambda value, shape: value[2:],
    ),
    **affine(r".*_(\d+)/self_attention/query", rf"{OPT_LAYER}.self_attn.q_proj"),
    **affine(r".*_(\d+)/self_attention/key", rf"{OPT_LAYER}.self_attn.k_proj"),
    **affine(r".*_(\d+)/self_attention/value", rf"{OPT_LAYER}.self_attn.v_proj"),
    **affine(r".*_(\d+)/self_attention/attention_output", rf"{OPT_LAYER}.self_attn.out_proj"),
    **norm(r".*_(\d+)/self_attention_layer_norm", rf"{OPT_LAYER}.self_attn_layer_norm"),
    **norm(r".*_(\d+)/feedforward_layer_norm", rf"{OPT_LAYER}.final_layer_norm"),
    **affine(r".*_(\d+)/feedforward_intermediate_dense", rf"{OPT_LAYER}.fc1"),
    **affine(r".*_(\d+)/feedforward_output_dense", rf"{OPT_LAYER}.fc2"),
    **norm("layer_norm", "model.decoder.final_layer_norm"),
}


def rows(key: str, start: int, stop: int) -> tuple[str, object]:
    """Some of a tensor's rows."""
    return key, lambda value, shape: linear(value[start:stop], shape)


PHI3_LAYER = r"model.layers.\1"
PHI3 = {
    "token_embedding/embeddings": "model.embed_tokens.weight",
    "token_embedding/reverse_embeddings": ("lm_head.weight", linear),
    r".*_(\d+)/pre_attention_layernorm/scale": rf"{PHI3_LAYER}.input_layernorm.weight",
    r".*_(\d+)/post_attention_layernorm/scale": rf"{PHI3_LAYER}.post_attention_layernorm.weight",
    r".*_(\d+)/attention/query/kernel": rows(rf"{PHI3_LAYER}.self_attn.qkv_proj.weight", 0, 24),
    r".*_(\d+)/attention/key/kernel": rows(rf"{PHI3_LAYER}.self_attn.qkv_proj.weight", 24, 36),
    r".*_(\d+)/attention/value/kernel": rows(rf"{PHI3_LAYER}.self_attn.qkv_proj.weight", 36, 48),
    r".*_(\d+)/attention/attention_output/kernel": (
        rf"{PHI3_LAYER}.self_attn.o_proj.weight",
        linear,
    ),
    r".*_(\d+)/feedforward_gate_dense/kernel": (
        rf"{PHI3_LAYER}.mlp.gate_up_proj.weight",
        part(0, 2),
    ),
    r".*_(\d+)/feedforward_intermediate_dense/kernel": (
        rf"{PHI3_LAYER}.mlp.gate_up_proj.weight",
        part(1, 2),
    ),
    r".*_(\d+)/feedforward_output_dense/kernel": (rf"{PHI3_LAYER}.mlp.down_proj.weight", linear),
    "sequence_output_layernorm/scale": "model.norm.weight",
}


LLAMA_LAYER = r"model.layers.\1"
MISTRAL = {
    "token_embedding/embeddings": "model.embed_tokens.weight",
    "token_embedding/reverse_embeddings": ("lm_head.weight", linear),
    **{
        rf".*_(\d+)/self_attention/{name}/kernel": (
            rf"{LLAMA_LAYER}.self_attn.{name[0]}_proj.weight",
            linear,
        )
        for name in ("query", "key", "value")
    },
    r".*_(\d+)/.*/attention_output/kernel": (rf"{LLAMA_LAYER}.self_attn.o_proj.weight", linear),
    **{
        rf".*_(\d+)/feedforward_{name}_dense/kernel": (
            rf"{LLAMA_LAYER}.mlp.{key}_proj.weight",
            linear,
        )
        for name, key in {"gate": "gate", "intermediate": "up", "output": "down"}.items()
    },
    r".*_(\d+)/self_attention_layernorm/scale": rf"{LLAMA_LAYER}.input_layernorm.weight",
    r".*_(\d+)/feedforward_layernorm/scale": rf"{LLAMA_LAYER}.post_attention_layernorm.weight",
    "sequence_output_layernorm/scale": "model.norm.weight",
}
OSS_LAYER = r"model.layers.\1"
GPT_OSS = {
    "token_embedding/embeddings": "model.embed_tokens.weight",
    "token_embedding/reverse_embeddings": ("lm_head.weight", linear),
    r".*_(\d+)/.*/sinks": rf"{OSS_LAYER}.self_attn.sinks",
    **{
        rf".*_(\d+)/self_attention/{name}/{leaf}": (
            rf"{OSS_LAYER}.self_attn.{name[0]}_proj.{key}",
            linear,
        )
        for name in ("query", "key", "value")
        for leaf, key in {"kernel": "weight", "bias": "bias"}.items()
    },
    **affine(r".*_(\d+)/.*/attention_output", rf"{OSS_LAYER}.self_attn.o_proj"),
    **affine(r".*_(\d+)/.*/router_dense", rf"{OSS_LAYER}.mlp.router"),
    r".*_(\d+)/.*/((gate_up|down)_proj(_bias)?)": rf"{OSS_LAYER}.mlp.experts.\2",
    r".*_(\d+)/((input|post_attention)_layernorm)/scale": rf"{OSS_LAYER}.\2.weight",
    "sequence_output_layernorm/scale": "model.norm.weight",
}


def case(name: str, model: str, backbone: str, **options: Any) -> Case:
    return transformers_case(name, model, backbone, **{"example": tokens, **options})


GPT2 = {"vocab_size": 41, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 13}
NEOX_CONFIG = {
    **SIZES,
    "rotary_pct": 0.5,
    "hidden_act": "gelu_new",
    "tie_word_embeddings": False,
    "target": {**HUB, "rotary_percentage": 0.5},
    "mapping": NEOX,
}
FALCON = {
    "multi_query": False,
    "alibi": True,
    "bias": True,
    "parallel_attn": False,
    "new_decoder_architecture": False,
}

CASES = (
    case("gpt2", "GPT2LMHeadModel", "GPT2Backbone", **GPT2),
    case("gpt2-base", "GPT2Model", "GPT2Backbone", **GPT2),
    case("gpt-neox", "GPTNeoXForCausalLM", "GPTNeoXBackbone", **NEOX_CONFIG),
    case("gpt-neox-memory", "GPTNeoXForCausalLM", "GPTNeoXBackbone", in_memory=True, **NEOX_CONFIG),
    case(
        "bloom",
        "BloomForCausalLM",
        "BloomBackbone",
        vocab_size=41,
        hidden_size=24,
        n_layer=2,
        n_head=3,
        target={**HUB, "intermediate_dim": 96},
        mapping=bloom_like(
            "self_attention",
            "mlp_intermediate_dense",
            "mlp_output_dense",
            "pre_attention_layernorm",
        ),
    ),
    case(
        "falcon-rw",
        "FalconForCausalLM",
        "FalconBackbone",
        vocab_size=41,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        **FALCON,
        target={
            "vocabulary_size": 41,
            "num_layers": 2,
            "num_attention_heads": 3,
            "hidden_dim": 24,
            "intermediate_dim": 96,
        },
        mapping=bloom_like("attention", "dense_h_to_4h", "dense_4h_to_h", "input_layernorm"),
    ),
    case(
        "opt",
        "OPTForCausalLM",
        "OPTBackbone",
        vocab_size=41,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        ffn_dim=36,
        max_position_embeddings=13,
        word_embed_proj_dim=24,
        target={**HUB, "max_sequence_length": 13},
        mapping=OPT,
    ),
    case(
        "llama",
        "LlamaForCausalLM",
        "LlamaBackbone",
        **GROUPED,
        **EPSILON,
        tie_word_embeddings=False,
    ),
    case(
        "llama-tied",
        "LlamaForCausalLM",
        "LlamaBackbone",
        **GROUPED,
        **EPSILON,
        tie_word_embeddings=True,
    ),
    case(
        "llama3-11-layers",
        "LlamaForCausalLM",
        "Llama3Backbone",
        **{**GROUPED, "num_hidden_layers": 11},
        **EPSILON,
        tie_word_embeddings=False,
    ),
    case(
        "mistral",
        "MistralForCausalLM",
        "MistralBackbone",
        mapping=MISTRAL,  # keras_hub's converter rounds to float16
        **GROUPED,
        **EPSILON,
    ),
    case(
        "mixtral",
        "MixtralForCausalLM",
        "MixtralBackbone",
        **GROUPED,
        **EPSILON,
        num_local_experts=3,
    ),
    case(
        "mixtral-memory",
        "MixtralForCausalLM",
        "MixtralBackbone",
        in_memory=True,
        **GROUPED,
        **EPSILON,
        num_local_experts=3,
    ),
    case("qwen2", "Qwen2ForCausalLM", "QwenBackbone", **GROUPED, **EPSILON),
    case(
        "qwen2-tied",
        "Qwen2ForCausalLM",
        "QwenBackbone",
        **GROUPED,
        **EPSILON,
        tie_word_embeddings=True,
    ),
    case("qwen3", "Qwen3ForCausalLM", "Qwen3Backbone", **WIDE, **EPSILON),
    case(
        "qwen3-tied",
        "Qwen3ForCausalLM",
        "Qwen3Backbone",
        **WIDE,
        **EPSILON,
        tie_word_embeddings=True,
    ),
    case(
        "qwen2-moe",
        "Qwen2MoeForCausalLM",
        "QwenMoeBackbone",
        **GROUPED,
        **EPSILON,
        **SPARSE,
        num_experts=3,
        shared_expert_intermediate_size=20,
    ),
    case(
        "qwen3-moe",
        "Qwen3MoeForCausalLM",
        "Qwen3MoeBackbone",
        **WIDE,
        **EPSILON,
        **SPARSE,
        target={
            "vocabulary_size": 41,
            "num_layers": 2,
            "num_query_heads": 4,
            "num_key_value_heads": 2,
            "hidden_dim": 24,
            "head_dim": 10,
            "intermediate_dim": 36,
            "moe_intermediate_dim": 16,
            "num_experts": 3,
            "top_k": 2,
            "norm_top_k_prob": False,
            "decoder_sparse_step": 1,
            "tie_word_embeddings": False,
        },
        num_experts=3,
        tie_word_embeddings=False,
    ),
    case(
        "phi3",
        "Phi3ForCausalLM",
        "Phi3Backbone",
        **GROUPED,
        **EPSILON,
        target={
            "vocabulary_size": 41,
            "num_layers": 2,
            "hidden_dim": 24,
            "intermediate_dim": 36,
            "num_query_heads": 4,
            "num_key_value_heads": 2,
        },
        mapping=PHI3,
    ),
    case("gemma", "GemmaForCausalLM", "GemmaBackbone", **WIDE),
    case("gemma2", "Gemma2ForCausalLM", "GemmaBackbone", **WIDE, query_pre_attn_scalar=10),
    case("gemma3-text", "Gemma3ForCausalLM", "Gemma3Backbone", **WIDE, query_pre_attn_scalar=10),
    case(
        "gpt-oss",
        "GptOssForCausalLM",
        "GptOssBackbone",
        **WIDE,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        num_local_experts=3,
        num_experts_per_tok=2,
        layer_types=["sliding_attention", "full_attention"],
        mapping=GPT_OSS,  # keras_hub's converter reads quantised files only
    ),
    case(
        "smollm3",
        "SmolLM3ForCausalLM",
        "SmolLM3Backbone",
        lacks="inv_freq",
        **GROUPED,
    ),
)
