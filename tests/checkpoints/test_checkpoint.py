"""The mapping of keys to arrays that all formats share."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.checkpoints import ArraysCheckpoint
from keras_trainops.checkpoints.checkpoint import PIECE
from tests.checkpoints import plain_files, writers

pytestmark = pytest.mark.once


@pytest.mark.parametrize("path", plain_files.WRITERS)
def test_pieces_and_wholes_match_the_library(path: str) -> None:
    plain_files.WRITERS[path](path)
    with kt.open_checkpoint(path) as checkpoint:
        assert len(checkpoint) >= 5
        for key in checkpoint:
            expected = checkpoint._read(key)
            np.testing.assert_array_equal(checkpoint[key], expected)
            np.testing.assert_array_equal(checkpoint.again(key), expected)
            assert checkpoint[key].dtype == checkpoint.dtype(key)
            assert checkpoint[key].nbytes == checkpoint.nbytes(key)
            assert checkpoint[key].flags.writeable
            pieces = [piece.copy() for piece in checkpoint.pieces(key)]
            assert all(piece.size <= PIECE for piece in pieces)
            joined = np.concatenate(pieces) if pieces else np.zeros(0)
            np.testing.assert_array_equal(joined.reshape(expected.shape), expected)
        plain = {key for key in checkpoint if checkpoint._extent(key) is not None}
    if path == "w.h5":
        assert {"a/long", "a/whole", "a/big"} <= plain
        assert not plain & {"a/chunked", "a/deflated", "a/checked"}
    else:
        all_plain = path in ("w.safetensors", "w.npz", "tf/ck")
        assert plain == (set(checkpoint) if all_plain else set())


@pytest.mark.parametrize("path", ["w.h5", "w.safetensors"])
def test_detects_a_file_truncated_while_open(path: str) -> None:
    plain_files.WRITERS[path](path)
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


@pytest.mark.parametrize("path", [path for path in plain_files.WRITERS if "tf" not in path])
def test_closes_every_file(path: str) -> None:
    plain_files.WRITERS[path](path)
    before = sorted(os.listdir("/proc/self/fd"))
    with kt.open_checkpoint(path) as checkpoint:
        list(checkpoint.values())
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("form", [f for f in writers.WRITERS if f not in ("mapping", "model")])
def test_checkpoint_is_a_lazy_read_only_mapping(form: str) -> None:
    source = writers.plain_model(1)
    expected = writers.arrays_of(source)
    with kt.open_checkpoint(writers.WRITERS[form](source)) as checkpoint:
        own = [key for key in checkpoint if key not in checkpoint.training_state]
        assert sorted(own) == sorted(expected)
        assert all(checkpoint.shape(key) == expected[key].shape for key in own)
        assert all(checkpoint.dtype(key) == np.dtype("float32") for key in own)
        assert len(checkpoint) == len(list(checkpoint))
        read = {key: checkpoint[key] for key in own}
        with pytest.raises(KeyError, match="nothing"):
            checkpoint["nothing"]
        with pytest.raises(KeyError, match="nothing"):
            checkpoint.shape("nothing")
        with pytest.raises(TypeError, match="item assignment"):
            checkpoint["head/bias"] = np.zeros(5)
    for key, array in read.items():  # still valid after closing
        np.testing.assert_array_equal(array, expected[key])


def test_reads_the_structure_once_and_explains_errors() -> None:
    class Described(ArraysCheckpoint):
        calls = 0

        def _structure(self) -> dict[str, Any]:
            self.calls += 1
            if self.calls == 1:
                raise OSError("bad sector")
            return {"mine": self.calls}

    checkpoint = Described({"x": np.ones(1)}, "w.mine")
    with pytest.raises(kt.RestoreError, match=r"Cannot read the structure from 'w\.mine' .*sector"):
        checkpoint.structure()
    assert checkpoint.structure() == {"mine": 2}
    assert checkpoint.structure() == {"mine": 2}
