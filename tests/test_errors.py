from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy

import keras_trainops as kt
from keras_trainops import errors
from tests.helpers import two_layers

pytestmark = pytest.mark.once


def test_shortens_endless_names_in_messages() -> None:
    name = "x" * 120_000
    with pytest.raises(kt.RestoreError, match=r"Cannot restore|No variable|x{100}") as raised:
        kt.restore(two_layers(), {name: np.ones(3)})
    assert len(str(raised.value)) < 5000
    safetensors.numpy.save_file({name: np.ones(3)}, "w.safetensors")
    with pytest.raises(kt.RestoreError, match="contains a name of 120,000 characters"):
        kt.open_checkpoint("w.safetensors")
    text = errors.shortened("a word " * 10_000)
    assert len(text) < 20_000
    assert text.startswith("a word a word")
    assert text.endswith("a word ")
    assert errors.shortened("short") == "short"
