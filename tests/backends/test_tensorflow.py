from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.backends import backend
from tests.helpers import assert_same, value, weights
from tests.training.routes import two_replicas

pytestmark = pytest.mark.backends("tensorflow")


def test_replicas_vote_with_the_users_own_check() -> None:
    asked = []
    with two_replicas().scope():
        model = kt.with_train_ops(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=8)

        def check(gradients: Any) -> Any:
            asked.append(len(gradients))
            return keras.optimizers.LossScaleOptimizer.check_finite(optimizer, gradients)

        optimizer.check_finite = check
        model.compile(optimizer, "mse")
    x, y = np.ones((8, 4), "float32"), np.ones((8, 2), "float32")
    y[7] = np.inf  # on the second replica
    before = weights(model)
    model.fit(x, y, batch_size=8, verbose=0)
    assert asked
    assert optimizer.check_finite is check  # restored after the step
    assert_same(weights(model), before)


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
def test_empty_tensors_share_their_memory(dtype: str) -> None:
    tensor, memory = backend().empty_tensor((2, 3), np.dtype(dtype))
    memory[...] = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(tensor.numpy(), memory)
    variable = keras.Variable(np.zeros((2, 3)), dtype=dtype)
    variable.assign(tensor)
    np.testing.assert_array_equal(value(variable), np.arange(6).reshape(2, 3).astype(dtype))


def test_empty_tensors_need_a_dtype_with_memory() -> None:
    assert backend().empty_tensor((2,), np.dtype(object)) is None


def test_host_views_are_not_copies() -> None:
    variable = keras.Variable(np.arange(3.0), dtype="float32")
    first, second = backend().host_view(variable), backend().host_view(variable)
    np.testing.assert_array_equal(first, [0, 1, 2])
    assert first.ctypes.data == second.ctypes.data


def test_duplicate_rows_are_summed_before_the_chain() -> None:
    import tensorflow as tf

    class Chain:
        row_sparse = True

        def __call__(self, gradients: Any, variables: Any) -> Any:
            norms.append(float(tf.norm(gradients[0])))
            return gradients

    norms: list[float] = []
    table = keras.Variable(np.zeros((5, 1)), name="table")
    rows = tf.IndexedSlices(tf.constant([[3.0], [1.0], [4.0]]), tf.constant([2, 0, 2]), (5, 1))
    (summed,) = backend().reduce_and_transform([rows], [table], Chain())
    np.testing.assert_array_equal(tf.convert_to_tensor(summed)[:, 0], [1, 0, 7, 0, 0])
    assert norms == [pytest.approx(np.hypot(1, 7))]
