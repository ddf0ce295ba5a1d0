"""Orders of fused tensors, against the models of transformers that define them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from keras_trainops.layouts.fused import fused_order, parts_of
from keras_trainops.layouts.kinds import Linear

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.once

SIZES = {"vocab_size": 40, "hidden_size": 24, "num_attention_heads": 6}
FALCON = {**SIZES, "num_hidden_layers": 1, "alibi": False}
# Configuration, and the number of heads of keys and values.
CONFIGS: dict[str, tuple[str, dict[str, Any], int]] = {
    "bloom": ("BloomConfig", {**SIZES, "n_layer": 1, "n_head": 6}, 6),
    "falcon, multi-head": (
        "FalconConfig",
        {**FALCON, "multi_query": False, "new_decoder_architecture": False},
        6,
    ),
    "falcon, multi-query": (
        "FalconConfig",
        {**FALCON, "multi_query": True, "new_decoder_architecture": False},
        1,
    ),
    "falcon, grouped": (
        "FalconConfig",
        {**FALCON, "num_kv_heads": 2, "new_decoder_architecture": True},
        2,
    ),
}


def split_by_library(model: Any, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The fused weight, and what the library computes from it: (heads, positions, size) each."""
    attention = (model.h[0]).self_attention
    fused = attention.query_key_value(x)
    if hasattr(attention, "_split_heads"):
        parts = [part.transpose(1, 2) for part in attention._split_heads(fused)]
    else:
        parts = list(attention._reshape(fused))
        if parts[1].shape != parts[0].shape:  # keys for a product of matrices
            parts[1] = parts[1].transpose(-1, -2)
    return attention.query_key_value.weight, [part[0] for part in parts]


@pytest.mark.parametrize("name", CONFIGS)
def test_parts_are_those_of_the_library(name: str) -> None:
    kind, options, heads = CONFIGS[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**options)
    model = transformers.AutoModel.from_config(config).eval()
    x = torch.randn(1, 5, 24)
    with torch.no_grad():
        weight, expected = split_by_library(model, x)
        model.h[0].self_attention.query_key_value.bias = None
        weight, expected = split_by_library(model, x)
    order = fused_order("h.0.self_attention.query_key_value.weight", config.to_dict())
    kernels = [Linear((24,), (count, 4)) for count in (6, heads, heads)]
    assert order is not None
    tensor = weight.detach().numpy()
    readings = parts_of(order, kernels, tensor.shape, "torch")
    assert readings is not None
    for reading, kernel, part in zip(readings, kernels, expected, strict=True):
        assert reading.adapter is not None
        value = reading.adapter([tensor], kernel.shape)
        found = np.einsum("td,dhk->htk", x[0].numpy(), value)
        shared = part.shape[0] // len(found)  # the library may repeat heads
        np.testing.assert_allclose(np.repeat(found, shared, 0), part.numpy(), rtol=1e-4, atol=1e-5)
