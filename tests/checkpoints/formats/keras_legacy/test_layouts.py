"""Layouts of Keras 1 and 2, compared with what `tf_keras` loads."""

from __future__ import annotations

import subprocess
import sys

import h5py
import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import randomise, value

pytestmark = pytest.mark.once

# Save CuDNN layers, load the file into normal layers, and save their values.
CUDNN = """
import numpy as np, tf_keras
from tf_keras.src.layers.rnn.cudnn_gru import CuDNNGRU
from tf_keras.src.layers.rnn.cudnn_lstm import CuDNNLSTM
L = tf_keras.layers
def build(lstm, gru):
    inputs = tf_keras.Input((5, 2))
    x = L.Bidirectional(lstm(3, return_sequences=True, name="lstm"), name="both")(inputs)
    return tf_keras.Model(inputs, gru(3, name="gru")(x))
source = build(CuDNNLSTM, CuDNNGRU)
rng = np.random.default_rng(0)
source.set_weights([rng.normal(size=w.shape) for w in source.get_weights()])
source.save_weights("cudnn.h5")
target = build(L.LSTM, L.GRU)
target.load_weights("cudnn.h5")
np.savez("expected.npz", **{w.name.removesuffix(":0"): w.numpy() for w in target.weights})
"""


KERAS_1 = """
import numpy as np, tf_keras
L = tf_keras.layers
inputs = tf_keras.Input((5, 4))
x = L.LSTM(3, return_sequences=True, name="lstm_1")(inputs)
x = L.GRU(2, reset_after=False, name="gru_1")(x)
x = L.BatchNormalization(name="batchnormalization_1")(L.Dense(6, name="dense_1")(x))
x = L.Conv2D(5, (1, 2), name="convolution2d_1")(L.Reshape((1, 2, 3))(x))
model = tf_keras.Model(inputs, x)
model.load_weights("keras1.h5")
np.savez("expected.npz", **{w.name.removesuffix(":0"): w.numpy() for w in model.weights})
"""


def run(code: str) -> dict[str, np.ndarray]:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return dict(np.load("expected.npz"))


def test_converts_cudnn_layers() -> None:
    expected = run(CUDNN)
    layers = keras.layers
    inputs = keras.Input((5, 2))
    x = layers.Bidirectional(layers.LSTM(3, return_sequences=True, name="lstm"), name="both")(
        inputs
    )
    model = randomise(keras.Model(inputs, layers.GRU(3, name="gru")(x)), 1)
    report = kt.restore(model, "cudnn.h5")
    assert len(expected) == len(model.weights) == len(report.restored)
    for variable in model.weights:
        np.testing.assert_array_equal(value(variable), expected[variable.path], variable.path)
    with kt.open_checkpoint("cudnn.h5") as checkpoint:
        assert all(checkpoint.dtype(key) == np.dtype("float32") for key in checkpoint)
        assert all(checkpoint.shape(key) == checkpoint[key].shape for key in checkpoint)


def write(path: str, layers: dict[str, dict[str, np.ndarray]], **attributes: str) -> None:
    """Write a legacy weights file as Keras did."""
    with h5py.File(path, "w") as file:
        file.attrs.update(attributes)
        file.attrs["layer_names"] = [layer.encode() for layer in layers]
        for layer, arrays in layers.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = [name.encode() for name in arrays]
            for name, array in arrays.items():
                group[name] = array


def test_converts_keras_1_like_tf_keras() -> None:
    rng = np.random.default_rng(0)

    def gates(name: str, letters: str, inputs: int, units: int) -> dict[str, np.ndarray]:
        shapes = {"W": (inputs, units), "U": (units, units), "b": (units,)}
        return {f"{name}_{k}_{g}": rng.normal(size=shapes[k]) for g in letters for k in shapes}

    norm = "batchnormalization_1"
    layers = {
        "lstm_1": gates("lstm_1", "icfo", 4, 3),  # the order of gates in Keras 1
        "gru_1": gates("gru_1", "zrh", 3, 2),
        "dense_1": {"dense_1_W": rng.normal(size=(2, 6)), "dense_1_b": rng.normal(size=6)},
        norm: {
            f"{norm}_{k}": rng.normal(size=6)
            for k in ("gamma", "beta", "running_mean", "running_std")
        },
        "convolution2d_1": {
            "convolution2d_1_W": rng.normal(size=(1, 2, 3, 5)),
            "convolution2d_1_b": rng.normal(size=5),
        },
    }
    write("keras1.h5", layers)
    expected = run(KERAS_1)
    with kt.open_checkpoint("keras1.h5") as checkpoint:
        assert set(checkpoint) == set(expected)
        for key, array in expected.items():
            assert checkpoint.shape(key) == array.shape
            np.testing.assert_array_equal(checkpoint[key].astype("float32"), array, key)


def test_refuses_keras_1_kernels_of_unknown_order() -> None:
    kernel = np.ones((5, 3, 1, 2))  # filters first, as in Theano
    write("keras1.h5", {"conv_1": {"conv_1_W": kernel, "conv_1_b": np.ones(5)}})
    with kt.open_checkpoint("keras1.h5") as checkpoint:
        assert checkpoint["conv_1/bias"].tolist() == [1] * 5
        with pytest.raises(kt.RestoreError, match="'conv_1/kernel' may be in Theano's axis order"):
            checkpoint["conv_1/kernel"]


def test_flips_kernels_of_theano() -> None:
    rng = np.random.default_rng(0)
    kernel, other = rng.normal(size=(3, 3, 2, 4)), rng.normal(size=(3, 2, 4))
    layers = {
        "conv": {"conv/kernel:0": kernel, "conv/bias:0": np.ones(4)},
        "local": {"local/kernel:0": other},
    }
    write("theano.h5", layers, keras_version="2.1.0", backend="theano")
    with kt.open_checkpoint("theano.h5") as checkpoint:
        np.testing.assert_array_equal(checkpoint["conv/kernel"], kernel[::-1, ::-1])
        with pytest.raises(kt.RestoreError, match="'local/kernel' was written on Theano"):
            checkpoint["local/kernel"]
    write("tensorflow.h5", layers, keras_version="2.1.0", backend="tensorflow")
    with kt.open_checkpoint("tensorflow.h5") as checkpoint:
        np.testing.assert_array_equal(checkpoint["conv/kernel"], kernel)
        np.testing.assert_array_equal(checkpoint["local/kernel"], other)


@pytest.mark.parametrize(
    ("version", "key"), [("2.2.4-tf", "lstm/lstm_cell/kernel"), ("2.21.0", "lstm/kernel")]
)
def test_adds_the_cell_of_recurrent_layers(version: str, key: str) -> None:
    arrays = {
        "lstm/kernel:0": np.ones((2, 12)),
        "lstm/recurrent_kernel:0": np.ones((3, 12)),
        "lstm/bias:0": np.ones(12),
    }
    cell = {f"rnn/mine_cell/{name[5:]}": array for name, array in arrays.items()}
    write("w.h5", {"lstm": arrays, "rnn": cell}, keras_version=version)
    with kt.open_checkpoint("w.h5") as checkpoint:
        assert next(iter(checkpoint)) == key
        assert "rnn/mine_cell/kernel" in checkpoint


def test_refuses_two_weights_of_one_name() -> None:
    write("w.h5", {"d": {"d_W": np.ones((2, 3)), "d/kernel": np.ones((2, 3))}})
    with pytest.raises(kt.RestoreError, match=r"Two weights of the file .* 'd/kernel'"):
        kt.open_checkpoint("w.h5")
