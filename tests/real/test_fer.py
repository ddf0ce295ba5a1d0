"""A legacy Keras HDF5 model, of the package `fer`, into a rebuild with names of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_trainops as kt
from examples.mini_xception import RENAME, WEIGHTS, mini_xception
from examples.packages import wheel_file
from tests.real.stored import assert_same_tensors

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def model_file() -> Path:
    return wheel_file(*WEIGHTS)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Noise of the network's input range, `(16, 64, 64, 1)`."""
    return np.random.default_rng(0).uniform(-1, 1, (16, 64, 64, 1)).astype("float32")


def _outputs(model: keras.Model, inputs: np.ndarray | list[np.ndarray]) -> np.ndarray:
    """Probabilities `(batch, classes)`, in inference mode."""
    return keras.ops.convert_to_numpy(model(inputs, training=False))


def test_outputs_equal_those_of_keras_loader(model_file: Path, images: np.ndarray) -> None:
    expected = _outputs(keras.models.load_model(model_file, compile=False), [images])
    model = mini_xception()
    assert np.abs(_outputs(model, images) - expected).max() > 1e-2

    report = kt.restore(model, model_file, rename=RENAME)

    # 7 convolutions and a bias, 8 separable ones of two kernels, 14 batch normalisations of four.
    assert len(report.restored) == len(model.weights) == 7 + 1 + 8 * 2 + 14 * 4
    assert not report.missing
    assert not report.unexpected
    assert not report.mismatched
    assert len(report.slots) == 105  # Adam's iterations, and two for each trainable variable
    np.testing.assert_allclose(_outputs(model, images), expected, rtol=0, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 1e-2  # the inputs matter


def test_every_rule_is_needed(model_file: Path) -> None:
    """Without any one rule a variable is missing, and nothing is changed."""
    model = mini_xception()
    before = model.get_weights()
    for rule in RENAME:
        rename = {other: target for other, target in RENAME.items() if other != rule}
        with pytest.raises(kt.RestoreError, match="missing"):
            kt.restore(model, model_file, rename=rename)
    for value, untouched in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, untouched)


def test_new_head_for_other_classes(model_file: Path) -> None:
    model = mini_xception(classes=3)
    before = model.get_layer("head").get_weights()

    report = kt.restore(model, model_file, rename=RENAME, exclude=["head"])

    assert len(report.restored) == 78
    assert len(report.excluded) == 2
    for value, untouched in zip(model.get_layer("head").get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, untouched)


def test_what_was_not_trained_is_written_back_byte_for_byte(
    model_file: Path, tmp_path: Path
) -> None:
    model, out = mini_xception(), tmp_path / "model.hdf5"
    report = kt.restore(model, model_file, rename=RENAME)
    written = kt.write_back(model, model_file, out, report=report)
    assert len(written.written) == len(model.weights)
    assert set(written.left_out) == set(report.slots)
    assert written.copied == written.missing == ()
    assert_same_tensors(out, model_file, without="^optimizer_weights/")


LOAD = """
import sys, numpy as np, tf_keras
file, images, outputs = sys.argv[1:]
model = tf_keras.models.load_model(file, compile=False)
np.save(outputs, model.predict(np.load(images), verbose=0))
"""


def test_tf_keras_computes_what_was_trained(
    model_file: Path, images: np.ndarray, tmp_path: Path
) -> None:
    model, out = mini_xception(), tmp_path / "tuned.hdf5"
    report = kt.restore(model, model_file, rename=RENAME)
    before = _outputs(model, images)
    for layer in model.layers:  # TensorFlow 2.21 may crash in the gradient of the others
        layer.trainable = layer.name.startswith(("block4", "head"))
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    model.fit(images, np.arange(16) % 7, batch_size=4, verbose=0)
    expected = _outputs(model, images)
    assert np.abs(expected - before).max() > 1e-2

    kt.write_back(model, model_file, out, report=report)

    np.save("images.npy", images)
    command = [sys.executable, "-c", LOAD, str(out), "images.npy", "outputs.npy"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load("outputs.npy"), expected, rtol=0, atol=1e-4)
