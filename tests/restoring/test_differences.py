"""A network that fits by names and computes something else is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

import keras_trainops as kt
from tests.helpers import value

pytestmark = pytest.mark.once


def network(epsilon: float = 1e-3, padding: str = "same", activation: str = "relu") -> keras.Model:
    layers = [
        keras.Input((8, 8, 3)),
        keras.layers.Conv2D(4, 3, padding=padding, activation=activation, name="conv"),
        keras.layers.BatchNormalization(epsilon=epsilon, name="bn"),
    ]
    return keras.Sequential(layers)


def transformer(heads: int = 2, epsilon: float = 1e-5, activation: str = "gelu") -> keras.Model:
    x = inputs = keras.Input((3, 12))
    query = keras.layers.EinsumDense(
        "abc,cde->abde", (None, heads, 12 // heads), bias_axes="de", name="query"
    )
    x = keras.layers.Reshape((3, 12))(query(x))
    x = keras.layers.LayerNormalization(epsilon=epsilon, name="norm")(x)
    x = keras.layers.Dense(5, activation=activation, name="intermediate_dense")(x)
    return keras.Model(inputs, x)


FILE = {
    "query.weight": (12, 12),
    "query.bias": (12,),
    "norm.weight": (12,),
    "norm.bias": (12,),
    "intermediate_dense.weight": (5, 12),
    "intermediate_dense.bias": (5,),
}


def written(directory: Path, **config: Any) -> Path:
    tensors = {name: np.ones(shape, "float32") for name, shape in FILE.items()}
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory / "model.safetensors"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"epsilon": 1e-5}, "epsilon is 1e-05 in the file, but 0.001 in 'bn'"),
        ({"padding": "valid"}, "padding is valid in the file, but same in 'conv'"),
        ({"activation": "tanh"}, "activation is tanh in the file, but relu in 'conv'"),
    ],
)
def test_a_keras_file_tells_what_its_layers_compute(
    changed: dict[str, Any], told: str, tmp_path: Path
) -> None:
    source, model = network(**changed), network()
    source.save(tmp_path / "model.keras")
    assert kt.suggest_rename(model, tmp_path / "model.keras").notes == (told,)
    with pytest.warns(UserWarning, match=told):
        kt.restore(model, tmp_path / "model.keras")
    np.testing.assert_array_equal(value(model.weights[0]), value(source.weights[0]))


def test_an_equal_network_is_not_told(tmp_path: Path) -> None:
    network().save(tmp_path / "model.keras")
    kt.restore(network(), tmp_path / "model.keras")  # a warning would be an error


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"layer_norm_eps": 1e-12}, r"layer_norm_eps=1e-12, but .* have epsilon=1e-05"),
        ({"num_attention_heads": 3}, "num_attention_heads=3, but the model has 2 heads"),
        ({"hidden_act": "gelu_new"}, "hidden_act='gelu_new', but .* has activation='gelu'"),
    ],
)
def test_a_config_beside_the_file_tells_what_the_network_computes(
    config: dict[str, Any], told: str, tmp_path: Path
) -> None:
    model, file = transformer(), written(tmp_path, **config)
    with pytest.warns(UserWarning, match=told):
        kt.restore(model, file, rename="auto")
    (note,) = kt.suggest_rename(model, file).notes
    assert f"# note: {note}" in str(kt.suggest_rename(model, file))


def test_a_config_that_agrees_is_not_told(tmp_path: Path) -> None:
    file = written(tmp_path, layer_norm_eps=1e-5, num_attention_heads=2, hidden_act="gelu")
    kt.restore(transformer(), file, rename="auto")


@pytest.mark.parametrize("text", ["[1, 2]", "{", '{"layer_norm_eps": "small", "hidden_act": 3}'])
def test_a_config_that_means_nothing_is_ignored(text: str, tmp_path: Path) -> None:
    file = written(tmp_path)
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    kt.restore(transformer(), file, rename="auto")
