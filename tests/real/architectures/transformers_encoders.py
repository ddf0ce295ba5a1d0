"""Encoders of text."""

from __future__ import annotations

from functools import partial
from typing import Any

from tests.real.architectures.case import Case
from tests.real.architectures.oracles import linear
from tests.real.architectures.transformers_cases import tokens, transformers_case

SIZES = {
    "vocab_size": 41,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 36,
}
BERT = {**SIZES, "max_position_embeddings": 13}
GELU = {"hidden_act": "gelu_new"}  # as keras_hub's BERT computes it
HUB = {
    "vocabulary_size": 41,
    "num_layers": 2,
    "num_heads": 3,
    "hidden_dim": 24,
    "intermediate_dim": 36,
}
pooled = partial(tokens, segments=True, output="sequence_output")


def block(prefix: str, attention: str = "attention.self.{}") -> dict[str, object]:
    """Rules for the layers of a BERT-like encoder."""
    layer = rf"{prefix}encoder.layer.\1"
    projection = f"{layer}.{attention.format(chr(92) + '2')}"
    return {
        r".*_(\d+)/.*(query|key|value)/kernel": (f"{projection}.weight", linear),
        r".*_(\d+)/.*(query|key|value)/bias": f"{projection}.bias",
        r".*_(\d+)/.*attention_output/kernel": (rf"{layer}.attention.output.dense.weight", linear),
        r".*_(\d+)/.*attention_output/bias": rf"{layer}.attention.output.dense.bias",
        r".*_(\d+)/self_attention_layer_norm/gamma": rf"{layer}.attention.output.LayerNorm.weight",
        r".*_(\d+)/self_attention_layer_norm/beta": rf"{layer}.attention.output.LayerNorm.bias",
        r".*_(\d+)/feedforward_layer_norm/gamma": rf"{layer}.output.LayerNorm.weight",
        r".*_(\d+)/feedforward_layer_norm/beta": rf"{layer}.output.LayerNorm.bias",
        r".*_(\d+)/.*intermediate_dense/kernel": (rf"{layer}.intermediate.dense.weight", linear),
        r".*_(\d+)/.*intermediate_dense/bias": rf"{layer}.intermediate.dense.bias",
        r".*_(\d+)/.*output_dense/kernel": (rf"{layer}.output.dense.weight", linear),
        r".*_(\d+)/.*output_dense/bias": rf"{layer}.output.dense.bias",
    }


ELECTRA = {
    "token_embedding/embeddings": "electra.embeddings.word_embeddings.weight",
    "position_embedding/embeddings": "electra.embeddings.position_embeddings.weight",
    "segment_embedding/embeddings": "electra.embeddings.token_type_embeddings.weight",
    "embeddings_layer_norm/gamma": "electra.embeddings.LayerNorm.weight",
    "embeddings_layer_norm/beta": "electra.embeddings.LayerNorm.bias",
    "embeddings_projection/kernel": ("electra.embeddings_project.weight", linear),
    "embeddings_projection/bias": "electra.embeddings_project.bias",
    **block("electra."),
}
DEBERTA = {
    "token_embedding/embeddings": "deberta.embeddings.word_embeddings.weight",
    "embeddings_layer_norm/gamma": "deberta.embeddings.LayerNorm.weight",
    "embeddings_layer_norm/beta": "deberta.embeddings.LayerNorm.bias",
    "rel_embedding/rel_embedding": "deberta.encoder.rel_embeddings.weight",
    "rel_embedding/.*/gamma": "deberta.encoder.LayerNorm.weight",
    "rel_embedding/.*/beta": "deberta.encoder.LayerNorm.bias",
    **block("deberta.", attention="attention.self.{}_proj"),
}
ROBERTA = {
    "token_embedding/embeddings": "embeddings.word_embeddings.weight",
    "position_embedding/embeddings": (
        "embeddings.position_embeddings.weight",
        lambda value, shape: value[2:],
    ),
    "embeddings_layer_norm/gamma": "embeddings.LayerNorm.weight",
    "embeddings_layer_norm/beta": "embeddings.LayerNorm.bias",
    **block(""),
}

