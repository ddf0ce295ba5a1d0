"""Tensors read as plain bytes are what the format's own library reads."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

import keras_trainops as kt
from keras_trainops.checkpoints import checkpoint
from keras_trainops.checkpoints.storage import raw

RNG = np.random.default_rng(0)
ARRAYS = {
    "a/long": RNG.normal(size=(7, checkpoint.PIECE // 3)).astype("f4"),  # more than two pieces
    "a/whole": RNG.normal(size=(2, checkpoint.PIECE)),
    "a/half": RNG.normal(size=(3, 5)).astype(ml_dtypes.bfloat16),
    "a/flags": np.array([True, False, True]),
    "a/scalar": np.array(3, "int32"),
    "a/none": np.zeros((0, 4), "f4"),
}


def write_h5(path: str) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = ["a"]
        group = file.create_group("a")
        more = {
            "chunked": {"chunks": (1, 7)},
            "deflated": {"compression": "gzip"},
            "checked": {"chunks": (2, 7), "fletcher32": True},
            "big": {"dtype": ">f4"},
        }
        for name, options in more.items():
            group.create_dataset(name, data=np.arange(28, dtype="f4").reshape(4, 7), **options)
        for key, array in ARRAYS.items():
            if array.dtype != ml_dtypes.bfloat16:
                group[key.removeprefix("a/")] = array
        group.attrs["weight_names"] = list(group)


WRITERS: dict[str, Callable[[str], Any]] = {
    "w.h5": write_h5,
    "w.safetensors": lambda path: safetensors.numpy.save_file(ARRAYS, path),
    "w.npz": lambda path: np.savez(path, **{k: v for k, v in ARRAYS.items() if "half" not in k}),
    "tf/ck": lambda path: write_tf(path),
    "tf/v1": lambda path: write_tf(path, "half", write_version=tf.compat.v1.train.SaverDef.V1),
}


def write_tf(path: str, without: str = "-", **options: Any) -> None:
    os.makedirs("tf")
    arrays = {k: v for k, v in ARRAYS.items() if without not in k and "none" not in k}
    arrays |= {f"a/many{i}": np.full(3, i, "f4") for i in range(400)}  # of several blocks
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = [
            tf.compat.v1.get_variable(k, initializer=v, use_resource=True)
            for k, v in arrays.items()
        ]
        session.run([v.initializer for v in variables])
        saver = tf.compat.v1.train.Saver(**options)
        saver.save(session, path, write_meta_graph=False, write_state=False)


@pytest.mark.parametrize("path", WRITERS)
def test_pieces_and_wholes_are_what_the_library_reads(path: str) -> None:
    WRITERS[path](path)
    with kt.open_checkpoint(path) as checkpoint:
        assert len(checkpoint) >= 5
        for key in checkpoint:
            expected = checkpoint._read(key)
            np.testing.assert_array_equal(checkpoint[key], expected)
            np.testing.assert_array_equal(checkpoint.again(key), expected)
            assert checkpoint[key].dtype == checkpoint.dtype(key)
            assert checkpoint[key].flags.writeable
            pieces = [piece.copy() for piece in checkpoint.pieces(key)]
            assert all(piece.size <= checkpoint.PIECE for piece in pieces)
            joined = np.concatenate(pieces) if pieces else np.zeros(0)
            np.testing.assert_array_equal(joined.reshape(expected.shape), expected)
        plain = {key for key in checkpoint if checkpoint._extent(key) is not None}
    if path == "w.h5":
        assert {"a/long", "a/whole", "a/big"} <= plain
        assert not plain & {"a/chunked", "a/deflated", "a/checked"}
    else:
        all_plain = path in ("w.safetensors", "tf/ck")
        assert plain == (set(checkpoint) if all_plain else set())


@pytest.mark.parametrize("extension", [True, False])
def test_checksums_of_plain_bytes(extension: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is nothing fast to compute them with, TensorFlow's reader compares them."""
    if extension:
        pytest.importorskip("google_crc32c")
        assert raw.can_check(), "google-crc32c has no C code here"
    else:
        monkeypatch.setattr(raw, "crc32c", lambda: None)
    WRITERS["tf/ck"]("tf/ck")
    with kt.open_checkpoint("tf/ck") as checkpoint:
        good = {key: checkpoint[key] for key in checkpoint}
        assert {checkpoint.in_pieces(key) for key in checkpoint} == {extension}
        big = max(checkpoint, key=lambda key: good[key].nbytes)
        places = {key: checkpoint._extent(key) for key in checkpoint}
    data = "tf/ck.data-00000-of-00001"
    content = bytearray(Path(data).read_bytes())
    content[places[big].offset + good[big].nbytes - 1] ^= 1  # in the last piece
    Path(data).write_bytes(content)
    with kt.open_checkpoint("tf/ck") as checkpoint:
        with pytest.raises(kt.RestoreError, match=f"(?i)Cannot read '{big}'.*checksum"):
            list(checkpoint.pieces(big))
        for key in set(checkpoint) - {big}:
            assert sum(piece.size for piece in checkpoint.pieces(key)) == good[key].size


@pytest.mark.parametrize("path", ["w.h5", "w.safetensors"])
def test_a_file_that_is_cut_short_while_it_is_open(path: str) -> None:
    WRITERS[path](path)
    with kt.open_checkpoint(path) as checkpoint:
        size = os.path.getsize(path)
        checkpoint.require_unchanged()
        os.truncate(path, size // 2)
        with pytest.raises(kt.RestoreError, match=f"'{path}' was changed while it was read"):
            checkpoint.require_unchanged()
        with pytest.raises(kt.RestoreError, match=r"the file ends .* bytes too early"):
            for key in checkpoint:
                checkpoint[key]
        with pytest.raises(kt.RestoreError, match=r"the file ends .* bytes too early"):
            for key in checkpoint:
                list(checkpoint.pieces(key))


@pytest.mark.parametrize("path", [path for path in WRITERS if "tf" not in path])
def test_no_file_stays_open(path: str) -> None:
    WRITERS[path](path)
    before = sorted(os.listdir("/proc/self/fd"))
    with kt.open_checkpoint(path) as checkpoint:
        list(checkpoint.values())
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("dtype", ["f4", "f8", "u1", ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (5, 7)])
def test_memory_is_aligned(shape: tuple[int, ...], dtype: Any) -> None:
    array = raw.aligned(shape, np.dtype(dtype))
    assert array.shape == shape
    assert array.dtype == dtype
    assert array.ctypes.data % raw.ALIGNMENT == 0 or not array.size
