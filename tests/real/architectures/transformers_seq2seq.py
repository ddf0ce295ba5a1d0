"""Encoders with decoders."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import keras
import numpy as np

from tests.real.architectures.case import Case, Example
from tests.real.architectures.oracles import Oracle, conv, linear, listed, mapped, together
from tests.real.architectures.transformers_cases import FILE, sequences, transformers_case
from tests.real.architectures.transformers_decoders import affine, norm
from tests.real.architectures.transformers_encoders import HUB

T5_SHAPE = {
    "vocab_size": 41,
    "d_model": 24,
    "d_kv": 10,
    "d_ff": 36,
    "num_layers": 2,
    "num_heads": 3,
}
T5_TARGET = {
    "vocabulary_size": 41,
    "num_layers": 2,
    "num_heads": 3,
    "hidden_dim": 24,
    "intermediate_dim": 36,
    "key_value_dim": 10,
}


def t5_keys(*inward: str) -> Iterator[str]:
    """Keys in the order of the variables: the tables of both stacks have one path."""
    yield "shared.weight"
    for stack, attentions in (("encoder", 1), ("decoder", 2)):
        table = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        yield table
        for block in (f"{stack}.block.{number}.layer" for number in (0, 1)):
            for index, kind in enumerate(("SelfAttention", "EncDecAttention")[:attentions]):
                yield from (f"{block}.{index}.{kind}.{name}.weight" for name in "qkvo")
                yield f"{block}.{index}.layer_norm.weight"
            dense = f"{block}.{attentions}.DenseReluDense"
            yield from (f"{dense}.{name}.weight" for name in (*inward, "wo"))
            yield f"{block}.{attentions}.layer_norm.weight"
        yield f"{stack}.final_layer_norm.weight"


def t5(name: str, inward: tuple[str, ...], activation: str, projection: str) -> Case:
    return transformers_case(
        name,
        "T5ForConditionalGeneration",
        "T5Backbone",
        example=sequences,
        target={
            **T5_TARGET,
            "activation": activation,
            "use_gated_activation": len(inward) == 2,
        },
        oracle=listed(list(t5_keys(*inward)), FILE),
        feed_forward_proj=projection,
        **T5_SHAPE,
    )


WHISPER_PARTS = {
    "encoder": ("self_attention_layer",),
    "decoder": ("self_attention", "cross_attention"),
}


def whisper_rules() -> dict[str, object]:
    rules: dict[str, object] = {}
    for stack, attentions in WHISPER_PARTS.items():
        block, layer = rf".*_{stack}_layer_(\d+)", rf"model.{stack}.layers.\1"
        for attention in attentions:
            kind = "encoder_attn" if attention.startswith("cross") else "self_attn"
            for name in ("query", "key", "value"):
                rules |= affine(f"{block}/{attention}/{name}", f"{layer}.{kind}.{name[0]}_proj")
            rules |= affine(f"{block}/{attention}/attention_output", f"{layer}.{kind}.out_proj")
            rules |= norm(f"{block}/{attention}(?:_layer)?_norm", f"{layer}.{kind}_layer_norm")
            rules |= norm(f"{block}/{attention}_layer_norm", f"{layer}.{kind}_layer_norm")
        rules |= affine(f"{block}/feedforward_intermediate_dense", f"{layer}.fc1")
        rules |= affine(f"{block}/feedforward_output_dense", f"{layer}.fc2")
        rules |= norm(f"{block}/feedforward_layer_norm", f"{layer}.final_layer_norm")
        rules |= norm(f"{stack}_layer_norm", f"model.{stack}.layer_norm")
    for number in (1, 2):
        rules |= affine(f".*_conv_layer_{number}", f"model.encoder.conv{number}", conv)
    return {
        **rules,
        "encoder_position_embedding/embeddings": "model.encoder.embed_positions.weight",
        "position_embedding/embeddings": "model.decoder.embed_positions.weight",
        "token_embedding/embeddings": "model.decoder.embed_tokens.weight",
    }


def speech(network: Any, *, padded: bool = False) -> Example:
    """The decoder's outputs for a few features or samples of sound, and a few tokens."""
    import torch

    rng = np.random.default_rng(1)
    ids = rng.integers(5, 40, (2, 5))
    shape = (2, 1500) if padded else (2, 16, 8)
    sound = rng.normal(size=shape).astype("float32")
    inputs = {"decoder_token_ids": ids, "decoder_padding_mask": np.ones(ids.shape, "int32")}
    if padded:
        inputs |= {"encoder_input_values": sound[..., None]}
        inputs |= {"encoder_padding_mask": np.ones(shape, "bool")}
    else:
        inputs |= {"encoder_features": sound}
    theirs = torch.from_numpy(sound if padded else sound.transpose(0, 2, 1).copy())
    with torch.no_grad():
        found = network.base_model(theirs, decoder_input_ids=torch.from_numpy(ids))
    return Example(inputs, found.last_hidden_state.numpy(), "decoder_sequence_output")


