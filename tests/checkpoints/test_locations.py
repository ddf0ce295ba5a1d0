from __future__ import annotations

import os
import shutil
from pathlib import Path

import keras
import pytest

import keras_trainops as kt
from keras_trainops.cli import main
from tests.helpers import assert_same, refused, two_layers, weights

pytestmark = pytest.mark.once


@pytest.fixture
def saved() -> keras.Model:
    model = two_layers(seed=5)
    model.save_weights("w.weights.h5")
    return model


def test_accepts_home_bytes_and_file_urls(
    saved: keras.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
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
def test_refuses_remote_paths_with_a_hint(
    url: str, shown: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (url, Path(url)):
        with refused(two_layers(), f"{shown} is not on this machine.*{how}", kt.RestoreError):
            kt.restore(two_layers(), path)
    assert main(["inspect", url]) == 2
    assert "remote paths are not read" in capsys.readouterr().err


def test_refuses_a_file_url_of_another_host() -> None:
    with pytest.raises(kt.RestoreError, match=r"'file://host/w\.keras' is not on this machine"):
        kt.open_checkpoint("file://host/w.keras")


@pytest.mark.parametrize("path", ["", b"", "a\0b"])
def test_refuses_empty_and_invalid_paths(path: str) -> None:
    with pytest.raises(kt.RestoreError, match="A checkpoint needs a path"):
        kt.open_checkpoint(path)


def test_opens_a_directory_named_like_a_url(saved: keras.Model) -> None:
    os.makedirs("gs:")
    shutil.copy("w.weights.h5", "gs:/w.weights.h5")
    with kt.open_checkpoint("gs://w.weights.h5") as checkpoint:
        assert len(checkpoint) == len(saved.weights)
