"""Every format, written by its own tool, restores every weight of a model."""

from __future__ import annotations

import keras
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import keras_trainops as kt
from tests.checkpoints.writers import WRITERS, plain_model
from tests.helpers import assert_same, make_everything, rich_model, two_layers, value, weights

pytestmark = pytest.mark.once


@pytest.mark.parametrize("form", WRITERS)
def test_restores_every_weight(form: str) -> None:
    source, target = make_everything(plain_model)
    report = kt.restore(target, WRITERS[form](source))
    assert_same(weights(target), weights(source))
    assert len(report.restored) == len(target.weights)
    assert not report.unexpected


@pytest.mark.parametrize("form", ["weights.h5", "keras", "keras directory", "model", "legacy h5"])
def test_restores_every_weight_of_a_rich_model(form: str) -> None:
    source, target = make_everything(rich_model)
    if form == "legacy h5":
        source.save("w.h5", include_optimizer=False)
        written: object = "w.h5"
    else:
        written = WRITERS[form](source)
    kt.restore(target, written)
    assert_same(weights(target), weights(source))


@pytest.mark.parametrize("form", ["safetensors", "weights.h5"])
def test_bfloat16_keeps_its_bits(form: str) -> None:
    array = np.arange(12, dtype="float32").reshape(4, 3).astype(ml_dtypes.bfloat16) / 7
    if form == "safetensors":
        safetensors.numpy.save_file({"trunk/kernel": array}, "w.safetensors")
        path = "w.safetensors"
    else:
        inputs = keras.Input((4,))
        layer = keras.layers.Dense(3, name="trunk", dtype="bfloat16", use_bias=False)
        model = keras.Model(inputs, layer(inputs))
        layer.kernel.assign(array)
        model.save_weights("w.weights.h5")
        path = "w.weights.h5"
    with kt.open_checkpoint(path) as checkpoint:
        assert checkpoint.dtype("trunk/kernel") == np.dtype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(
            checkpoint["trunk/kernel"].view("uint16"), array.view("uint16")
        )
    model = two_layers()
    kt.restore(model, path, include=["trunk/kernel"])
    np.testing.assert_array_equal(value(model.get_layer("trunk").kernel), array.astype("float32"))