ESM_ATTENTION = {
    **{name: f"self.{name}" for name in ("query", "key", "value")},
    "output": "output.dense",
}
ESM = {
    "token_embedding/embeddings": "esm.embeddings.word_embeddings.weight",
    "output_layer_norm/gamma": "esm.encoder.emb_layer_norm_after.weight",
    "output_layer_norm/beta": "esm.encoder.emb_layer_norm_after.bias",
    **{
        rf".*_(\d+)/.*/{name[0]}_dense_layer/kernel": (
            rf"esm.encoder.layer.\1.attention.{key}.weight",
            linear,
        )
        for name, key in ESM_ATTENTION.items()
    },
    **{
        rf".*_(\d+)/.*/{name[0]}_dense_layer/bias": rf"esm.encoder.layer.\1.attention.{key}.bias"
        for name, key in ESM_ATTENTION.items()
    },
    r".*_(\d+)/attention_norm/(gamma|beta)": r"esm.encoder.layer.\1.attention.LayerNorm.\2",
    r".*_(\d+)/ffn_norm/(gamma|beta)": r"esm.encoder.layer.\1.LayerNorm.\2",
    **block("esm."),
}


def esm(name: str, **options: Any) -> Case:
    return transformers_case(
        name,
        "EsmForMaskedLM",
        "ESMBackbone",
        example=partial(tokens, mask=False),
        mapping=ESM,  # keras_hub's converter does not know `gamma` and `beta`, as now stored
        **SIZES,
        pad_token_id=1,
        mask_token_id=2,
        position_embedding_type="rotary",
        token_dropout=False,
        **options,
    )


FNET = {
    "token_embedding/embeddings": "fnet.embeddings.word_embeddings.weight",
    "position_embedding/embeddings": "fnet.embeddings.position_embeddings.weight",
    "segment_embedding/embeddings": "fnet.embeddings.token_type_embeddings.weight",
    "embeddings_layer_norm/gamma": "fnet.embeddings.LayerNorm.weight",
    "embeddings_layer_norm/beta": "fnet.embeddings.LayerNorm.bias",
    "embedding_projection/kernel": ("fnet.embeddings.projection.weight", linear),
    "embedding_projection/bias": "fnet.embeddings.projection.bias",
    "pooled_dense/kernel": ("fnet.pooler.dense.weight", linear),
    "pooled_dense/bias": "fnet.pooler.dense.bias",
    r".*_(\d+)/mixing_layer_norm/gamma": (r"fnet.encoder.layer.\1.fourier.output.LayerNorm.weight"),
    r".*_(\d+)/mixing_layer_norm/beta": r"fnet.encoder.layer.\1.fourier.output.LayerNorm.bias",
    r".*_(\d+)/output_layer_norm/gamma": r"fnet.encoder.layer.\1.output.LayerNorm.weight",
    r".*_(\d+)/output_layer_norm/beta": r"fnet.encoder.layer.\1.output.LayerNorm.bias",
    **block("fnet."),
}
XLNET_LAYER = r"transformer.layer.\1"
XLNET_ATTENTION = {
    "content_attention_bias": "r_w_bias",
    "positional_attention_bias": "r_r_bias",
    "segment_attention_bias": "r_s_bias",
    "segment_encoding": "seg_embed",
    "rel_attn/query/kernel": "q",
    "rel_attn/key/kernel": "k",
    "rel_attn/value/kernel": "v",
    "rel_attn/attention_output/kernel": "o",
    "rel_attn/encoding/kernel": "r",
    "layer_norm_rel_attn/gamma": "layer_norm.weight",
    "layer_norm_rel_attn/beta": "layer_norm.bias",
}
XLNET = {
    "mask_emb": "transformer.mask_emb",
    "word_embedding/embeddings": "transformer.word_embedding.weight",
    **{
        rf".*_(\d+)/{path}": rf"{XLNET_LAYER}.rel_attn.{key}"
        for path, key in XLNET_ATTENTION.items()
    },
    r".*_(\d+)/layer_norm_ff/gamma": rf"{XLNET_LAYER}.ff.layer_norm.weight",
    r".*_(\d+)/layer_norm_ff/beta": rf"{XLNET_LAYER}.ff.layer_norm.bias",
    **{
        rf".*_(\d+)/feedforward_{name}_dense/{leaf}": (
            rf"{XLNET_LAYER}.ff.layer_{number}.{key}",
            linear,
        )
        for name, number in (("intermediate", 1), ("output", 2))
        for leaf, key in (("kernel", "weight"), ("bias", "bias"))
    },
}


