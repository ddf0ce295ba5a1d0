"""A TF1 name-based checkpoint without a base name, of the package `musicnn`, into a rebuild."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

import keras_trainops as kt
from examples.packages import wheel_file
from tests.real.musicnn_model import RENAME, musicnn, reference_logits
from tests.real.stored import assert_same_tensors

pytestmark = pytest.mark.once

WEIGHTS = 150 - 84 - 2  # all tensors, without Adam's slots and beta powers


@pytest.fixture(scope="module")
def folder() -> Path:
    return wheel_file("musicnn==0.1.0", "musicnn/MTT_musicnn")


@pytest.fixture(scope="module")
def spectrograms() -> np.ndarray:
    """Noise of about the range of `log10(10000 * mel + 1)`, `(4, 187, 96)`."""
    return np.random.default_rng(0).gamma(2.0, 0.5, (4, 187, 96)).astype("float32")


@pytest.fixture(scope="module")
def expected(folder: Path, spectrograms: np.ndarray) -> np.ndarray:
    return reference_logits(folder, spectrograms)


def _logits(model: keras.Model, spectrograms: np.ndarray) -> np.ndarray:
    """`(batch, 187, 96)` to `(batch, 50)`, in inference mode."""
    return keras.ops.convert_to_numpy(model(spectrograms, training=False))


@pytest.mark.parametrize("as_prefix", [False, True], ids=["directory", "prefix"])
def test_logits_equal_those_of_the_shipped_graph(
    folder: Path, spectrograms: np.ndarray, expected: np.ndarray, as_prefix: bool
) -> None:
    # The `checkpoint` file in there names a path on the authors' machine.
    source = f"{folder}/" if as_prefix else folder
    model = musicnn()
    assert np.abs(_logits(model, spectrograms) - expected).max() > 0.1

    report = kt.restore(model, source, rename=RENAME)

    assert len(report.restored) == WEIGHTS == 64
    assert not report.missing
    assert not report.unexpected
    assert not report.mismatched
    assert len(report.slots) == 84 + 2
    np.testing.assert_allclose(_logits(model, spectrograms), expected, rtol=0, atol=1e-4)
    assert np.ptp(expected, axis=0).max() > 1e-2  # the inputs matter


def test_reading(folder: Path) -> None:
    with kt.open_checkpoint(folder) as checkpoint:
        assert len(list(checkpoint)) == 150
        assert checkpoint.shape("conv2d_5/kernel") == (7, 561, 1, 64)
        assert checkpoint.dtype("conv2d_5/kernel") == np.dtype("float32")
        assert checkpoint["dense_1/bias"].shape == (50,)


def test_what_was_not_trained_is_written_back_byte_for_byte(folder: Path, tmp_path: Path) -> None:
    model, out = musicnn(), tmp_path / "model.ckpt"
    report = kt.restore(model, folder, rename=RENAME)
    written = kt.write_back(model, folder, out, report=report)
    assert len(written.written) == WEIGHTS
    assert set(written.left_out) == set(report.slots)
    assert written.copied == written.missing == ()
    assert_same_tensors(out, f"{folder}/", without="/Adam(_1)?$|^beta._power$")


def test_the_shipped_graph_computes_what_was_trained(
    folder: Path, spectrograms: np.ndarray, expected: np.ndarray, tmp_path: Path
) -> None:
    model = musicnn()
    report = kt.restore(model, folder, rename=RENAME)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1e-2), loss)
    model.fit(spectrograms, np.arange(4)[:, None] == np.arange(50) % 4, batch_size=2, verbose=0)
    trained = _logits(model, spectrograms)
    assert np.abs(trained - expected).max() > 0.1

    kt.write_back(model, folder, tmp_path / "tuned.ckpt", report=report)

    theirs = reference_logits(folder, spectrograms, tmp_path / "tuned.ckpt")
    np.testing.assert_allclose(theirs, trained, rtol=0, atol=1e-4)
