"""Files of older Keras 3 and of Keras 2 into the same model in today's."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.checkpoints.formats.keras.config import owners_from_config
from tests.checkpoints.old_keras_model import old_keras_model
from tests.helpers import assert_same, randomise, refused, weights

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize("version", [f"3_{minor}" for minor in range(3, 15)])
def test_keras_files_of_older_versions(version: str) -> None:
    source, target = old_keras_model(), old_keras_model(1000.0)
    report = kt.restore(target, DATA / f"keras_{version}.keras")
    assert_same(weights(target), weights(source))
    assert report.unexpected == ()


def test_an_unzipped_file_without_names_has_them_from_its_configuration() -> None:
    source, target = old_keras_model(), old_keras_model(1000.0)
    with zipfile.ZipFile(DATA / "keras_3_3.keras") as archive:
        archive.extractall("unzipped")
    kt.restore(target, "unzipped")
    assert_same(weights(target), weights(source))
    Path("unzipped/config.json").write_text("{")  # without one there are places, and no guess
    with kt.open_checkpoint("unzipped") as checkpoint:
        assert "layers/sequential/layers/dense_1/kernel" in checkpoint


def test_a_weights_file_without_names_loads_what_is_unmistakable() -> None:
    """Only a layer that is the only one of its class and shapes is found."""
    inner, source = ["inner/a/kernel", "inner/a/bias", "inner/b/kernel", "inner/b/bias"], {}
    for variable in old_keras_model().weights:
        source[variable.path] = variable.numpy()
    model = old_keras_model(1000.0)
    path = DATA / "keras_3_3.weights.h5"
    with refused(model, "4 of 23 variables(?s:.*)missing: inner/", kt.RestoreError):
        kt.restore(model, path)
    report = kt.restore(model, path, exclude=["inner"])
    assert set(report.restored) == set(source) - set(inner)
    for variable in model.weights:
        if variable.path not in inner:
            np.testing.assert_array_equal(variable.numpy(), source[variable.path])


def test_layers_that_a_file_without_names_may_have_swapped_are_never_taken_by_number() -> None:
    def model(names: list[str], seed: int) -> keras.Model:
        x = inputs = keras.Input((3,))
        for name in names:
            x = keras.layers.Dense(3, name=name)(x)
        return randomise(keras.Model(inputs, keras.layers.Dense(2, name="head")(x)), seed)

    strip_names(model(["b", "a"], 1), "nameless.keras")
    with kt.open_checkpoint("nameless.keras") as checkpoint:  # the configuration has the names
        assert [key for key in checkpoint if key.endswith("bias")] == [
            "b/bias",
            "a/bias",
            "head/bias",
        ]
    strip_names(model(["b", "a"], 1), "nameless.keras", configuration=False)
    target = model(["a", "b"], 2)
    with refused(target, "4 of 6 variables(?s:.*)missing: ", kt.RestoreError):
        kt.restore(target, "nameless.keras")


def strip_names(model: keras.Model, path: str, configuration: bool = True) -> None:
    """Saves as Keras did before 3.6."""
    import h5py

    model.save(path)
    with zipfile.ZipFile(path) as archive:
        archive.extractall("parts")
    with h5py.File("parts/model.weights.h5", "r+") as file:
        file.visititems(lambda _, item: item.attrs.pop("name", None) and None)
    with zipfile.ZipFile(path, "w") as archive:
        for name in ["model.weights.h5", *(["config.json"] if configuration else [])]:
            archive.write(Path("parts", name), name)
    shutil.rmtree("parts")


def test_a_configuration_that_counts_otherwise_than_the_file_is_not_believed() -> None:
    """As where the writer had reached a layer before, by another way, and did not count it."""
    inputs = keras.Input((3,))
    x = keras.layers.Dense(3, name="a")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3, name="b")(x))
    strip_names(model, "w.keras")
    with zipfile.ZipFile("w.keras") as archive:
        config = json.loads(archive.read("config.json"))
        stored = archive.read("model.weights.h5")
    third = json.loads(json.dumps(config["config"]["layers"][-1]).replace('"b"', '"c"'))
    config["config"]["layers"].insert(1, third)
    with zipfile.ZipFile("w.keras", "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", stored)
    with kt.open_checkpoint("w.keras") as checkpoint:
        assert list(checkpoint) == [
            f"layers/{layer}/{name}"
            for layer in ("dense", "dense_1")
            for name in ("kernel", "bias")
        ]


def layer(class_name: str, name: str, **config: object) -> dict[str, object]:
    return {"class_name": class_name, "config": {"name": name, **config}}


def test_names_in_a_configuration() -> None:
    operation = {"class_name": "Dense", "module": "keras.src.ops.fake", "config": {"name": "op"}}
    cells = [layer("LSTMCell", "one"), layer("LSTMCell", "two")]
    stack = layer("RNN", "rnn", cell=layer("StackedRNNCells", "stack", cells=cells))
    both = layer("Bidirectional", "both", layer=layer("GRU", "g"), backward_layer=layer("GRU", "h"))
    model = layer(
        "Functional", "m", layers=[layer("Dense", "a"), operation, layer("Dense", "b"), stack, both]
    )
    assert owners_from_config(model) == {
        "layers/dense": "a",
        "layers/dense_1": "b",
        "layers/rnn": "rnn",
        "layers/rnn/cell": "stack",
        "layers/rnn/cell/cells/lstm_cell": "one",
        "layers/rnn/cell/cells/lstm_cell_1": "two",
        "layers/bidirectional": "both",
        "layers/bidirectional/forward_layer": "forward_g",
        "layers/bidirectional/forward_layer/cell": "gru_cell",
        "layers/bidirectional/backward_layer": "backward_h",
        "layers/bidirectional/backward_layer/cell": "gru_cell",
    }


@pytest.mark.parametrize("bad", [None, 3, [], {}, {"config": 1}, {"config": {"layers": [1, None]}}])
def test_what_is_no_configuration_names_nothing(bad: object) -> None:
    assert owners_from_config(bad) == {}


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


def test_recurrent_layers_of_keras_2() -> None:
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
        # A wrapper's variables had the wrapper's name; only the configuration tells the layer's.
        tells = source in ("k2.keras", "k2.weights.h5")
        kt.restore(model, source, rename=None if tells else {r"each/(\w+)": r"each/inner/\1"})
        assert_same(weights(model), expected)
