"""Bad input of any kind is a clear error and leaves every variable unchanged, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import keras_trainops as kt
from tests.helpers import refused, two_layers, values, weights

pytestmark = pytest.mark.once


def arrays() -> dict[str, np.ndarray]:
    source = two_layers(seed=5)
    return {v.path: w for v, w in zip(source.weights, weights(source), strict=True)}


WEIGHTS: dict[str, np.ndarray] = {}
# Name -> function that writes the checkpoint, file to damage, path to restore from.
FORMATS: dict[str, tuple[Callable[[], Any], str, str]] = {
    "npz": (lambda: np.savez("w.npz", **WEIGHTS), "w.npz", "w.npz"),
    "TF2 data": (
        lambda: tf.train.Checkpoint(model=two_layers(seed=5)).write("tf2/ck"),
        "tf2/ck.data-00000-of-00001",
        "tf2/ck",
    ),
}


@pytest.fixture(autouse=True)
def some_weights() -> None:
    WEIGHTS.update(arrays())


def test_a_missing_file_names_its_neighbours(model: keras.Model) -> None:
    Path("model.npz").touch()
    with refused(model, r"no checkpoint at 'modl.npz'.*contains: model.npz", kt.RestoreError):
        kt.restore(model, "modl.npz")
    with refused(model, "Its directory does not exist either", kt.RestoreError):
        kt.restore(model, "nowhere/model.ckpt")


@pytest.mark.parametrize(
    ("prepare", "path", "message"),
    [
        (lambda: os.makedirs("d/e"), "d", "is not a checkpoint of a supported format.*contains: e"),
        (lambda: Path("f").write_bytes(b""), "f", "The file is empty"),
        (lambda: Path("f").write_bytes(b"hello" * 9), "f", "starts with the bytes b'hello"),
        (lambda: Path("f").write_bytes(b"\x80\x04pickle" * 9), "f", "is not a checkpoint of a"),
        (lambda: zip_of("f", "readme.txt"), "f", "zip archive without any .npy array"),
        (lambda: h5py.File("f", "w").close(), "f", "HDF5 file without Keras weights"),
        (lambda: saved_model_without_variables("d"), "d", "has no variables/variables.index"),
    ],
)
def test_other_files_are_not_checkpoints(
    model: keras.Model, prepare: Callable[[], Any], path: str, message: str
) -> None:
    prepare()
    with refused(model, message, kt.RestoreError):
        kt.restore(model, path)


def zip_of(path: str, member: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, "x")


def saved_model_without_variables(path: str) -> None:
    os.makedirs(path)
    Path(path, "saved_model.pb").touch()


@given(
    data=st.binary(max_size=200), head=st.sampled_from([b"", b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"])
)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_bytes_are_refused(data: bytes, head: bytes) -> None:
    model = two_layers()
    Path("any").write_bytes(head + data)
    with refused(model, "any", kt.RestoreError):
        kt.restore(model, "any")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(model: keras.Model, bad: float) -> None:
    array = np.ones((3, 2), "float32")
    array[2, 1] = bad
    with refused(model, r"head/kernel: the tensor .* has 1 values that are NaN or infinite"):
        kt.restore(model, {**arrays(), "head/kernel": array})


def test_pickled_objects_in_an_npz_are_never_loaded(model: keras.Model) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (os.mkdir, ("exploded",))

    np.savez("w.npz", **{**arrays(), "head/kernel": np.array([Bomb()] * 6).reshape(3, 2)})
    with refused(model, "! head/kernel: float32 in the model, object under key"):
        kt.restore(model, "w.npz")
    with (
        kt.open_checkpoint("w.npz") as checkpoint,
        pytest.raises(
            kt.RestoreError, match=r"'head/kernel' contains Python objects.* is not read"
        ),
    ):
        checkpoint["head/kernel"]
    assert not os.path.exists("exploded")


@pytest.mark.parametrize("link", ["soft", "external", "external data"])
def test_links_in_hdf5_lead_nowhere(model: keras.Model, link: str) -> None:
    two_layers(seed=5).save_weights("w.weights.h5")
    shutil.copy("w.weights.h5", "secret.h5")
    with h5py.File("w.weights.h5", "r+") as file:
        group = file["layers/dense/vars"]
        del group["0"]
        if link == "soft":
            group["0"] = h5py.SoftLink("/layers/dense_1/vars/0")
        elif link == "external":
            group["0"] = h5py.ExternalLink("secret.h5", "/layers/dense/vars/0")
        else:
            group.create_dataset("0", (4, 3), "float32", external=[("secret.h5", 0, 48)])
    with refused(model, "layers/dense/vars/0 is not a dataset of this file", kt.RestoreError):
        kt.restore(model, "w.weights.h5")


@pytest.mark.parametrize("link", ["layer", "inside a layer", "whole model", "virtual", "null"])
def test_links_in_legacy_hdf5_lead_nowhere(model: keras.Model, link: str) -> None:
    two_layers(seed=5).save("secret.h5")
    shutil.copy("secret.h5", "w.h5")
    place = {"layer": "head", "inside a layer": "head/head", "whole model": ""}.get(link, KERNEL)
    with h5py.File("w.h5", "r+") as file:
        place = f"model_weights/{place}".rstrip("/")
        del file[place]
        if link == "virtual":
            layout = h5py.VirtualLayout((3, 2), "float32")
            layout[:] = h5py.VirtualSource("secret.h5", place, (3, 2))
            file.create_virtual_dataset(place, layout)
        elif link == "null":
            file[place] = h5py.Empty("float32")
        else:
            file[place] = h5py.ExternalLink("secret.h5", place)
    message = "HDF5 file without Keras weights" if link == "whole model" else "of this file"
    with refused(model, message, kt.RestoreError):
        kt.restore(model, "w.h5")


KERNEL = "head/head/kernel"


def test_a_refused_file_can_be_written_again(model: keras.Model) -> None:
    """HDF5 cannot overwrite a file that an error keeps open."""
    with h5py.File("w.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(kt.RestoreError, match="without Keras weights") as held:
        kt.restore(model, "w.h5")
    h5py.File("w.h5", "w").close()
    assert held.value.__traceback__ is not None


@pytest.mark.parametrize(
    ("dtype", "size", "message"),
    [("F8_E8M0", 2, "Cannot read 'head/bias'.*NumPy has no dtype for F8_E8M0"),
     ("C64", 16, "! head/bias: float32 in the model, complex64 under key")],
)  # fmt: skip
def test_safetensors_of_other_dtypes_are_refused(
    model: keras.Model, dtype: str, size: int, message: str
) -> None:
    entry = {"head/bias": {"dtype": dtype, "shape": [2], "data_offsets": [0, size]}}
    header = json.dumps(entry).encode()
    Path("w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))
    with refused(model, message, kt.RestoreError):
        kt.restore(model, "w.safetensors", include="head/bias")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({None: np.ones(2)}, r"must have names \(strings\) as keys. Received: None"),
        (
            {"head/bias": [[1], [1, 2]]},
            "The value under 'head/bias' is not an array: .*inhomogeneous",
        ),
        ({}, "contains no weights"),
        ({"x": [1.0]}, r"No key of .* Keys look like \['x'\], variables like \['trunk/kernel'"),
    ],
)
def test_mappings_that_hold_no_weights(model: keras.Model, source: Any, message: str) -> None:
    with refused(model, message):
        kt.restore(model, source)


@pytest.mark.parametrize(("dtype", "bad"), [("int8", 300), ("uint8", -1), ("bool", 2)])
def test_integers_do_not_wrap_around(dtype: str, bad: int) -> None:
    class Table(keras.layers.Layer):
        def build(self, input_shape: Any) -> None:
            self.rows = self.add_weight(
                shape=(2,), dtype=dtype, trainable=False, name="rows", initializer="zeros"
            )

        def call(self, x: Any) -> Any:
            return x

    inputs = keras.Input((2,))
    model = keras.Model(inputs, Table(name="table")(inputs))
    with refused(model, f"table/rows: .* has values outside the range of {dtype}"):
        kt.restore(model, {"table/rows": [1, bad]})
    kt.restore(model, {"table/rows": [1, 0]})
    assert values(model)[0].tolist() == [1, 0]


@pytest.mark.parametrize("form", ["npz", "TF2 data"])
def test_damage_is_found_before_the_first_assignment(model: keras.Model, form: str) -> None:
    """Damage the last tensor of the file; its checksum shows when it is read."""
    write, file, path = FORMATS[form]
    write()
    good = weights(two_layers(seed=5))[-1].tobytes()
    data = Path(file).read_bytes()
    assert data.count(good) == 1
    Path(file).write_bytes(data.replace(good, bytes(len(good))))
    with refused(model, "(?i)(crc|checksum)", kt.RestoreError):
        kt.restore(model, path)
