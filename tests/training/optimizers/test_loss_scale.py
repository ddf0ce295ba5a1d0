from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_trainops.training.optimizers.loss_scale import LossScale
from tests.helpers import numpy


@pytest.mark.parametrize("scale", [None, 1000.0, 2.0**100])
@pytest.mark.parametrize("replicas", [1, 2])
def test_scaling_is_undone_exactly(scale: float | None, replicas: int) -> None:
    """Also by 1000, whose inverse is rounded."""
    variable = keras.Variable(np.ones(3, "float32"))
    both = LossScale(keras.optimizers.SGD(loss_scale_factor=scale), replicas)
    tiny = keras.ops.convert_to_tensor(np.float32([0.5, -0.25, 0.125]) * 2.0**-3)
    again = both.unscaled(both.scaled(tiny, variable), variable)
    np.testing.assert_array_equal(numpy(again), numpy(tiny))
    loss = numpy(both.scaled_loss(keras.ops.convert_to_tensor(np.float32(0.5))))
    np.testing.assert_array_equal(loss, np.float32(0.5 * (scale or 1) / replicas))


def test_values_in_place_of_gradients_are_not_scaled() -> None:
    variable = keras.Variable(np.ones(2, "float32"))
    variable.overwrite_with_gradient = True
    both, new = LossScale(keras.optimizers.SGD(loss_scale_factor=8.0), 2), np.float32([1, 2])
    assert both.scaled(new, variable) is new
    assert both.unscaled(new, variable) is new
