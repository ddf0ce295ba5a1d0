"""Paths as users give them, and the directories of a training session."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import safetensors.numpy

import keras_trainops as kt
from keras_trainops.cli import main
from tests.helpers import assert_same, refused, two_layers, weights


@pytest.fixture
def saved() -> keras.Model:
    model = two_layers(seed=5)
    model.save_weights("w.weights.h5")
    return model


def test_ways_to_write_a_path(saved: keras.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Path.cwd()
    monkeypatch.setenv("HOME", str(here))
    shutil.copy("w.weights.h5", "w 1.weights.h5")
    paths = [
        *("~/w.weights.h5", Path("~/w.weights.h5"), b"w.weights.h5", "w.weights.h5/"),
        *(f"file://{here}/w.weights.h5", f"file://localhost{here}/w%201.weights.h5"),
        Path(f"file://{here}/w.weights.h5"),
    ]
    for path in paths:
        target = two_layers()
        assert len(kt.restore(target, path).restored) == len(target.weights), path
        assert_same(weights(target), weights(saved))


@pytest.mark.parametrize(
    ("url", "shown", "how"),
    [
        ("gs://bucket/ck", "'gs://bucket/ck'", "gcloud storage cp"),
        ("s3://bucket/ck", "'s3://bucket/ck'", "aws s3 cp"),
        ("hf://owner/model", "'hf://owner/model'", "snapshot_download"),
        ("https://host/w.keras", "'https://host/w.keras'", "get_file"),
        ("hdfs://host/w.keras", "'hdfs://host/w.keras'", "Download it first, and"),
    ],
)
def test_remote_paths_are_told_as_such(
    url: str, shown: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (url, Path(url)):
        with refused(two_layers(), f"{shown} is not on this machine.*{how}", kt.RestoreError):
            kt.restore(two_layers(), path)
    assert main(["inspect", url]) == 2
    assert "remote paths are not read" in capsys.readouterr().err


def test_a_file_url_of_another_host() -> None:
    with pytest.raises(kt.RestoreError, match=r"'file://host/w\.keras' is not on this machine"):
        kt.open_checkpoint("file://host/w.keras")


@pytest.mark.parametrize("path", ["", b"", "a\0b"])
def test_what_is_no_path(path: str) -> None:
    with pytest.raises(kt.RestoreError, match="A checkpoint needs a path"):
        kt.open_checkpoint(path)


def test_a_directory_whose_name_looks_like_a_url(saved: keras.Model) -> None:
    os.makedirs("gs:")
    shutil.copy("w.weights.h5", "gs:/w.weights.h5")
    with kt.open_checkpoint("gs://w.weights.h5") as checkpoint:
        assert len(checkpoint) == len(saved.weights)


@pytest.fixture
def run() -> keras.Model:
    """A model that sessions trained in `logs`, with checkpoints at the steps 2, 4 and 6."""
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
def test_the_directories_of_a_session_mean_its_newest_checkpoint(
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


def test_one_step_of_a_session_is_that_step(run: keras.Model) -> None:
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


def test_a_damaged_newest_checkpoint_is_passed_over(run: keras.Model) -> None:
    damage(6)
    os.makedirs("logs/checkpoints/step-notes")  # none of the session's
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
