from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import refused, two_layers
from tests.restoring.helpers import ALL, arrays, saved


def test_an_open_checkpoint_stays_open() -> None:
    with kt.open_checkpoint(saved(ALL)) as checkpoint:
        kt.restore(two_layers(), checkpoint)
        assert checkpoint["head/bias"][0] == 4


@pytest.mark.once
@pytest.mark.parametrize("bad", [3, None, ["a.npz"], object()])
def test_other_types_of_source_or_model_are_refused(model: keras.Model, bad: Any) -> None:
    with refused(model, "`source` must be the path of a checkpoint, a mapping"):
        kt.restore(model, bad)
    with pytest.raises(ValueError, match="`model` must be a Keras model"):
        kt.restore(bad, {})


@pytest.mark.once
def test_a_warning_raised_as_error_changes_nothing(model: keras.Model) -> None:
    with refused(model, "unused: extra", UserWarning):  # the tests make all warnings errors
        kt.restore(model, {**arrays(), "extra": np.ones(2)}, on_unexpected="warn")


@pytest.mark.once
def test_layers_without_variables_are_reported() -> None:
    class Net(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.later = keras.layers.Dense(2, name="u"), keras.layers.Dense(2, name="l")

        def call(self, x: Any) -> Any:
            return self.used(x)

    model = Net()
    with pytest.warns(UserWarning, match="unbuilt state"):  # Keras's own
        model(np.ones((1, 3)))
    with pytest.warns(UserWarning, match="not built yet, so nothing was restored into them: l"):
        report = kt.restore(model, {"u/bias": np.ones(2)})
    assert report.unbuilt == ("l",)
