"""HDF5 files written like those of Keras 3 and of tf-keras, and loaded by both."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.checkpoints import ArraysCheckpoint
from keras_trainops.checkpoints.formats.hdf5.writer import write
from keras_trainops.checkpoints.storage.writing import UnwritableError
from tests.checkpoints.formats.hdf5.same_files import described
from tests.checkpoints.with_structure import WithStructure, rewrite
from tests.helpers import assert_same, randomise, rich_model, two_layers, weights

pytestmark = pytest.mark.once


def compiled(model: keras.Model) -> keras.Model:
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(np.ones((2, *model.input_shape[1:])), np.ones((2, 2)), verbose=0)
    return model


def test_writes_a_weights_file_like_that_of_keras() -> None:
    source, target = randomise(rich_model(1), 1), rich_model(2)
    compiled(source).save_weights("a.weights.h5")
    assert rewrite(write, "a.weights.h5", "b.weights.h5") == []
    assert described("a.weights.h5") == described("b.weights.h5")
    target.load_weights("b.weights.h5")
    assert_same(weights(target), weights(source))


def test_leaves_out_groups_that_lose_all_datasets() -> None:
    model = compiled(two_layers())
    model.save("a.keras")
    with zipfile.ZipFile("a.keras") as archive:
        archive.extract("model.weights.h5")
    state = ("optimizer", "metrics")
    rewrite(write, "model.weights.h5", "b.h5", lambda key: not key.startswith(state))
    everything = described("model.weights.h5").items()
    expected = {path: content for path, content in everything if not path.startswith(state)}
    assert described("b.h5") == expected
    assert "optimizer" in h5py.File("model.weights.h5")


@pytest.mark.parametrize("dtypes", [("bfloat16", "bfloat16"), ("bfloat16", "float32")])
def test_writes_bfloat16_as_keras_does(dtypes: tuple[str, str]) -> None:
    def model(seed: int, dtype: str) -> keras.Model:
        layers = [keras.Input((4,)), keras.layers.Dense(3, dtype=dtype, name="dense")]
        return randomise(keras.Sequential(layers, name="model"), seed)

    like, source, target = model(1, dtypes[0]), model(2, dtypes[1]), model(3, dtypes[1])
    like.save_weights("like.weights.h5")
    source.save_weights("a.weights.h5")
    with kt.open_checkpoint("like.weights.h5") as one, kt.open_checkpoint("a.weights.h5") as two:
        content = WithStructure(dict(two), one.structure())
    write(Path("b.weights.h5"), content, {key: key for key in content})
    assert described("a.weights.h5") == described("b.weights.h5")
    target.load_weights("b.weights.h5")
    assert_same(weights(target), weights(source))


def test_keeps_compression_and_attributes_of_all_kinds() -> None:
    with h5py.File("a.h5", "w") as file:
        file.attrs["layer_names"] = [b"dense", b"drop"]
        file.attrs["text"] = "größe"
        file.attrs["texts"] = np.array(["a", "bc"], h5py.string_dtype())
        file.attrs["numbers"] = np.arange(6, dtype=">i2").reshape(2, 3)
        file.attrs["number"] = np.float16(np.nan)
        file.attrs["raw"] = np.bytes_(b"\xff\xfe")
        file.attrs["keras_version"] = "2.11.0"
        dense = file.create_group("dense")
        dense.attrs["weight_names"] = [b"dense/kernel:0", b"dense/scale:0", b"dense/none:0"]
        dense.create_dataset("dense/kernel:0", data=np.ones((80, 90)), compression="gzip")
        dense["dense/scale:0"] = np.float32(3)
        dense["dense/none:0"] = np.ones((0, 2), "complex64")
        file.create_group("drop").attrs["weight_names"] = []
    assert rewrite(write, "a.h5", "b.h5") == []
    assert str(described("a.h5")) == str(described("b.h5"))  # NaN differs from itself


def test_says_what_it_cannot_describe() -> None:
    two_layers().save_weights("a.weights.h5")
    with h5py.File("a.weights.h5", "a") as file:
        file.attrs["nothing"] = h5py.Empty("f4")
    assert rewrite(write, "a.weights.h5", "b.weights.h5") == [
        "The attribute 'nothing' of '' was left out."
    ]


def tf_keras_model(seed: int) -> Any:
    import tf_keras

    inputs = tf_keras.Input((4,))
    x = tf_keras.layers.Dense(4, name="first")(inputs)
    x = tf_keras.layers.BatchNormalization(name="norm")(x)
    x = tf_keras.layers.LSTM(3, name="lstm")(x[:, None])
    model = tf_keras.Model(inputs, tf_keras.layers.Dense(2, name="head")(x))
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    model.compile("adam", "mse")
    model.fit(np.ones((2, 4)), np.ones((2, 2)), verbose=0)
    return model


def arrays(model: Any) -> list[np.ndarray]:
    return model.get_weights()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tf_keras_loads_its_weights_and_models() -> None:
    import tf_keras

    source, target = tf_keras_model(1), tf_keras_model(2)
    source.save_weights("a.h5")
    assert rewrite(write, "a.h5", "b.h5") == []
    assert described("a.h5") == described("b.h5")
    target.load_weights("b.h5")
    assert_same(arrays(target), arrays(source))
    source.save("model.h5")
    assert rewrite(write, "model.h5", "same.h5") == []
    assert described("model.h5") == described("same.h5")
    loaded = tf_keras.models.load_model("same.h5")
    assert_same(arrays(loaded), arrays(source))
    assert_same(
        [variable.numpy() for variable in loaded.optimizer.variables],
        [variable.numpy() for variable in source.optimizer.variables],
    )
    rewrite(write, "model.h5", "plain.h5", lambda key: not key.startswith("optimizer_weights"))
    assert "optimizer_weights" not in h5py.File("plain.h5")
    assert_same(arrays(tf_keras.models.load_model("plain.h5")), arrays(source))


def test_lists_only_the_weights_that_are_written() -> None:
    source = tf_keras_model(1)
    source.save_weights("a.h5")
    rewrite(write, "a.h5", "b.h5", lambda key: not key.startswith("lstm") and key != "head/bias")
    with kt.open_checkpoint("b.h5") as checkpoint:
        assert [key for key in checkpoint if "norm" not in key] == [
            *("first/kernel", "first/bias", "head/kernel")
        ]
    with h5py.File("b.h5") as file:
        assert file.attrs["layer_names"].tolist() == [
            name for name in h5py.File("a.h5").attrs["layer_names"].tolist() if name != "lstm"
        ]


def test_refuses_what_has_no_place_in_the_file() -> None:
    two_layers().save_weights("a.weights.h5")
    with kt.open_checkpoint("a.weights.h5") as checkpoint:
        structure = checkpoint.structure()
    new = Path("b.weights.h5")

    def refuses(match: str, content: Any, names: Iterable[tuple[str, str]]) -> None:
        with pytest.raises(UnwritableError, match=match):
            write(new, content, dict(names))
        assert not new.exists()

    plain = ArraysCheckpoint({"w": np.ones(2)}, "arrays")
    refuses(r"only written like a file of Keras.*`model.save_weights", plain, [("w", "w")])
    one = WithStructure({"trunk/bias": np.ones(3), "w": np.ones(2)}, structure)
    refuses("'w' has no place", one, [("w", "w")])
    refuses("'trunk/bias' cannot be named 'x'", one, [("x", "trunk/bias")])
    small = WithStructure({"trunk/bias": np.ones(3, ml_dtypes.float8_e5m2)}, structure)
    refuses("no dtype for 'trunk/bias', which is float8_e5m2", small, [("trunk/bias",) * 2])


def test_refuses_layouts_of_other_versions() -> None:
    with h5py.File("k1.h5", "w") as file:
        file.attrs["layer_names"] = [b"gru_1", b"dense_1"]
        for layer, names in (("gru_1", _GATES), ("dense_1", ["dense_1_W", "dense_1_b"])):
            group = file.create_group(layer)
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name in names:
                group[name] = np.ones((4,) if "_b" in name else (4, 4), "float32")
    with pytest.raises(UnwritableError, match="'gru_1/gru_cell/kernel' is stored in another"):
        rewrite(write, "k1.h5", "new.h5")
    rewrite(write, "k1.h5", "new.h5", lambda key: key.startswith("dense_1"))
    assert described("new.h5")["dense_1"] == described("k1.h5")["dense_1"]


_GATES = [f"gru_1_{kind}_{gate}" for gate in "zrh" for kind in "WUb"]


def test_writes_large_tensors_piece_by_piece() -> None:
    model = keras.Sequential([keras.Input((500,)), keras.layers.Dense(600, name="wide")])
    randomise(model, 1).save_weights("a.weights.h5")
    moved: list[int] = []
    with kt.open_checkpoint("a.weights.h5") as checkpoint:
        write(Path("b.weights.h5"), checkpoint, {key: key for key in checkpoint}, moved.append)
    assert sum(moved) == 4 * (500 * 600 + 600)
    assert max(moved) <= 1 << 20
    assert described("a.weights.h5") == described("b.weights.h5")
