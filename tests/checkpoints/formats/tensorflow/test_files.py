from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import keras_trainops as kt
from tests.checkpoints.formats.tensorflow.partitioned import save

pytestmark = pytest.mark.once


@pytest.mark.parametrize("path", ["run/ck-?????-of-00001", "run/ck-00000-of-00001"])
def test_opens_numbered_files_by_any_name(path: str) -> None:
    arrays = save("run/ck", version=1, sharded=True)
    with kt.open_checkpoint(path) as checkpoint:
        np.testing.assert_array_equal(checkpoint["rows"], arrays["rows"])


@pytest.mark.parametrize("version", [1, 2])
def test_opens_a_prefix_with_glob_characters(version: int) -> None:
    arrays = save("run[1]*/c[k]?", version)
    for path in ("run[1]*/c[k]?", "run[1]*"):
        with kt.open_checkpoint(path) as checkpoint:
            for name, array in arrays.items():
                np.testing.assert_array_equal(checkpoint[name], array)


def test_finds_a_prefix_among_other_files() -> None:
    os.makedirs("d")
    Path("d/notes.txt").write_text("x")
    tf.train.Checkpoint(v=tf.Variable(1.0, name="v")).write("d/ck")
    with kt.open_checkpoint("d") as checkpoint:
        assert list(checkpoint) == ["v"]
