from __future__ import annotations

import os

import pytest

from tests.checkpoints.bounded import GIGABYTE, answer
from tests.helpers import two_layers

pytestmark = pytest.mark.once


def test_ignores_bytes_after_the_end_of_file() -> None:
    """The library accepts the file; bytes after its logical end are not checked."""
    two_layers().save_weights("w.weights.h5")
    end = os.path.getsize("w.weights.h5")
    with open("w.weights.h5", "r+b") as file:
        file.seek(end)
        file.write(b"GCOL\x01\0\0\0" * 1000)  # broken heaps, which nothing reads
    assert answer("w.weights.h5") == "read"
    os.truncate("w.weights.h5", 8 * GIGABYTE)
    assert "the file claims 8,589,934,592 bytes" in answer("w.weights.h5")
