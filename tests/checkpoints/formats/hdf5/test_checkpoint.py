from __future__ import annotations

import h5py
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import refused, two_layers

pytestmark = pytest.mark.once


@pytest.mark.parametrize("chunks", [None, (1 << 10,)], ids=["contiguous", "chunked"])
def test_refuses_a_dataset_that_claims_terabytes(chunks: tuple[int] | None) -> None:
    two_layers().save_weights("w.weights.h5")
    with h5py.File("w.weights.h5", "r+") as file:
        del file["layers/dense/vars/1"]
        file["layers/dense/vars"].create_dataset("1", (1 << 40,), "float32", chunks=chunks)
    with refused(
        two_layers(), "vars/1 claims 4,398,046,511,104 bytes, but only 0", kt.RestoreError
    ):
        kt.restore(two_layers(), "w.weights.h5")


@pytest.mark.usefixtures("low_limit")
def test_refuses_a_dataset_compressed_out_of_proportion() -> None:
    two_layers().save_weights("w.weights.h5")
    with h5py.File("w.weights.h5", "r+") as file:
        del file["layers/dense/vars/1"]
        group = file["layers/dense/vars"]
        group.create_dataset("1", data=np.zeros(1 << 20, "uint8"), compression="gzip")
    with pytest.raises(
        kt.RestoreError, match=r"vars/1 claims 1,048,576 bytes, but only \d,\d+ are"
    ):
        kt.open_checkpoint("w.weights.h5")
