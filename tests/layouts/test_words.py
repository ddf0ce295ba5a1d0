"""Names of all libraries are split and spelt alike."""

from __future__ import annotations

import pytest

from keras_trainops.layouts.words import split_name, words

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("name", "owner", "leaf", "meaning"),
    [
        ("encoder.0.fc.weight", "encoder.0.fc", "weight", "weight"),
        ("block/dense/kernel", "block/dense", "kernel", "weight"),
        ("bn/gamma", "bn", "gamma", "weight"),
        ("bn/moving_variance", "bn", "moving_variance", "variance"),
        ("bn1.running_mean", "bn1", "running_mean", "mean"),
        ("conv1/biases", "conv1", "biases", "bias"),
        ("params/Dense_0/kernel", "Dense_0", "kernel", "weight"),
        ("batch_stats/bn/mean", "bn", "mean", "mean"),
        ("attn.in_proj_weight", "attn.in_proj", "weight", "weight"),
        ("attn.q_bias", "attn.q", "bias", "bias"),
        ("rnn.weight_ih_l0", "rnn.l0", "weight_ih", "weight"),
        ("rnn.weight_hh_l1_reverse", "rnn.l1_reverse", "weight_hh", "recurrent"),
        ("rnn.bias_hh_l0", "rnn.l0", "bias_hh", "bias"),
        ("cell.weight_hh", "cell", "weight_hh", "recurrent"),
        ("lstm_cell/recurrent_kernel", "lstm_cell", "recurrent_kernel", "recurrent"),
        ("tokens/reverse_embeddings", "tokens/reverse", "reverse_embeddings", "weight"),
        ("sep/depthwise_weights", "sep/depthwise", "weights", "weight"),
        ("cls_token", "cls_token", "", "weight"),
        ("vit.pos_embed", "vit.pos_embed", "", "weight"),
        ("weight", "weight", "", "weight"),
        ("bn.num_batches_tracked", "bn.num_batches_tracked", "", "weight"),
    ],
)
def test_names_are_split_at_the_layer(name: str, owner: str, leaf: str, meaning: str) -> None:
    assert split_name(name) == (owner, leaf, meaning)


@pytest.mark.parametrize(
    "names",
    [
        ("encoder.SelfAttention.q_proj", "encoder/self_attn/query_projection"),
        ("ln_1", "LayerNorm_1", "layer_normalization_1", "layernorm1"),
        ("mlp.fc", "ffn/dense", "feed_forward.linear", "FeedForward.lin"),
        ("bn2", "batch_norm_2", "BatchNorm.2"),
        ("wq", "Query", "q"),
        ("pos_embed", "position_embeddings", "positional_embedding"),
        ("conv2d", "Conv_2d", "conv"),
        ("dw", "depthwise_conv", "separable_conv"),
        ("se", "squeeze_excite", "squeeze_and_excitation"),
    ],
)
def test_the_same_words_are_spelt_alike(names: tuple[str, ...]) -> None:
    assert len({words(name) for name in names}) == 1, [words(name) for name in names]


@pytest.mark.parametrize(
    ("one", "other"),
    [("q_proj", "k_proj"), ("norm1", "norm2"), ("up", "down"), ("fc", "conv"), ("gate", "up")],
)
def test_other_words_stay_apart(one: str, other: str) -> None:
    assert words(one) != words(other)
