from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import assert_same, two_layers, value, values
from tests.training import step_runs

RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 4)).astype("float32")
Y = RNG.normal(size=(8, 2)).astype("float32")


def normalized() -> Any:
    inputs = keras.Input((4,))
    x = keras.layers.BatchNormalization(momentum=0.5, name="norm")(inputs)
    return kt.TrainOpsModel(inputs, keras.layers.Dense(2, name="head")(x))


@pytest.mark.parametrize("include", [[], ["norm/moving_mean"]], ids=["none", "mean"])
def test_makes_only_the_chosen_layer_updates(include: list[str]) -> None:
    model = normalized()
    updates = [kt.updates.LayerUpdates(include=include)] if include else []
    model.compile("sgd", "mse", updates=updates)
    with pytest.warns(UserWarning, match="leaves out updates .*norm/moving_variance"):
        model.train_on_batch(X, Y)
    norm = model.get_layer("norm")
    mean = X.mean(0) / 2 if include else np.zeros(4)
    np.testing.assert_allclose(value(norm.moving_mean), mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(value(norm.moving_variance), np.ones(4))


@pytest.mark.filterwarnings("ignore:`updates` leaves out updates")
def test_updates_get_the_loss_and_the_new_weights() -> None:
    model = normalized()
    seen = keras.Variable(np.zeros(2), trainable=False, name="seen")

    def look(model: Any, loss: Any) -> None:
        kernel = keras.ops.sum(model.get_layer("head").kernel)
        seen.assign(keras.ops.stack([loss, kernel]))

    update = kt.updates.Function(look, [seen])
    model.compile("sgd", "mse", updates=[update])
    loss = model.train_on_batch(X, Y)
    kernel = value(model.get_layer("head").kernel).sum()
    np.testing.assert_allclose(value(seen), [loss, kernel], rtol=1e-5)


def test_the_loss_is_averaged_by_batch_size() -> None:
    logs = []
    for model_class in (keras.Model, kt.TrainOpsModel):
        of_layers = two_layers()
        model = model_class(of_layers.inputs, of_layers.outputs)
        options = {} if model_class is keras.Model else {"updates": []}
        model.compile("sgd", "mse", **options)
        history = model.fit(X, Y, batch_size=5, shuffle=False, verbose=0).history  # 5 and 3
        logs.append((history["loss"], values(model)))
    np.testing.assert_allclose(logs[0][0], logs[1][0], rtol=1e-6)
    assert_same(logs[0][1], logs[1][1])


@pytest.mark.backends("tensorflow")
def test_two_replicas_give_the_numbers_of_one_device() -> None:
    """Losses of Keras and of `ops` alike, which Keras would add up to different sums."""
    one, two = step_runs.run(1), step_runs.run(2)
    assert one.keys() == two.keys()
    for name, array in one.items():
        np.testing.assert_allclose(two[name], array, rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.backends("jax")
def test_four_devices_give_the_numbers_of_one() -> None:
    one = step_runs.run(1)
    with keras.distribution.DataParallel().scope():
        four = step_runs.run(4)
    assert one.keys() == four.keys()
    for name, array in one.items():
        np.testing.assert_allclose(four[name], array, rtol=2e-5, atol=2e-6, err_msg=name)
