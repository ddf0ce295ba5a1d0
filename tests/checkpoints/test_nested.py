from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.checkpoints import nested
from keras_trainops.checkpoints.formats.arrays import ArraysCheckpoint
from tests.helpers import two_layers

pytestmark = pytest.mark.once


def test_one_array_may_have_many_names() -> None:
    array = np.ones(3, "float32")
    with ArraysCheckpoint({f"x{i}": array for i in range(20_000)}) as checkpoint:
        assert len(checkpoint) == 20_000


def test_refuses_endless_nesting() -> None:
    array = np.ones(3)
    doubled: Any = [array]
    for _ in range(18):
        doubled = [doubled, doubled]
    with pytest.raises(kt.RestoreError, match="mapping contains the same containers repeatedly"):
        kt.restore(two_layers(), {"x": doubled})
    deep: Any = {"x": array}
    for _ in range(200):
        deep = {"x": deep}
    with pytest.raises(kt.RestoreError, match="the mapping is nested more than 100 deep"):
        kt.restore(two_layers(), deep)
    many = {str(i): array for i in range(nested._EACH)}
    assert len(kt.suggest_rename(two_layers(), many).unmatched) == len(many)
