from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import h5py
import keras
import pytest

import keras_trainops as kt
from tests.checkpoints.old_keras_model import old_keras_model
from tests.helpers import assert_same, make_everything, randomise, refused, two_layers, weights

pytestmark = pytest.mark.once

DATA = Path(__file__).parents[2] / "data"


def test_reads_a_deflated_file() -> None:
    source, target = make_everything(two_layers)
    source.save("w.keras")
    with (
        zipfile.ZipFile("w.keras") as stored,
        zipfile.ZipFile("small.keras", "w", zipfile.ZIP_DEFLATED) as deflated,
    ):
        for name in stored.namelist():
            deflated.writestr(name, stored.read(name))
    kt.restore(target, "small.keras")
    assert_same(weights(target), weights(source))


def test_configuration_names_the_layers_of_a_directory() -> None:
    source, target = old_keras_model(), old_keras_model(1000.0)
    with zipfile.ZipFile(DATA / "keras_3_3.keras") as archive:
        archive.extractall("unzipped")
    kt.restore(target, "unzipped")
    assert_same(weights(target), weights(source))
    Path("unzipped/config.json").write_text("{")  # without names, keys are places in the file
    with kt.open_checkpoint("unzipped") as checkpoint:
        assert "layers/sequential/layers/dense_1/kernel" in checkpoint


def test_never_loads_nameless_layers_by_number() -> None:
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
    """Save as Keras did before 3.6."""

    model.save(path)
    with zipfile.ZipFile(path) as archive:
        archive.extractall("parts")
    with h5py.File("parts/model.weights.h5", "r+") as file:
        file.visititems(lambda _, item: item.attrs.pop("name", None) and None)
    with zipfile.ZipFile(path, "w") as archive:
        for name in ["model.weights.h5", *(["config.json"] if configuration else [])]:
            archive.write(Path("parts", name), name)
    shutil.rmtree("parts")


def test_ignores_a_configuration_that_counts_differently() -> None:
    """As if the writer had reached a layer by another path and not counted it."""
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
