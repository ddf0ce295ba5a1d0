from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import assert_same, numpy, value, weights
from tests.training import small_models
from tests.training.small_models import TRACED, functional

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 6)).astype("float32")
Y = RNG.normal(size=(24, 2)).astype("float32")


in_each_mode = pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="default"),
        pytest.param({"run_eagerly": True}, id="eager"),
        pytest.param({"jit_compile": True}, id="xla", marks=TRACED),
        pytest.param({"steps_per_execution": 4}, id="steps", marks=TRACED),
    ],
)


def checked(**options: Any) -> Any:
    model = functional(kt.TrainOpsModel, 0.0)
    model.compile(keras.optimizers.Adam(0.01), "mse", check_numerics=True, **options)
    return model


@functools.cache
def two_good_steps(**options: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the weights and the optimizer's variables after two batches."""
    model = checked(**options)
    model.fit(X[:8], Y[:8], batch_size=4, shuffle=False, verbose=0)
    return weights(model), [value(v) for v in model.optimizer.variables]


def poisoned(batch: int) -> np.ndarray:
    y = Y.copy()
    y[batch * 4 : batch * 4 + 4] = np.nan
    return y


@in_each_mode
def test_a_bad_loss_restores_the_last_good_step(options: dict[str, Any]) -> None:
    model = checked(**options)
    clean = {k: v for k, v in options.items() if k != "steps_per_execution"}
    good_weights, good_optimizer = two_good_steps(**clean)
    with pytest.raises(kt.NonFiniteLossError, match="NaN or infinite at step 2 "):
        model.fit(X, poisoned(2), batch_size=4, shuffle=False, verbose=0)
    assert_same(weights(model), good_weights)
    assert_same([value(v) for v in model.optimizer.variables], good_optimizer)
    model.fit(X, Y, batch_size=4, shuffle=False, verbose=0)  # training can go on
    assert model.optimizer.iterations == 8


def test_a_bad_loss_stops_train_on_batch() -> None:
    model = functional(kt.TrainOpsModel)
    model.compile("sgd", "mse", check_numerics=True)
    before = weights(model)
    with pytest.raises(kt.NonFiniteLossError, match="at step 0 "):
        model.train_on_batch(X, np.full_like(Y, np.inf))
    assert_same(weights(model), before)


def test_raises_nothing_unless_asked() -> None:
    model = functional(kt.TrainOpsModel)
    model.compile("sgd", "mse")
    model.fit(X, poisoned(0), verbose=0)
    assert np.isnan(value(model.get_layer("head").bias)).all()


class Root(keras.layers.Layer):
    """Has an infinite gradient at 0, although its value there is finite."""

    def build(self, shape: Any) -> None:
        self.w = self.add_weight(shape=(), initializer="ones", name="w")

    def call(self, x: Any) -> Any:
        small = keras.ops.cast(keras.ops.all(keras.ops.equal(x, 0)), "float32")
        return x + keras.ops.sqrt(self.w * (1 - small))


@in_each_mode
def test_names_the_variable_of_a_bad_gradient(options: dict[str, Any]) -> None:
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(2, name="after")(Root(name="root")(inputs))
    model = kt.TrainOpsModel(inputs, x)
    model.compile(keras.optimizers.Adam(0.01), "mse", check_numerics=True, **options)
    data = small_models.X.copy()
    data[16:24] = 0  # the third batch
    message = r"The gradient of 'root/w' became NaN or infinite at step 2 "
    with pytest.raises(kt.NonFiniteLossError, match=message):
        model.fit(data, small_models.Y, batch_size=8, shuffle=False, verbose=0)
    assert model.optimizer.iterations == 2
    assert all(np.isfinite(w).all() for w in model.get_weights())
    assert np.isfinite(numpy(model(X))).all()
    model.fit(small_models.X, small_models.Y, batch_size=8, verbose=0)
    assert model.optimizer.iterations == 6
