"""Modules of PyTorch with random weights, and the Keras models that restore them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import torch
from keras import layers
from torch import nn

import keras_trainops as kt
from tests.helpers import numpy

PARTS = ("query", "key", "value")


def randomised(module: nn.Module, low: float = 0.1, seed: int = 0) -> nn.Module:
    """Set all tensors, including biases and statistics, to random values from `low` to 0.5."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.tensor(rng.uniform(low, 0.5, tensor.shape)))
    return module.eval()


def state_of(module: nn.Module) -> dict[str, np.ndarray]:
    return {key: tensor.numpy() for key, tensor in module.state_dict().items() if tensor.ndim}


def random_state(module: nn.Module) -> dict[str, np.ndarray]:
    """Set all tensors to random values of both signs, and return them."""
    return state_of(randomised(module, low=-0.5))


def outputs(module: nn.Module, *arrays: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        result = module(*map(torch.tensor, arrays))
    return (result[0] if isinstance(result, tuple) else result).numpy()


def assert_close(model: keras.Model, inputs: Any, expected: np.ndarray) -> None:
    """Compare the outputs of a model with the expected ones."""
    np.testing.assert_allclose(numpy(model(inputs)), expected, rtol=1e-5, atol=1e-5)


def assert_same_outputs(
    module: nn.Module, model: keras.Model, x: np.ndarray, torch_x: np.ndarray
) -> kt.RestoreReport:
    """Restore a model with suggested rules, compare its outputs, and return the report."""
    state = state_of(module)
    rename = kt.suggest_rename(model, state).rules
    report = kt.restore(model, state, rename=rename, adapt=kt.adapt.from_torch(model))
    assert set(report.restored) == {variable.path for variable in model.weights}
    assert_close(model, x, outputs(module, torch_x))
    return report


CELL = {
    "weight_ih": "{}_cell/kernel",
    "weight_hh": "{}_cell/recurrent_kernel",
    "bias_ih": "{}_cell/bias",
    "bias_hh": "{}_cell/bias",
}


def recurrent_rules(cell: str, owner: str = "layer/", suffix: str = "_l0") -> dict[str, str]:
    """Return rename rules from a module to the cell of a Keras layer."""
    return {f"{key}{suffix}": owner + path.format(cell) for key, path in CELL.items()}


def recurrent_model(layer: keras.layers.Layer, width: int = 4) -> keras.Model:
    inputs = keras.Input((5, width))
    return keras.Model(inputs, layer(inputs))


def attention_model(heads: int = 3, size: int = 2, width: int = 6) -> keras.Model:
    inputs = keras.Input((5, width))
    layer = layers.MultiHeadAttention(heads, size, name="attention")
    return keras.Model(inputs, layer(inputs, inputs))


class Separate(nn.Module):
    """Attention with one `Linear` per part, as in BERT, ViT, Whisper and CLIP."""

    def __init__(self, heads: int, size: int, width: int) -> None:
        super().__init__()
        self.heads, self.size = heads, size
        for part in PARTS:
            setattr(self, part, nn.Linear(width, heads * size))
        self.out = nn.Linear(heads * size, width)

    def parts(self, x: torch.Tensor) -> list[torch.Tensor]:
        shape = (*x.shape[:2], self.heads, self.size)
        return [getattr(self, part)(x).view(shape).transpose(1, 2) for part in PARTS]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attended = nn.functional.scaled_dot_product_attention(*self.parts(x))
        return self.out(attended.transpose(1, 2).flatten(2))


class FusedByHead(Separate):
    """Attention that fuses the query, key and value of each head, as in BLOOM and GPT-NeoX."""

    def __init__(self, heads: int, size: int, width: int) -> None:
        super().__init__(heads, size, width)
        for part in PARTS:
            delattr(self, part)
        self.query_key_value = nn.Linear(width, 3 * heads * size)

    def parts(self, x: torch.Tensor) -> list[torch.Tensor]:
        fused = self.query_key_value(x).view(*x.shape[:2], self.heads, 3, self.size)
        return [fused[..., part, :].transpose(1, 2) for part in range(3)]


class FusedByPart(FusedByHead):
    """Attention that fuses all queries, then all keys and values, as in timm's `qkv`."""

    def parts(self, x: torch.Tensor) -> list[torch.Tensor]:
        fused = self.query_key_value(x).view(*x.shape[:2], 3, self.heads, self.size)
        return [fused[:, :, part].transpose(1, 2) for part in range(3)]


def attention_rules(leaves: dict[str, str]) -> dict[str, str]:
    """Return rename rules for the weights and biases of attention."""
    return {
        rf"{theirs}\.{leaf}": f"attention/{ours}/{name}"
        for theirs, ours in leaves.items()
        for leaf, name in (("weight", "kernel"), ("bias", "bias"))
    }


def fused_rules(key: str = "query_key_value") -> dict[str, Any]:
    """Return rename rules for a fused query, key and value."""
    return {
        rf"{key}\.weight": [f"attention/{part}/kernel" for part in PARTS],
        rf"{key}\.bias": [f"attention/{part}/bias" for part in PARTS],
        **attention_rules({"out": "attention_output"}),
    }
