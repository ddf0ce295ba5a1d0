"""Files of older Keras 3 and of Keras 2, restored into today's models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.checkpoints.old_keras_model import old_keras_model
from tests.helpers import assert_same, randomise, refused, value, weights

pytestmark = pytest.mark.once

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize("version", [f"3_{minor}" for minor in range(3, 15)])
def test_restores_files_of_older_keras_3(version: str) -> None:
    source, target = old_keras_model(), old_keras_model(1000.0)
    report = kt.restore(target, DATA / f"keras_{version}.keras")
    assert_same(weights(target), weights(source))
    assert report.unexpected == ()


RECURRENT_KERAS_2 = """
import numpy as np, tf_keras
L = tf_keras.layers
inputs = tf_keras.Input((5, 2))
x = L.Bidirectional(L.LSTM(3, return_sequences=True, name="lstm"), name="both")(inputs)
x = L.TimeDistributed(L.Dense(3, name="inner"), name="each")(x)
model = tf_keras.Model(inputs, L.GRU(3, name="gru")(x))
rng = np.random.default_rng(0)
model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
model.save("k2.keras"); model.save_weights("k2.h5"); model.save_weights("k2.weights.h5")
model.save_weights("k2/ck"); model.save("k2_saved", save_format="tf")
np.savez("expected.npz", *model.get_weights())
"""


def test_restores_recurrent_layers_of_keras_2() -> None:
    run = subprocess.run([sys.executable, "-c", RECURRENT_KERAS_2], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    with np.load("expected.npz") as arrays:
        expected = [arrays[name] for name in arrays.files]
    layers = keras.layers
    for source in ("k2.keras", "k2.h5", "k2.weights.h5", "k2/ck", "k2_saved"):
        inputs = keras.Input((5, 2))
        x = layers.Bidirectional(layers.LSTM(3, return_sequences=True, name="lstm"), name="both")(
            inputs
        )
        x = layers.TimeDistributed(layers.Dense(3, name="inner"), name="each")(x)
        model = randomise(keras.Model(inputs, layers.GRU(3, name="gru")(x)), 1)
        # Wrappers named their layer's variables; only the configuration has the layer's name.
        has_names = source in ("k2.keras", "k2.weights.h5")
        kt.restore(model, source, rename=None if has_names else {r"each/(\w+)": r"each/inner/\1"})
        assert_same(weights(model), expected)


TF_KERAS = """
import sys
import numpy as np, tf_keras
def build():
    dense = tf_keras.layers.Dense
    inner = tf_keras.Sequential([dense(3, name="a"), dense(3, name="b")], name="inner")
    inputs = tf_keras.Input((4,))
    x = tf_keras.layers.BatchNormalization(name="norm")(inner(inputs))
    return tf_keras.Model(inputs, tf_keras.layers.Dense(2, name="head")(x))
model = build()
if "frozen" in sys.argv:
    model.get_layer("inner").layers[0].trainable = False  # changes the order in the file
rng = np.random.default_rng(0)
for w in model.weights:
    w.assign(rng.normal(size=w.shape))
model.compile("adam", "mse")
model.train_on_batch(np.ones((2, 4)), np.ones((2, 2)))
model.save("k2_model.h5"); model.save_weights("k2.h5"); model.save_weights("k2_tf/ck")
model.save("k2_saved", save_format="tf"); model.save_weights("k2.weights.h5")
model.save("k2.keras")
class Top(tf_keras.Model):
    def __init__(self):
        super().__init__()
        self.d = tf_keras.layers.Dense(2, name="d")
        self.scale = self.add_weight(name="scale", shape=(1,), initializer="ones")
    def call(self, x):
        return self.d(x) * self.scale
top = Top(); top(np.ones((1, 3))); top.save_weights("k2_top.h5")
np.savez("k2.npz", **{w.name.removesuffix(":0"): w.numpy() for w in model.weights})
"""


def keras3_twin() -> keras.Model:
    inputs = keras.Input((4,))
    x = keras.Input((4,))
    y = keras.layers.Dense(3, name="b")(keras.layers.Dense(3, name="a")(x))
    x = keras.Model(x, y, name="inner")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    return randomise(keras.Model(inputs, keras.layers.Dense(2, name="head")(x)), 3)


@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen sublayer"])
def test_restores_every_kind_of_keras_2_file(frozen: bool) -> None:
    command = [sys.executable, "-c", TF_KERAS, *(["frozen"] if frozen else [])]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    expected = np.load("k2.npz")
    for source in ("k2_model.h5", "k2.h5", "k2_tf/ck", "k2_tf", "k2_saved", "k2.keras"):
        model = keras3_twin()
        report = kt.restore(model, source)
        assert report.unexpected == (), source
        for variable in model.weights:
            np.testing.assert_array_equal(value(variable), expected[variable.path], source)
    # This format has no layer names: it needs rules and is never loaded by position.
    rules = {
        r"layers/dense/(\w+)": r"head/\1",
        r"layers/sequential/layers/dense/(\w+)": r"a/\1",
        r"layers/sequential/layers/dense_1/(\w+)": r"b/\1",
        r"layers/batch_normalization/(\w+)": r"norm/\1",
    }
    model = keras3_twin()
    with refused(model, "missing: a/", kt.RestoreError):
        kt.restore(model, "k2.weights.h5")
    kt.restore(model, "k2.weights.h5", rename=rules)
    for variable in model.weights:
        np.testing.assert_array_equal(value(variable), expected[variable.path])
    with kt.open_checkpoint("k2_top.h5") as checkpoint:  # includes the model's own variable
        assert [key.rpartition("/")[2] for key in checkpoint] == ["kernel", "bias", "scale"]
        assert "scale" in checkpoint
