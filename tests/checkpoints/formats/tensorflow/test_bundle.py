from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.checkpoints.storage.raw import crc32c
from tests.checkpoints.formats.tensorflow.partitioned import save
from tests.helpers import refused, value

pytestmark = pytest.mark.once


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("version", [1, 2])
def test_reads_partitioned_variables_whole(version: int, sharded: bool) -> None:
    arrays = save("run/ck", version, sharded)
    for path in ("run/ck", "run"):  # the prefix, and the directory with its state file
        with kt.open_checkpoint(path) as checkpoint:
            assert set(checkpoint) == set(arrays)
            for name, array in arrays.items():
                assert checkpoint.shape(name) == (10, 7)
                assert checkpoint.dtype(name) == np.float32
                np.testing.assert_array_equal(checkpoint[name], array)
            # Whole tensors beside partitioned ones are still read as plain bytes.
            assert checkpoint.in_pieces("whole") == (version == 2 and crc32c() is not None)


def test_detects_a_damaged_slice_by_its_checksum() -> None:
    arrays = save("run/ck")
    path = Path("run/ck.data-00000-of-00001")
    data = path.read_bytes()
    place = data.index(arrays["rows"][4:7].tobytes())  # the second slice
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(7, use_bias=False, name="d")])
    with refused(model, "Cannot read 'rows' from 'run/ck'", kt.RestoreError):
        kt.restore(model, "run/ck", rename={"rows": "d/kernel"})
    kt.restore(model, "run/ck", rename={"columns": "d/kernel"})
    np.testing.assert_array_equal(value(model.get_layer("d").kernel), arrays["columns"])
