"""Each kind of bad input is a clear error, and every variable is bit for bit what it was."""

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


@pytest.fixture
def model() -> keras.Model:
    """A compiled model, so that optimizer variables are watched too."""
    model = two_layers(name="net")
    model.compile("adam", "mse")
    model.train_on_batch(np.ones((2, 4)), np.ones((2, 2)))
    return model


def arrays() -> dict[str, np.ndarray]:
    source = two_layers(seed=5)
    return {v.path: w for v, w in zip(source.weights, weights(source), strict=True)}


WEIGHTS: dict[str, np.ndarray] = {}
# What to write, which file to damage, and what to restore from.
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


def test_a_missing_file_names_what_there_is(model: keras.Model) -> None:
    Path("model.npz").touch()
    with refused(model, r"no checkpoint at 'modl.npz'.*holds: model.npz", kt.RestoreError):
        kt.restore(model, "modl.npz")
    with refused(model, "Its directory does not exist either", kt.RestoreError):
        kt.restore(model, "nowhere/model.ckpt")


@pytest.mark.parametrize(
    ("prepare", "path", "message"),
    [
        (lambda: os.makedirs("d/e"), "d", "is no checkpoint of a supported format.*holds: e"),
        (lambda: Path("f").write_bytes(b""), "f", "The file is empty"),
        (lambda: Path("f").write_bytes(b"hello" * 9), "f", "starts with the bytes b'hello"),
        (lambda: Path("f").write_bytes(b"\x80\x04pickle" * 9), "f", "is no checkpoint of a"),
        (lambda: zip_of("f", "readme.txt"), "f", "zip archive without any .npy array"),
        (lambda: h5py.File("f", "w").close(), "f", "HDF5 file without Keras weights"),
        (lambda: saved_model_without_variables("d"), "d", "has no variables/variables.index"),
    ],
)
def test_what_is_no_checkpoint(
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
def test_values_that_are_not_finite(model: keras.Model, bad: float) -> None:
    array = np.ones((3, 2), "float32")
    array[2, 1] = bad
    with refused(model, r"head/kernel: the tensor .* has 1 values that are NaN or infinite"):
        kt.restore(model, {**arrays(), "head/kernel": array})


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.full((3, 2), "a"), "<U1"),
        (np.full((3, 2), None), "object"),
        (np.ones((3, 2), "complex64"), "complex64"),
        (np.full((3, 2), "2020-01-01", "datetime64[D]"), "datetime64"),
    ],
)
def test_arrays_that_are_no_numbers(model: keras.Model, array: np.ndarray, dtype: str) -> None:
    with refused(model, f"! head/kernel: float32 in the model, {dtype}.* under key 'head/kernel'"):
        kt.restore(model, {**arrays(), "head/kernel": array})


def test_floats_do_not_become_integers() -> None:
    class Table(keras.layers.Layer):
        def build(self, input_shape: Any) -> None:
            self.rows = self.add_weight(shape=(2,), dtype="int32", trainable=False, name="rows")

        def call(self, x: Any) -> Any:
            return x + keras.ops.cast(self.rows, "float32")

    inputs = keras.Input((2,))
    model = keras.Model(inputs, Table(name="table")(inputs))
    with refused(model, "! table/rows: int32 in the model, float64 under key"):
        kt.restore(model, {"table/rows": [0.5, 1.0]})
    kt.restore(model, {"table/rows": [3, 4]})
    assert values(model)[0].tolist() == [3, 4]


def test_pickled_objects_in_an_npz_are_never_loaded(model: keras.Model) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (os.mkdir, ("exploded",))

    np.savez("w.npz", **{**arrays(), "head/kernel": np.array([Bomb()] * 6).reshape(3, 2)})
    with refused(model, "! head/kernel: float32 in the model, object under key"):
        kt.restore(model, "w.npz")
    with (
        kt.open_checkpoint("w.npz") as checkpoint,
        pytest.raises(kt.RestoreError, match=r"'head/kernel' holds Python objects, .* is not read"),
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
    with refused(model, "layers/dense/vars/0 is no data set of this file", kt.RestoreError):
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
    """An HDF5 file that stayed open, as long as somebody holds the error, could not be."""
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
def test_dtypes_of_safetensors_that_are_no_weights(
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
        ({"head/bias": [[1], [1, 2]]}, "The value under 'head/bias' is no array: .*inhomogeneous"),
        ({}, "holds no weights"),
        ({"x": [1.0]}, r"No key of .* Keys look like \['x'\], variables like \['trunk/kernel'"),
    ],
)
def test_mappings_that_hold_no_weights(model: keras.Model, source: Any, message: str) -> None:
    with refused(model, message):
        kt.restore(model, source)


def test_shapes_that_all_differ_are_told_and_no_other_reason(model: keras.Model) -> None:
    with refused(model, r"(?s)^((?!No key).)*! head/bias: \(2,\) in the model, \(3,\) under key"):
        kt.restore(model, {"head/bias": np.ones(3)}, on_mismatch="ignore")


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
    """The last tensor of the file is damaged; checksums tell when it is read."""
    write, file, path = FORMATS[form]
    write()
    good = weights(two_layers(seed=5))[-1].tobytes()
    data = Path(file).read_bytes()
    assert data.count(good) == 1
    Path(file).write_bytes(data.replace(good, bytes(len(good))))
    with refused(model, "(?i)(crc|checksum)", kt.RestoreError):
        kt.restore(model, path)


def test_a_warning_that_is_made_an_error_changes_nothing(model: keras.Model) -> None:
    with refused(model, "unused: extra", UserWarning):  # the tests make all warnings errors
        kt.restore(model, {**arrays(), "extra": np.ones(2)}, on_unexpected="warn")


def test_a_model_without_variables_says_how_to_build_it() -> None:
    model = keras.Sequential([keras.layers.Dense(2)], name="lazy")
    with pytest.raises(kt.RestoreError, match=r"'lazy' has no variables yet.*Call it on a batch"):
        kt.restore(model, {"dense/bias": np.ones(2)})


def test_layers_that_are_not_built_yet_are_told() -> None:
    class Net(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.later = keras.layers.Dense(2, name="u"), keras.layers.Dense(2, name="l")

        def call(self, x: Any) -> Any:
            return self.used(x)

    model = Net()
    with pytest.warns(UserWarning, match="unbuilt state"):  # Keras's own
        model(np.ones((1, 3)))
    with pytest.warns(UserWarning, match="not built yet, so nothing was restored into them: l"):
        report = kt.restore(model, {"u/bias": np.ones(2)})
    assert report.unbuilt == ("l",)


@pytest.mark.parametrize("bad", [3, None, ["a.npz"], object()])
def test_what_is_no_source_or_model_is_refused(model: keras.Model, bad: Any) -> None:
    with refused(model, "`source` must be the path of a checkpoint, a mapping"):
        kt.restore(model, bad)
    with pytest.raises(ValueError, match="`model` must be a Keras model"):
        kt.restore(bad, {})
