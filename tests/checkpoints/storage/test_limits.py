from __future__ import annotations

import zipfile

import numpy as np
import pytest
import safetensors.numpy

import keras_trainops as kt
from tests.checkpoints.hostile_files import npy, zip_with

pytestmark = pytest.mark.once


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "..", "a\\..\\x"])
def test_refuses_names_that_lead_elsewhere(name: str) -> None:
    zip_with({f"{name}.npy": npy(np.ones(3))}, "w.npz")
    safetensors.numpy.save_file({name: np.ones(3)}, "w.safetensors")
    for path in ("w.npz", "w.safetensors"):
        with pytest.raises(kt.RestoreError, match=r"contains the name .*, which leads out of it"):
            kt.open_checkpoint(path)


@pytest.mark.usefixtures("low_limit")
def test_refuses_zip_bombs() -> None:
    zeros = npy(np.zeros(1 << 20, "uint8"))
    zip_with({"x.npy": zeros}, "bomb.npz", zipfile.ZIP_DEFLATED)
    with pytest.raises(
        kt.RestoreError, match=r"'x.npy' claims .* save it again without compression"
    ):
        kt.open_checkpoint("bomb.npz")
    members = {"model.weights.h5": b"\x89HDF\r\n\x1a\n" + bytes(1 << 20), "config.json": b"{}"}
    zip_with(members, "bomb.keras", zipfile.ZIP_DEFLATED)
    with pytest.raises(kt.RestoreError, match=r"'model.weights.h5' claims 1,048,584 bytes"):
        kt.open_checkpoint("bomb.keras")
    zip_with({"x.npy": zeros}, "stored.npz")  # the same array, not compressed
    with kt.open_checkpoint("stored.npz") as checkpoint:
        assert not checkpoint["x"].any()
