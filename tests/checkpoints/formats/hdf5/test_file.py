from __future__ import annotations

import os
from typing import Any

import h5py
import numpy as np
import pytest

import keras_trainops as kt
from tests.checkpoints.bounded import GIGABYTE, answer
from tests.helpers import two_layers

pytestmark = pytest.mark.once


def test_ignores_bytes_after_the_end_of_file() -> None:
    """The library accepts the file; bytes after its logical end are not checked."""
    two_layers().save_weights("w.weights.h5")
    end = os.path.getsize("w.weights.h5")
    with open("w.weights.h5", "r+b") as file:
        file.seek(end)
        file.write(b"GCOL\x01\0\0\0" * 1000)  # broken heaps, which nothing reads
    assert answer("w.weights.h5") == "read"
    os.truncate("w.weights.h5", 8 * GIGABYTE)
    assert "the file claims 8,589,934,592 bytes" in answer("w.weights.h5")


@pytest.mark.parametrize("name", [h5py.Empty("S4"), 7, np.array([["a"]], "S1")])
def test_refuses_names_that_are_none(name: Any) -> None:
    two_layers().save_weights("w.weights.h5")
    with h5py.File("w.weights.h5", "r+") as file:
        group = file["layers/dense/vars"]
        del group.attrs["name"]
        group.attrs["name"] = name
    with pytest.raises(kt.RestoreError, match="attribute 'name' looks damaged"):
        kt.open_checkpoint("w.weights.h5")


def test_reads_names_in_every_encoding() -> None:
    for name in ("own", b"own", np.array(b"own", "S3"), np.array(["own"], object)):
        two_layers().save_weights("w.weights.h5")
        with h5py.File("w.weights.h5", "r+") as file:
            group = file["layers/dense/vars"]
            del group.attrs["name"]
            group.attrs["name"] = name
        with kt.open_checkpoint("w.weights.h5") as checkpoint:
            assert {"own/kernel", "own/bias"} <= set(checkpoint)
