"""Blocks are aligned before layers are paired, and no pair crosses them."""

from __future__ import annotations

import re
from typing import Any

import pytest

import keras_trainops as kt
from keras_trainops.restoring.guessing.suggestion import Suggestion
from tests.restoring.guessing.layouts import (
    Placed,
    batch_norm,
    conv,
    linear,
    norm,
    parallel,
    tensors_of,
    torch_batch_norm,
    torch_norm,
)

Sizes = dict[str, tuple[int, ...]]


def pairs_of(layers: list[Placed], sizes: Sizes, in_order: bool = True) -> Suggestion:
    theirs: dict[str, Any] = tensors_of(sizes)
    return kt.suggest_rename(parallel(layers), theirs if in_order else dict(sorted(theirs.items())))


def pre_norm_block(ours: str, theirs: str) -> tuple[list[Placed], Sizes]:
    """A block whose layers all have the same shapes, but for the feed-forward."""
    layers = [
        norm(f"{ours}_self_attention_layernorm", 6),
        *(linear(f"{ours}_self_attention_{name}", 6, 6) for name in ("query", "key", "value")),
        linear(f"{ours}_self_attention_attention_output", 6, 6),
        norm(f"{ours}_feedforward_layernorm", 6),
        linear(f"{ours}_feedforward_gate_dense", 6, 8),
        linear(f"{ours}_feedforward_intermediate_dense", 6, 8),
        linear(f"{ours}_feedforward_output_dense", 8, 6),
    ]
    sizes: Sizes = {f"{theirs}.mlp.{name}_proj.weight": (8, 6) for name in ("gate", "up")}
    sizes |= {f"{theirs}.self_attn.{name}_proj.weight": (6, 6) for name in "qkvo"}
    sizes |= {f"{theirs}.mlp.down_proj.weight": (6, 8)}
    sizes |= torch_norm(f"{theirs}.input_layernorm", 6)
    return layers, sizes | torch_norm(f"{theirs}.post_attention_layernorm", 6)


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("first", [0, 1])
def test_norms_of_pre_norm_blocks_are_not_exchanged(first: int, in_order: bool) -> None:
    layers, sizes = [norm("sequence_output_layernorm", 6)], torch_norm("model.norm", 6)
    for i in range(3):
        ours, theirs = pre_norm_block(f"transformer_layer_{i + first}", f"model.layers.{i}")
        layers, sizes = layers + ours, sizes | theirs
    found = pairs_of(layers, sizes, in_order)
    assert found.is_certain
    for i in range(3):
        block = f"transformer_layer_{i + first}"
        for theirs_, ours_ in (
            ("input_layernorm", "self_attention_layernorm"),
            ("post_attention_layernorm", "feedforward_layernorm"),
        ):
            assert found.pairs[f"model.layers.{i}.{theirs_}.weight"] == f"{block}_{ours_}/gamma"
    assert found.pairs["model.norm.bias"] == "sequence_output_layernorm/beta"
    assert len(found.rules) == 9 + 1


@pytest.mark.parametrize("in_order", [True, False])
def test_the_norm_of_a_shortcut_is_not_exchanged(in_order: bool) -> None:
    """ResNet-18: within the first block of a stage, all normalisations have one shape."""
    layers: list[Placed] = []
    sizes: Sizes = {}
    for stage, block in ((0, 0), (0, 1), (1, 0), (1, 1)):
        ours, theirs, width = f"stack{stage}_block{block}", f"layer{stage + 1}.{block}", 4 << stage
        inputs = 4 if block == 0 else width
        layers += [conv(f"{ours}_1_conv", inputs, width), batch_norm(f"{ours}_1_bn", width)]
        layers += [conv(f"{ours}_2_conv", width, width), batch_norm(f"{ours}_2_bn", width)]
        sizes |= {f"{theirs}.conv1.weight": (width, inputs, 3, 3)}
        sizes |= {f"{theirs}.conv2.weight": (width, width, 3, 3)}
        sizes |= torch_batch_norm(f"{theirs}.bn1", width) | torch_batch_norm(f"{theirs}.bn2", width)
        if (stage, block) == (1, 0):
            layers += [conv(f"{ours}_0_conv", 4, 8, 1), batch_norm(f"{ours}_0_bn", 8)]
            sizes |= {f"{theirs}.downsample.0.weight": (8, 4, 1, 1)}
            sizes |= torch_batch_norm(f"{theirs}.downsample.1", 8)
    found = pairs_of(layers, sizes, in_order)
    for stage, block in ((0, 0), (0, 1), (1, 0), (1, 1)):
        for number in (1, 2):
            key = f"layer{stage + 1}.{block}.bn{number}.running_var"
            assert found.pairs[key] == f"stack{stage}_block{block}_{number}_bn/moving_variance"
    assert found.pairs["layer2.0.downsample.0.weight"] == "stack1_block0_0_conv/kernel"
    assert found.pairs["layer2.0.downsample.1.weight"] == "stack1_block0_0_bn/gamma"
    assert found.by_order == (r"layer2\.0\.downsample\.1\.\w+",)  # `bn2` has this shape too
    assert found.missing == found.ambiguous == ()


