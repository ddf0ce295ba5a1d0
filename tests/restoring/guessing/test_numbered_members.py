"""Numbers of layers in a block that start elsewhere, or mean something else, on either side."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

import keras_trainops as kt
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


def wrong(pairs: Mapping[str, object], right: dict[str, str]) -> dict[str, object]:
    """Return the pairs of `right` keys that lead elsewhere; a key may stay without a path."""
    return {key: path for key, path in pairs.items() if right.get(key, path) != path}


def test_norms_of_a_flax_block_count_from_0() -> None:
    layers: list[Placed] = []
    sizes: Sizes = {}
    right: dict[str, str] = {}
    for i in range(2):
        ours, theirs = f"layer_{i}", f"params/Block_{i}"
        layers += [norm(f"{ours}_self_attention_layer_norm", 6)]
        for name, flax in {
            "query": "query",
            "key": "key",
            "value": "value",
            "output": "out",
        }.items():
            layers += [linear(f"{ours}_self_attention_{name}", 6, 6)]
            sizes |= {f"{theirs}/SelfAttention_0/{flax}/kernel": (6, 6)}
        layers += [norm(f"{ours}_feedforward_layer_norm", 6)]
        layers += [linear(f"{ours}_feedforward_intermediate_dense", 6, 8)]
        layers += [linear(f"{ours}_feedforward_output_dense", 8, 6)]
        sizes |= {
            f"{theirs}/Mlp_0/Dense_0/kernel": (6, 8),
            f"{theirs}/Mlp_0/Dense_1/kernel": (8, 6),
        }
        for n, part in enumerate(("self_attention", "feedforward")):
            sizes |= {f"{theirs}/LayerNorm_{n}/{leaf}": (6,) for leaf in ("scale", "bias")}
            right[f"{theirs}/LayerNorm_{n}/scale"] = f"{ours}_{part}_layer_norm/gamma"
    found = kt.suggest_rename(parallel(layers), tensors_of(sizes))
    assert wrong(found.pairs, right) == {}
    assert found.pairs["params/Block_1/Mlp_0/Dense_1/kernel"] == (
        "layer_1_feedforward_output_dense/kernel"
    )


def test_norms_of_convolutions_have_no_role_of_an_attention() -> None:
    """The first of three comes before the convolutions; only two of ours have numbers."""
    layers: list[Placed] = []
    sizes: Sizes = {}
    right: dict[str, str] = {}
    for i in range(2):
        layers += [batch_norm(f"block{i}_preact_norm", 4), conv(f"block{i}_conv1", 4, 4)]
        layers += [batch_norm(f"block{i}_norm1", 4), conv(f"block{i}_conv2", 4, 4)]
        layers += [batch_norm(f"block{i}_norm2", 4), conv(f"block{i}_conv3", 4, 4)]
        for number, ours in ((1, "preact_norm"), (2, "norm1"), (3, "norm2")):
            sizes |= torch_batch_norm(f"blocks.{i}.norm{number}", 4)
            sizes |= {f"blocks.{i}.conv{number}.weight": (4, 4, 3, 3)}
            right[f"blocks.{i}.norm{number}.weight"] = f"block{i}_{ours}/gamma"
    found = kt.suggest_rename(parallel(layers), tensors_of(sizes))
    assert wrong(found.pairs, right) == {}


@pytest.mark.parametrize("kind", ["fc", "norm"])
def test_members_that_count_from_0_and_from_1(kind: str) -> None:
    layers: list[Placed] = []
    sizes: Sizes = {}
    right: dict[str, str] = {}
    for i in range(2):
        layers += [linear(f"block{i}_up", 6, 8), linear(f"block{i}_down", 8, 6)]
        sizes |= {f"h.{i}.up.weight": (8, 6), f"h.{i}.down.weight": (6, 8)}
        for n in (0, 1):
            ours, theirs = f"block{i}_{kind}{n}", f"h.{i}.{kind}{n + 1}"
            layers += [norm(ours, 6) if kind == "norm" else linear(ours, 6, 6)]
            sizes |= torch_norm(theirs, 6) if kind == "norm" else {f"{theirs}.weight": (6, 6)}
            right[f"{theirs}.weight"] = f"{ours}/{'gamma' if kind == 'norm' else 'kernel'}"
    found = kt.suggest_rename(parallel(layers), tensors_of(sizes))
    assert wrong(found.pairs, right) == {}


def test_a_key_is_no_query_outside_of_blocks() -> None:
    found = kt.suggest_rename(
        parallel([linear("query", 4, 4)]), tensors_of({"attn.k_proj.weight": (4, 4)})
    )
    assert not found.is_certain


def test_a_coincidence_of_automatic_numbers_is_ambiguous() -> None:
    theirs = tensors_of({f"dense_{i}/kernel": (4, 4) for i in (1, 2, 3)})
    found = kt.suggest_rename(parallel([linear("dense", 4, 4), linear("dense_1", 4, 4)]), theirs)
    assert found.pairs == {}