MOON = "model.encoder.layers"
MOONSHINE = {
    "conv1/kernel": ("model.encoder.conv1.weight", conv),
    **affine("conv2", "model.encoder.conv2", conv),
    **affine("conv3", "model.encoder.conv3", conv),
    **norm("group_norm", "model.encoder.groupnorm"),
    "token_embedding/embeddings": "model.decoder.embed_tokens.weight",
    **{
        rf"encoder_block_(\d)/self_attention_layer/{name}/kernel": (
            rf"{MOON}.\1.self_attn.{name[0]}_proj.weight",
            linear,
        )
        for name in ("query", "key", "value")
    },
    r"encoder_block_(\d)/.*/attention_output/kernel": (
        rf"{MOON}.\1.self_attn.o_proj.weight",
        linear,
    ),
    r"encoder_block_(\d)/self_attention_layer_norm/gamma": rf"{MOON}.\1.input_layernorm.weight",
    r"encoder_block_(\d)/feedforward_layer_norm/gamma": (
        rf"{MOON}.\1.post_attention_layernorm.weight"
    ),
    **affine(r"encoder_block_(\d)/feedforward/dense_(\d)", rf"{MOON}.\1.mlp.fc\2"),
    "encoder_final_layer_norm/gamma": "model.encoder.layer_norm.weight",
    "decoder_post_norm/gamma": "model.decoder.norm.weight",
}


def moonshine_oracle() -> Oracle:
    """Layers of the decoder have running numbers."""
    keys = []
    for layer in (f"model.decoder.layers.{number}" for number in (0, 1)):
        for before, kind in (
            ("input_layernorm", "self_attn"),
            ("post_attention_layernorm", "encoder_attn"),
        ):
            keys.append(f"{layer}.{before}.weight")
            keys += [f"{layer}.{kind}.{name}_proj.weight" for name in "qkvo"]
        keys.append(f"{layer}.final_layernorm.weight")
        keys += [f"{layer}.mlp.{name}.{leaf}" for name in ("fc1", "fc2") for leaf in LEAVES]

    def decoder(model: keras.Model) -> list[keras.Variable]:
        return [v for v in model.weights if v.path.startswith("decoder_block")]

    return together(mapped(MOONSHINE, FILE), listed(keys, FILE, decoder))


LEAVES = ("weight", "bias")
BART = {
    "vocab_size": 41,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 36,
    "decoder_ffn_dim": 36,
    "max_position_embeddings": 13,
}
GEMMA = {
    "vocab_size": 41,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "intermediate_size": 36,
    "query_pre_attn_scalar": 10,
}

CASES = (
    t5("t5", ("wi",), "relu", "relu"),
    t5("t5-gated", ("wi_0", "wi_1"), "silu", "gated-silu"),
    transformers_case(
        "bart",
        "BartModel",
        "BartBackbone",
        example=sequences,
        target={**HUB, "max_sequence_length": 13},
        **BART,
    ),
    transformers_case(
        "t5gemma",
        "T5GemmaForConditionalGeneration",
        "T5GemmaBackbone",
        example=sequences,
        encoder=GEMMA,
        decoder=GEMMA,
        vocab_size=41,
    ),
    transformers_case(
        "whisper",
        "WhisperForConditionalGeneration",
        "WhisperBackbone",
        example=speech,
        target={
            "vocabulary_size": 60,
            "num_layers": 2,
            "num_heads": 3,
            "hidden_dim": 24,
            "intermediate_dim": 36,
            "num_mels": 8,
            "max_encoder_sequence_length": 16,
            "max_decoder_sequence_length": 12,
        },
        mapping=whisper_rules(),
        vocab_size=60,
        d_model=24,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=3,
        decoder_attention_heads=3,
        encoder_ffn_dim=36,
        decoder_ffn_dim=36,
        num_mel_bins=8,
        max_source_positions=8,
        max_target_positions=12,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=3,
    ),
    transformers_case(
        "moonshine",
        "MoonshineForConditionalGeneration",
        "MoonshineBackbone",
        example=partial(speech, padded=True),
        target={
            "vocabulary_size": 41,
            "filter_dim": 24,
            "encoder_num_layers": 2,
            "decoder_num_layers": 2,
            "hidden_dim": 24,
            "intermediate_dim": 96,
            "encoder_num_heads": 3,
            "decoder_num_heads": 3,
            "partial_rotary_factor": 0.5,
        },
        oracle=moonshine_oracle(),
        lacks="inv_freq",
        vocab_size=41,
        hidden_size=24,
        intermediate_size=96,
        encoder_num_hidden_layers=2,
        decoder_num_hidden_layers=2,
        encoder_num_attention_heads=3,
        decoder_num_attention_heads=3,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
        },
    ),
)
