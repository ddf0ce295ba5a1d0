from __future__ import annotations

import os

import numpy as np
import pytest

import keras_trainops as kt
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
