"""Directories of a `TrainingSession` as checkpoints."""

from __future__ import annotations

import os
from pathlib import Path

import keras
import numpy as np
import pytest
import safetensors.numpy

import keras_trainops as kt
from keras_trainops.cli import main
from tests.helpers import assert_same, refused, weights

pytestmark = pytest.mark.once


@pytest.fixture
def run() -> keras.Model:
    """Train in `logs`, with checkpoints at steps 2, 4 and 6."""
    x, y = np.ones((12, 4), "float32"), np.zeros((12, 2), "float32")
    for epochs in (1, 2, 3):
        inputs = keras.Input((4,))
        model = kt.TrainOpsModel(inputs, keras.layers.Dense(2, name="head")(inputs), name="net")
        model.compile("adam", "mse")
        session = kt.TrainingSession("logs", keep=3, verbose=0)
        model.fit(x, y, 6, epochs, shuffle=False, verbose=0, callbacks=[session])
    return model


def fresh() -> keras.Model:
    inputs = keras.Input((4,))
    return keras.Model(inputs, keras.layers.Dense(2, name="head")(inputs), name="net")


STEP = "logs/checkpoints/step-{:010d}"


@pytest.mark.parametrize("path", ["logs", "logs/", "logs/checkpoints", STEP.format(6)])
def test_directories_open_the_newest_step(
    run: keras.Model, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = fresh()
    report = kt.restore(model, path)
    assert len(report.restored) == 2
    assert not report.unexpected  # optimizer and metrics are training state
    assert_same(weights(model), weights(run))
    started = fresh()
    started.compile("sgd", "mse")
    x, y = np.ones((2, 4), "float32"), np.zeros((2, 2), "float32")
    started.optimizer.learning_rate.assign(0.0)
    started.fit(x, y, verbose=0, callbacks=[kt.WarmStart(path, verbose=0)])
    assert_same(weights(started), weights(run))
    capsys.readouterr()
    assert main(["inspect", path]) == 0
    assert "training session (step-0000000006)" in capsys.readouterr().out


def test_opens_a_given_step(run: keras.Model) -> None:
    model = fresh()
    kt.restore(model, STEP.format(2))
    expected = safetensors.numpy.load_file(Path(STEP.format(2), "state.safetensors"))
    np.testing.assert_array_equal(weights(model)[0], expected["head/kernel"])
    assert not np.array_equal(weights(model)[0], weights(run)[0])


def damage(step: int) -> None:
    path = Path(STEP.format(step), "state.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_skips_damaged_steps(run: keras.Model) -> None:
    damage(6)
    os.makedirs("logs/checkpoints/step-notes")  # not a step of the session
    Path("logs/checkpoints/step-0000000004/.DS_Store").write_text("a foreign file")
    model = fresh()
    with pytest.warns(UserWarning, match=r"step-0000000006' is damaged: the checksum of state"):
        kt.restore(model, "logs")
    expected = safetensors.numpy.load_file(Path(STEP.format(4), "state.safetensors"))
    np.testing.assert_array_equal(weights(model)[0], expected["head/kernel"])
    with refused(fresh(), "step-0000000006' is damaged", kt.RestoreError):
        kt.restore(fresh(), STEP.format(6))
    damage(4)
    os.remove(Path(STEP.format(2), "SHA256SUMS"))
    with (
        pytest.warns(UserWarning, match="is damaged"),
        refused(model, "All checkpoints of the session in 'logs' are damaged", kt.RestoreError),
    ):
        kt.restore(model, "logs")
