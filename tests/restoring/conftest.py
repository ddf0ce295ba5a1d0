"""Fixtures for several test files of this folder."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from tests.helpers import two_layers


@pytest.fixture
def assigned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the paths of variables when they are assigned."""
    original, paths = keras.Variable.assign, []

    def assign(self: keras.Variable, new: Any) -> Any:
        paths.append(self.path)
        return original(self, new)

    monkeypatch.setattr(keras.Variable, "assign", assign)
    return paths


@pytest.fixture
def model() -> keras.Model:
    """Return a trained model, so that `refused` also compares optimizer variables."""
    model = two_layers(name="net")
    model.compile("adam", "mse")
    model.train_on_batch(np.ones((2, 4)), np.ones((2, 2)))
    return model
