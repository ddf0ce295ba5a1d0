"""Every format, written by its own tool, restores every weight of a model."""

from __future__ import annotations

from pathlib import Path

import keras
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import keras_trainops as kt
from keras_trainops.checkpoints.format import Candidate
from keras_trainops.checkpoints.open import FORMATS
from tests.checkpoints.with_structure import WithStructure
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


@pytest.mark.parametrize(
    "form", [form for form in WRITERS if form not in ("mapping", "model", "safetensors")]
)
def test_writes_a_checkpoint_like_its_source(form: str) -> None:
    path = WRITERS[form](plain_model(1))
    write = next(f.write for f in FORMATS if f.recognise(Candidate(path)))
    with kt.open_checkpoint(path) as source:
        content = WithStructure(dict(source), source.structure())  # JSON, as in a plan
        write(Path("new"), content, {key: key for key in source})
        with kt.open_checkpoint("new") as written:
            assert written.format == source.format
            assert list(written) == list(source)
            assert written.training_state == source.training_state
            for key, array in content.items():
                assert written.dtype(key) == array.dtype
                assert written.shape(key) == array.shape
                assert written[key].tobytes() == array.tobytes()
