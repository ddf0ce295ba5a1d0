"""tf-slim's `resnet_v1_50`, saved by the TF1 `Saver`, into an unmodified Keras `ResNet50`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.real.stored import assert_same_tensors

pytestmark = pytest.mark.once

CONVOLUTIONS = 53
WEIGHTS = CONVOLUTIONS * (1 + 4) + 2  # a kernel and a batch normalisation each, and the head

# Keras counts blocks from 2, and calls the shortcut convolution 0.
RENAME = {
    r"resnet_v1_50/conv1/weights": r"conv1_conv/kernel",
    r"resnet_v1_50/conv1/BatchNorm/(\w+)": r"conv1_bn/\1",
    r"resnet_v1_50/logits/weights": r"predictions/kernel",
    r"resnet_v1_50/logits/biases": r"predictions/bias",
}
for _block in (1, 2, 3, 4):
    _slim = rf"resnet_v1_50/block{_block}/unit_(\d)/bottleneck_v1"
    _keras = rf"conv{_block + 1}_block\1"
    RENAME |= {
        rf"{_slim}/shortcut/weights": rf"{_keras}_0_conv/kernel",
        rf"{_slim}/shortcut/BatchNorm/(\w+)": rf"{_keras}_0_bn/\2",
        rf"{_slim}/conv(\d)/weights": rf"{_keras}_\2_conv/kernel",
        rf"{_slim}/conv(\d)/BatchNorm/(\w+)": rf"{_keras}_\2_bn/\3",
    }
NO_BIAS = ".*_conv/bias"  # tf-slim's convolutions have none; those of Keras start at zero


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """The checkpoints and logits, which a process of its own computes: tf-slim needs tf-keras."""
    script = Path(__file__).with_name("make_slim_resnet.py")
    with tempfile.TemporaryDirectory() as path:  # 400 MB, which pytest would keep for three runs
        run = subprocess.run(
            [sys.executable, str(script), path], capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr
        yield Path(path)


@pytest.fixture
def model() -> Iterator[keras.Model]:
    yield keras.applications.ResNet50(
        weights=None, classes=11, input_shape=(97, 97, 3), classifier_activation=None
    )
    keras.backend.clear_session()


def _logits(model: keras.Model, inputs: np.ndarray) -> np.ndarray:
    """`(batch, 97, 97, 3)` to `(batch, 11)`, in inference mode."""
    return keras.ops.convert_to_numpy(model(inputs, training=False))


def test_logits_equal_by_regular_expressions_alone(folder: Path, model: keras.Model) -> None:
    reference = np.load(folder / "dense.npz")
    assert np.abs(_logits(model, reference["inputs"]) - reference["logits"]).max() > 0.1

    report = kt.restore(model, folder / "dense", rename=RENAME, exclude=[NO_BIAS])

    assert len(report.restored) == WEIGHTS == 267
    assert len(report.excluded) == CONVOLUTIONS
    assert len(report.restored) + len(report.excluded) == len(model.weights)
    assert not report.missing
    assert not report.unexpected
    assert not report.mismatched
    # A Momentum slot for each kernel, gamma and beta, and for the head; and `global_step`.
    assert len(report.slots) == CONVOLUTIONS * 3 + 2 + 1
    logits = _logits(model, reference["inputs"])
    np.testing.assert_allclose(logits, reference["logits"], rtol=0, atol=1e-4)
    assert np.ptp(logits, axis=0).max() > 1e-2  # the inputs matter


def test_head_that_is_a_convolution(folder: Path, model: keras.Model) -> None:
    """tf-slim's own head has two more axes; it goes in as an array of the right shape."""
    reference = np.load(folder / "conv.npz")
    before = model.get_weights()
    with pytest.raises(kt.RestoreError, match=r"predictions/kernel.*2048, 11.*1, 1, 2048, 11"):
        kt.restore(model, folder / "conv", rename=RENAME, exclude=[NO_BIAS])
    for value, untouched in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, untouched)

    with kt.open_checkpoint(folder / "conv") as checkpoint:
        rest = kt.restore(model, checkpoint, rename=RENAME, exclude=[NO_BIAS, "predictions/kernel"])
        kernel = checkpoint["resnet_v1_50/logits/weights"][0, 0]
    head = kt.restore(model, {"predictions/kernel": kernel})

    assert len(rest.restored) == WEIGHTS - 1
    assert len(head.restored) == 1
    logits = _logits(model, reference["inputs"])
    np.testing.assert_allclose(logits, reference["logits"], rtol=0, atol=1e-4)


def test_what_was_not_trained_is_written_back_byte_for_byte(
    folder: Path, model: keras.Model, tmp_path: Path
) -> None:
    report = kt.restore(model, folder / "dense", rename=RENAME, exclude=[NO_BIAS])
    out = tmp_path / "model.ckpt"
    written = kt.write_back(model, folder / "dense", out, report=report)
    assert len(written.written) == WEIGHTS
    assert set(written.left_out) == set(report.slots)
    assert written.copied == written.missing == ()
    source = folder / "dense" / "model.ckpt-0"
    assert_same_tensors(out, source, without="/Momentum$|^global_step$")
