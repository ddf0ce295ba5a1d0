from __future__ import annotations

import h5py
import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.checkpoints.formats.hdf5.values import own_values
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


def test_the_library_tells_an_offset_only_of_values_in_one_piece_of_the_file() -> None:
    """So other layouts and other files are only looked for where there is none."""
    with h5py.File("x.h5", "w") as file:
        layout = h5py.VirtualLayout((3,), "float32")
        layout[:] = h5py.VirtualSource("y.h5", "y", (3,))
        plain = file.create_dataset("plain", data=np.ones(3, "float32"))
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("external", (3,), "float32", external=[("y.bin", 0, 12)])
        file.create_dataset("chunked", data=np.ones(3), chunks=(1,))
        file["none"] = h5py.Empty("float32")
        header = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        header.set_layout(h5py.h5d.COMPACT)
        file.create_dataset("header", data=np.ones(3), dcpl=header)
        assert plain.id.get_offset() > 0
        for name in set(file) - {"plain"}:
            assert file[name].id.get_offset() is None
        for name in ("virtual", "external", "none"):
            with pytest.raises(kt.RestoreError, match=f"/{name} is not a dataset of this file"):
                own_values(file[name].id, f"/{name}", "x.h5")
        for name in ("plain", "chunked", "header"):
            assert own_values(file[name].id, name, "x.h5")[()].tolist() == [1, 1, 1]