def test_what_a_block_does_not_need_leaves_it_for_no_other_layer() -> None:
    layers: list[Placed] = [linear("pooled_dense", 6, 6)]
    sizes: Sizes = {}
    for i in range(3):
        layers += [linear(f"block{i}_query", 6, 6), linear(f"block{i}_intermediate_dense", 6, 8)]
        sizes |= {
            f"encoder.layer.{i}.attention.self.query.weight": (6, 6),
            f"encoder.layer.{i}.attention.output.dense.weight": (6, 6),
            f"encoder.layer.{i}.intermediate.dense.weight": (8, 6),
        }
    found = pairs_of(layers, sizes)
    assert found.missing == ("pooled_dense/kernel",)
    assert set(found.unmatched) == {key for key in sizes if "attention.output" in key}
    assert found.ambiguous == found.by_order == ()


@pytest.mark.parametrize("in_order", [True, False])
def test_numbers_of_another_start_are_not_equal_numbers(in_order: bool) -> None:
    """Pre-activations: `norm1` comes before the first convolution, `1_bn` after it."""
    layers: list[Placed] = []
    sizes: Sizes = {}
    for i in range(2):
        layers += [batch_norm(f"block{i}_preact_bn", 4), conv(f"block{i}_1_conv", 4, 4)]
        layers += [batch_norm(f"block{i}_1_bn", 4), conv(f"block{i}_2_conv", 4, 4)]
        layers += [batch_norm(f"block{i}_2_bn", 4), conv(f"block{i}_3_conv", 4, 4)]
        for number in (1, 2, 3):
            sizes |= torch_batch_norm(f"blocks.{i}.norm{number}", 4)
            sizes |= {f"blocks.{i}.conv{number}.weight": (4, 4, 3, 3)}
    found = pairs_of(layers, sizes, in_order)
    expected = {"norm1": "preact_bn", "norm2": "1_bn", "norm3": "2_bn"}
    for i in range(2):
        for theirs, ours in expected.items():
            assert (
                found.pairs[f"blocks.{i}.{theirs}.running_mean"] == f"block{i}_{ours}/moving_mean"
            )
        assert found.pairs[f"blocks.{i}.conv2.weight"] == f"block{i}_2_conv/kernel"
    assert len(found.by_order) == 2
    assert all("norm" in rule for rule in found.by_order)


def gpt(blocks: int, first: int = 0) -> Sizes:
    sizes = torch_norm("ln_f", 6)
    for i in range(first, first + blocks):
        sizes |= torch_norm(f"h.{i}.ln_1", 6) | torch_norm(f"h.{i}.ln_2", 6)
        sizes |= {f"h.{i}.mlp.up_proj.weight": (8, 6), f"h.{i}.mlp.down_proj.weight": (6, 8)}
    return sizes


def decoder(blocks: int) -> list[Placed]:
    layers = [norm("layer_norm", 6)]
    for i in range(blocks):
        layers += [norm(f"layer_{i}_self_attention_layer_norm", 6)]
        layers += [norm(f"layer_{i}_feedforward_layer_norm", 6)]
        layers += [linear(f"layer_{i}_up_proj", 6, 8), linear(f"layer_{i}_down_proj", 8, 6)]
    return layers


@pytest.mark.parametrize("in_order", [True, False])
def test_no_pair_crosses_blocks(in_order: bool) -> None:
    """GPT-2: nothing of block i leads to block i + 1, nor the last norm into a block."""
    found = pairs_of(decoder(12), gpt(12), in_order)
    for key, path in found.pairs.items():
        number = re.match(r"h\.(\d+)", key)
        block = f"layer_{number[1]}_" if number else "layer_norm/"
        assert str(path).startswith(block)
    assert len(found.pairs) == 12 * 6 + 2
    assert found.is_certain


def test_blocks_of_different_counts_are_not_aligned_by_guess() -> None:
    found = pairs_of(decoder(2), gpt(3))
    assert not any(key.startswith("h.") for key in found.pairs)
    assert {key for group in found.ambiguous for key in group.keys} >= {
        f"h.{i}.mlp.up_proj.weight" for i in range(3)
    }


def test_a_side_is_aligned_with_the_same_side() -> None:
    """The encoder comes last in the model, and all blocks have the same shapes."""
    layers: list[Placed] = []
    sizes: Sizes = {}
    for side in ("decoder", "encoder"):
        for i in range(2):
            layers += [linear(f"{side}_layer_{i}_up_proj", 6, 8)]
            layers += [linear(f"{side}_layer_{i}_down_proj", 8, 6)]
    for side in ("encoder", "decoder"):
        for i in range(2):
            sizes |= {f"model.{side}.layers.{i}.up_proj.weight": (8, 6)}
            sizes |= {f"model.{side}.layers.{i}.down_proj.weight": (6, 8)}
    found = pairs_of(layers, sizes)
    assert found.is_certain
    for side in ("encoder", "decoder"):
        assert found.pairs[f"model.{side}.layers.1.up_proj.weight"] == (
            f"{side}_layer_1_up_proj/kernel"
        )
