from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.checkpoints.storage import raw
from tests.checkpoints.plain_files import WRITERS

pytestmark = pytest.mark.once


@pytest.mark.parametrize("extension", [True, False])
def test_checksums_of_plain_bytes(extension: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without fast C code for checksums, TensorFlow's reader verifies them."""
    if extension:
        pytest.importorskip("google_crc32c")
        assert raw.crc32c() is not None, "google-crc32c has no C code here"
    else:
        monkeypatch.setattr(raw, "crc32c", lambda: None)
    WRITERS["tf/ck"]("tf/ck")
    with kt.open_checkpoint("tf/ck") as checkpoint:
        good = {key: checkpoint[key] for key in checkpoint}
        assert {checkpoint.in_pieces(key) for key in checkpoint} == {extension}
        big = max(checkpoint, key=lambda key: good[key].nbytes)
        places = {key: checkpoint._extent(key) for key in checkpoint}
    data = "tf/ck.data-00000-of-00001"
    content = bytearray(Path(data).read_bytes())
    content[places[big].offset + good[big].nbytes - 1] ^= 1  # in the last piece
    Path(data).write_bytes(content)
    with kt.open_checkpoint("tf/ck") as checkpoint:
        with pytest.raises(kt.RestoreError, match=f"(?i)Cannot read '{big}'.*checksum"):
            list(checkpoint.pieces(big))
        for key in set(checkpoint) - {big}:
            assert sum(piece.size for piece in checkpoint.pieces(key)) == good[key].size


@pytest.mark.parametrize("dtype", ["f4", "f8", "u1", ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (5, 7)])
def test_memory_is_aligned(shape: tuple[int, ...], dtype: Any) -> None:
    array = raw.aligned(shape, np.dtype(dtype))
    assert array.shape == shape
    assert array.dtype == dtype
    assert array.ctypes.data % raw.ALIGNMENT == 0 or not array.size
