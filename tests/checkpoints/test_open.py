from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.checkpoints import ArraysCheckpoint, Checkpoint, Format
from keras_trainops.checkpoints import open as opening
from tests.checkpoints.writers import WRITERS, plain_model
from tests.helpers import assert_same, make_everything, randomise, weights

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    "form", ["weights.h5", "keras", "legacy h5", "npz", "safetensors", "TF1 V1 file"]
)
def test_recognises_the_format_by_content(form: str) -> None:
    source, target = make_everything(plain_model)
    path = str(WRITERS[form](source))
    for name in ("weights.txt", "weights.npz", "weights.weights.h5"):
        os.rename(path, name)
        path = name
        assert len(kt.restore(target, name).restored) == len(target.weights)
        assert_same(weights(target), weights(source))
        randomise(target, 3)


def read_text(location: str) -> Checkpoint:
    return ArraysCheckpoint({"text": np.loadtxt(location)}, location)


@pytest.fixture
def unregistered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_registered", [])


@pytest.mark.usefixtures("unregistered")
def test_opens_a_registered_format() -> None:
    Path("w.npz").write_text("1 2 3")
    with pytest.raises(kt.RestoreError, match="is not a checkpoint of a supported format"):
        kt.open_checkpoint("w.npz")
    kt.register_format(Format("text files", lambda path: path.head.startswith(b"1 "), read_text))
    with kt.open_checkpoint("w.npz") as checkpoint:
        np.testing.assert_array_equal(checkpoint["text"], [1, 2, 3])
    with pytest.raises(kt.RestoreError, match="Supported are text files, TensorFlow checkpoints"):
        kt.open_checkpoint(os.path.dirname("w.npz") or ".")


@pytest.mark.usefixtures("unregistered")
def test_latest_format_of_a_name_comes_first() -> None:
    first, other, second = (
        Format(name, lambda path: True, read_text) for name in ("mine", "other", "mine")
    )
    for new in (first, other, second):
        kt.register_format(new)
    assert opening.known_formats()[:2] == (second, other)
    assert first not in opening.known_formats()[1:]


def test_lists_the_directory_of_a_missing_file() -> None:
    Path("run").mkdir()
    Path("run/w.npz").touch()
    with pytest.raises(kt.RestoreError, match=r"no checkpoint at 'run/x'. .*'run' contains: w.npz"):
        kt.open_checkpoint("run/x")
    with pytest.raises(kt.RestoreError, match=r"no checkpoint at 'gone/x'. Its directory does not"):
        kt.open_checkpoint("gone/x")
