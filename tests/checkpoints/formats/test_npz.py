from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.checkpoints.formats.npz import FORMAT
from tests.checkpoints.hostile_files import Bomb
from tests.helpers import two_layers, value

pytestmark = pytest.mark.once


def test_key_of_an_npy_is_the_file_name() -> None:
    array = np.arange(6, dtype="float32").reshape(3, 2)
    np.save("head.npy", array)
    with kt.open_checkpoint("head.npy") as checkpoint:
        assert {key: checkpoint.shape(key) for key in checkpoint} == {"head": (3, 2)}
        np.testing.assert_array_equal(checkpoint["head"], array)
    model = two_layers()
    kt.restore(model, "head.npy", rename={"head": "head/kernel"}, include="head/kernel")
    np.testing.assert_array_equal(value(model.get_layer("head").kernel), array)


def test_never_unpickles() -> None:
    np.save("w.npy", np.array([Bomb()]))
    with (
        kt.open_checkpoint("w.npy") as checkpoint,
        pytest.raises(kt.RestoreError, match=r"the array 'w' contains Python objects"),
    ):
        checkpoint["w"]
    assert not os.path.exists("exploded")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["stored", "compressed"])
def test_writes_an_archive_like_its_source(save: Callable[..., None]) -> None:
    arrays = {"b": np.zeros((9, 9), "float32"), "a": np.arange(3, dtype=">i2"), "c": np.array(True)}
    save("source.npz", **arrays)
    with kt.open_checkpoint("source.npz") as source:
        FORMAT.write(Path("new.npz"), source, {key: key for key in source})
    with zipfile.ZipFile("source.npz") as old, zipfile.ZipFile("new.npz") as new:
        assert old.namelist() == new.namelist()
        for entry in old.infolist():
            assert new.getinfo(entry.filename).compress_type == entry.compress_type
            assert new.read(entry.filename) == old.read(entry.filename)


def test_a_damaged_archive_is_closed() -> None:
    np.savez("w.npz", a=np.zeros(3))
    content = bytearray(Path("w.npz").read_bytes())
    content[:4] = b"nope"  # the member's entry; the list of members is at the end
    Path("w.npz").write_bytes(content)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(kt.RestoreError, match=r"'w\.npz'"):
        kt.open_checkpoint("w.npz")
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_stored_array_is_read_in_pieces_with_its_checksum() -> None:
    arrays = {"a": np.arange(9000.0), "b": np.ones((2, 0)), "c": np.float32(3)}
    np.savez("stored.npz", **arrays, d=np.asfortranarray(np.ones((3, 2))))
    np.savez_compressed("packed.npz", **arrays)
    with kt.open_checkpoint("stored.npz") as checkpoint:
        assert [key for key in checkpoint if checkpoint.in_pieces(key)] == ["a", "b", "c"]
        for key, array in arrays.items():
            np.testing.assert_array_equal(
                list(checkpoint.pieces(key)), [array.ravel()][: array.size]
            )
        place = checkpoint._extent("a").offset
    with kt.open_checkpoint("packed.npz") as checkpoint:
        assert not any(map(checkpoint.in_pieces, checkpoint))

    content = bytearray(Path("stored.npz").read_bytes())
    content[place + 60_000] ^= 1
    Path("damaged.npz").write_bytes(content)
    with (
        kt.open_checkpoint("damaged.npz") as checkpoint,
        pytest.raises(kt.RestoreError, match=r"(?i)Cannot read 'a'.*checksum"),
    ):
        list(checkpoint.pieces("a"))