CASES = (
    transformers_case("bert", "BertModel", "BertBackbone", example=pooled, **BERT, **GELU),
    transformers_case(
        "bert-masked-lm",
        "BertForMaskedLM",
        "BertBackbone",
        example=pooled,
        lacks="pooled_dense",
        **BERT,
        **GELU,
    ),
    transformers_case(
        "bert-12-layers",
        "BertForSequenceClassification",
        "BertBackbone",
        example=pooled,
        **{**BERT, "num_hidden_layers": 12},
        **GELU,
    ),
    transformers_case(
        "albert",
        "AlbertForMaskedLM",
        "AlbertBackbone",
        example=pooled,
        lacks="pooled_dense",
        **{**BERT, "embedding_size": 10, "num_hidden_layers": 3},
    ),
    transformers_case(
        "distilbert",
        "DistilBertForMaskedLM",
        "DistilBertBackbone",
        example=tokens,
        vocab_size=41,
        dim=24,
        n_layers=2,
        n_heads=3,
        hidden_dim=36,
        max_position_embeddings=13,
    ),
    transformers_case(
        "roberta",
        "RobertaForMaskedLM",
        "RobertaBackbone",
        **{**BERT, "max_position_embeddings": 15},
    ),
    # keras_hub's converter adds the one row of segments to the positions, which no rule can.
    transformers_case(
        "xlm-roberta",
        "XLMRobertaModel",
        "XLMRobertaBackbone",
        mapping=ROBERTA,
        **{**BERT, "max_position_embeddings": 15},
    ),
    transformers_case(
        "electra",
        "ElectraForPreTraining",
        "ElectraBackbone",
        example=pooled,
        target={
            "vocab_size": 41,
            "num_layers": 2,
            "num_heads": 3,
            "hidden_dim": 24,
            "embedding_dim": 10,
            "intermediate_dim": 36,
            "max_sequence_length": 13,
        },
        mapping=ELECTRA,
        lacks="pooled_dense",
        **{**BERT, "embedding_size": 10},
        **GELU,
    ),
    transformers_case(
        "deberta-v3",
        "DebertaV2ForMaskedLM",
        "DebertaV3Backbone",
        example=tokens,
        target={**HUB, "max_sequence_length": 32, "bucket_size": 8},
        mapping=DEBERTA,
        **SIZES,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=8,
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        position_biased_input=False,
        type_vocab_size=0,
        max_position_embeddings=32,
    ),
    esm("esm"),
    esm("esm-memory", in_memory=True),
    transformers_case(
        "fnet",
        "FNetForMaskedLM",
        "FNetBackbone",
        example=partial(tokens, segments=True, mask=False, output="sequence_output"),
        target={
            "vocabulary_size": 41,
            "num_layers": 2,
            "hidden_dim": 24,
            "intermediate_dim": 36,
            "max_sequence_length": 13,
        },
        mapping=FNET,
        vocab_size=41,
        hidden_size=24,
        num_hidden_layers=2,
        intermediate_size=36,
        max_position_embeddings=13,
    ),
    transformers_case(
        "xlnet",
        "XLNetLMHeadModel",
        "XLNetBackbone",  # computes something else, for any mask
        target=HUB,
        mapping=XLNET,
        vocab_size=41,
        d_model=24,
        n_layer=2,
        n_head=3,
        d_inner=36,
    ),
)
