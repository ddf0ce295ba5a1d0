from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

import keras_trainops as kt
from tests.helpers import assert_same, two_layers, two_replicas, value, values
from tests.training import step_runs
from tests.training.custom_steps import NOISE, REAL, stepping

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


class Averaging(kt.TrainOpsModel):
    """A step of means, which are NaN without examples."""

    def training_step(self, step: kt.Step, data: Any) -> dict[str, Any]:
        x, y, _ = step.unpack(data)
        loss = step.minimize(lambda: ops.mean(ops.square(step.forward(x) - y)))
        return {"loss": loss, "mean": ops.mean(x)}


@pytest.mark.backends("tensorflow")
@pytest.mark.parametrize("model_class", [kt.TrainOpsModel, Averaging])
def test_a_replica_without_examples_changes_nothing(model_class: Any) -> None:
    with two_replicas().scope():
        of_layers = normalized()
        model = model_class(of_layers.inputs, of_layers.outputs)
        model.compile("sgd", "mse", check_numerics=True)
    x, y = (np.concatenate([array, array[:1]]) for array in (X, Y))  # the last batch is of one
    history = model.fit(x, y, batch_size=8, shuffle=False, verbose=0).history
    before = X.mean(0) / 2
    moved = (before + x[-1]) / 2  # on the replica with the example
    mean = value(model.get_layer("norm").moving_mean)
    np.testing.assert_allclose(mean, (moved + before) / 2, rtol=1e-5, atol=1e-6)
    assert all(np.isfinite(values) for values in history.values())
    assert all(np.isfinite(value(v)).all() for v in model.weights)


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


def split_weights() -> Any:
    """Return a distribution of batches over two pairs of devices, and of weights over each pair."""
    devices = keras.distribution.list_devices()
    mesh = keras.distribution.DeviceMesh((2, 2), ["batch", "model"], devices)
    layout = keras.distribution.LayoutMap(mesh)
    layout[".*kernel"], layout[".*bias"] = (None, "model"), ("model",)
    return keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")


@pytest.mark.backends("jax")
@pytest.mark.parametrize(
    "distribution",
    [pytest.param(lambda: keras.distribution.DataParallel(), id="batches"), split_weights],
)
def test_four_devices_give_the_numbers_of_one(distribution: Any) -> None:
    one = step_runs.run(1)
    with distribution().scope():
        four = step_runs.run(4)
    assert one.keys() == four.keys()
    for name, array in one.items():
        np.testing.assert_allclose(four[name], array, rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.backends("jax")
def test_a_distribution_allows_to_evaluate_before_and_within_fit() -> None:
    """Keras compiles a step for the layouts of its state, which must stay the same."""

    class Evaluated(kt.TrainOpsModel):
        def evaluation_step(self, step: kt.Step, data: Any) -> dict[str, Any]:
            x, y, _ = step.unpack(data)
            return {"error": ops.mean(ops.abs(step.forward(x) - y))}

    x, y = np.ones((4, 2), "float32"), np.zeros((4, 1), "float32")

    def errors() -> list[float]:
        keras.utils.set_random_seed(1)
        inputs = keras.Input((2,))
        model: Any = Evaluated(inputs, keras.layers.Dense(1, name="head")(inputs))
        average = kt.updates.MovingAverage(0.9)
        model.compile("sgd", "mse", gradient_transforms=kt.transforms.Monitor(), updates=average)
        data = {"batch_size": 4, "verbose": 0}
        first = model.evaluate(x, y, **data)
        logs = model.fit(x, y, epochs=2, validation_data=(x, y), **data).history
        return [first, *logs["val_error"], model.evaluate(x, y, **data)]

    one = errors()
    with keras.distribution.DataParallel().scope():
        np.testing.assert_allclose(errors(), one, rtol=1e-6)
    assert one[0] > one[1] > one[2] == one[3]


def test_updates_get_the_loss_of_their_weight_update() -> None:
    """Not that of a gradient by inputs, which the step takes in between."""
    found: dict[str, float] = {}
    for kind in ("whole", "examples"):
        seen = keras.Variable(0.0, trainable=False, name="seen")
        model = stepping(
            lambda model, step, data, kind=kind: between(model, step, data, kind),
            updates=[kt.updates.Function(lambda model, loss, seen=seen: seen.assign(loss), [seen])],
        )
        logs = model.train_on_batch(NOISE[:4], REAL[:4], return_dict=True)
        found[kind] = float(value(seen))
        np.testing.assert_allclose(found[kind], logs["loss"], rtol=1e-6)
    np.testing.assert_allclose(found["whole"], found["examples"], rtol=1e-5)


def between(model: Any, step: kt.Step, data: Any, kind: str) -> dict[str, Any]:
    """Differentiate by variables, then by inputs, then apply."""
    x, y, _ = step.unpack(data)
    variables = model.trainable_variables

    def loss(batch: Any) -> Any:
        return ops.mean((model(batch[0]) - batch[1]) ** 2)

    if kind == "whole":
        value, gradients = step.gradients(lambda: loss((x, y)), variables)
    else:
        losses, each = step.per_example_gradients(loss, variables, (x, y))
        value, gradients = ops.mean(losses), [ops.mean(g, axis=0) for g in each]
    step.gradients(lambda x: 1000.0 + ops.sum(model(x)), x)
    step.apply(gradients, variables)
    return {"loss": value}


@pytest.mark.parametrize("held_back", [False, True], ids=["direct", "held_back"])
def test_a_function_has_the_losses_of_the_layers_that_it_calls(held_back: bool) -> None:
    """Not those of a function before it, nor of calls outside, nor of the step before."""

    class Two(kt.TrainOpsMixin, keras.Model):
        def __init__(self) -> None:
            super().__init__()
            ones = {"kernel_initializer": "ones", "activity_regularizer": "l2"}
            self.first = keras.layers.Dense(1, name="first", **ones)
            self.second = keras.layers.Dense(1, name="second", **ones)
            for layer in (self.first, self.second):
                layer.build((None, 4))

        def call(self, x: Any) -> Any:
            return self.second(x)

        def training_step(self, step: kt.Step, data: Any) -> dict[str, Any]:
            (x,) = step.unpack(data)[:1]
            self.first(x)
            logs = {}
            for again, layer in enumerate((self.first, self.second, self.first)):
                logs[f"loss_{again}"] = step.minimize(
                    lambda layer=layer: ops.sum(layer(x)) * 0 + sum(self.losses),
                    layer.trainable_variables,
                    again=bool(again),
                )
            return logs

    model = Two()
    model.compile(keras.optimizers.SGD(0.0), check_numerics=held_back)
    history = model.fit(X, batch_size=4, epochs=2, shuffle=False, verbose=0).history
    expected = np.mean([0.01 * np.sum(part.sum(1) ** 2) / 4 for part in (X[:4], X[4:])])
    for each in range(3):
        np.testing.assert_allclose(history[f"loss_{each}"], [expected] * 2, rtol=1e-5)
