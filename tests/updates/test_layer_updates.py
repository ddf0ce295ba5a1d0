from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops import keras_private
from tests.helpers import assert_same, assert_same_arithmetic, differ, value, weights
from tests.updates.batch_norm import X, Y, fit, net, statistics

LayerUpdates = kt.updates.LayerUpdates


def test_layers_own_updates_follow_the_policy() -> None:
    """The expectations of `tf.contrib.training`'s own tests of create_train_op."""
    x = np.repeat(X[:4], 10, axis=0)
    by_default, by_none = net(momentum=0.1), net(momentum=0.1)
    by_default.compile("sgd", "mse")
    by_default.fit(x, Y, batch_size=4 * 10, epochs=10, verbose=0)
    np.testing.assert_allclose(statistics(by_default, "first")[0], x.mean(0), rtol=1e-4)
    np.testing.assert_allclose(statistics(by_default, "first")[1], x.var(0), rtol=1e-4)
    fit(by_none, updates=[])
    assert_same(statistics(by_none, "first"), [np.zeros(6, "float32"), np.ones(6, "float32")])
    assert differ(weights(by_none)[4:6], weights(net())[4:6]) > 1e-4  # it trained all the same


@pytest.mark.parametrize(
    "chosen",
    [
        LayerUpdates(include=["first"]),
        LayerUpdates(exclude=["second"]),
        LayerUpdates(include=["moving_.*"], exclude="second/.*"),
    ],
)
def test_layer_updates_choose_by_pattern(chosen: LayerUpdates) -> None:
    stock, model = fit(net(keras.Model)), fit(net(), updates=[chosen])
    assert_same(statistics(model, "first"), statistics(stock, "first"))
    assert_same(statistics(model, "second"), [np.zeros(5, "float32"), np.ones(5, "float32")])
    again = LayerUpdates.from_config(chosen.get_config())
    assert_same(weights(fit(net(), updates=[again])), weights(model))


def test_they_are_an_entry_but_not_an_update() -> None:
    own = LayerUpdates()
    assert not isinstance(own, kt.updates.Update)
    assert not callable(own)
    model = net()
    assert model.add_update(own) is own
    fit(model, epochs=1)
    assert model.train_ops.policy.after_weights == []
    assert (statistics(model, "first")[0] != 0).all()
    other = net()
    with pytest.raises(ValueError, match="This LayerUpdates already belongs to another model"):
        fit(other, updates=own)


def test_omitting_registered_layer_updates_warns() -> None:
    model = net()
    model.add_update(LayerUpdates())
    model.compile("sgd", "mse", updates=[])
    with pytest.warns(UserWarning, match="leaves out .*second/moving_variance, LayerUpdates"):
        model.fit(X, Y, verbose=0)


def test_configuration_restores_the_patterns() -> None:
    chosen = LayerUpdates(include=["first"], exclude="first/moving_mean")
    config = keras.saving.serialize_keras_object(chosen)
    again = keras.saving.deserialize_keras_object(config)
    model = net()
    again.build(model)
    assert [v.path for v in model.non_trainable_variables if again.chooses(v)] == [
        "first/moving_variance"
    ]


class Everything(keras.layers.Layer):
    """Assigns in its call, has weight and activity losses, and is called twice."""

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(shape[-1],), name="scale", regularizer="l2")
        self.calls = self.add_weight(shape=(), name="calls", trainable=False, initializer="zeros")

    def call(self, x: Any) -> Any:
        self.calls.assign_add(1.0)
        self.add_loss(0.1 * keras.ops.mean(x**2))
        return x * self.scale + self.calls


class Forget(keras.callbacks.Callback):
    """Mends plain Keras, which loses a loss now and then where JAX runs eagerly."""

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        keras_private.forget_losses(self.model)


def everything(model_class: type[keras.Model]) -> keras.Model:
    keras.utils.set_random_seed(3)
    inner_in = keras.Input((5,))
    x = keras.layers.BatchNormalization(name="inner_norm")(inner_in)
    inner = keras.Model(inner_in, keras.layers.Dropout(0.2, name="inner_drop")(x), name="inner")
    inputs = keras.Input((6,))
    x = keras.layers.Dense(5, name="dense", activity_regularizer="l1")(inputs)
    twice = Everything(name="twice")
    x = twice(inner(twice(x)))
    steps = keras.layers.Reshape((5, 1))(x)
    r = keras.layers.LSTM(3, dropout=0.2, recurrent_dropout=0.2, name="lstm")(steps)
    r = keras.layers.Concatenate()([r, keras.layers.GRU(3, dropout=0.2, name="gru")(steps)])
    spectral = keras.layers.SpectralNormalization(keras.layers.Dense(4, name="sn"), name="spectral")
    x = keras.layers.Concatenate()([x, r, spectral(x)])
    return model_class(
        inputs,
        {"a": keras.layers.Dense(2, name="a")(x), "b": keras.layers.Dense(2, name="b")(x)},
    )


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="default"),
        pytest.param({"run_eagerly": True}, id="eager"),
        pytest.param(
            {"steps_per_execution": 2},
            id="steps",
            marks=pytest.mark.backends("tensorflow", "jax"),  # PyTorch has no such option
        ),
        pytest.param({"check_numerics": True}, id="checked"),
    ],
)
def test_collected_updates_equal_those_of_stock_training(options: dict[str, Any]) -> None:
    targets = {"a": Y, "b": -Y}
    results = []
    for model_class, mine in ((keras.Model, {}), (kt.TrainOpsModel, {"updates": [LayerUpdates()]})):
        checked = (
            options
            if model_class is kt.TrainOpsModel
            else {k: v for k, v in options.items() if k != "check_numerics"}
        )
        model = everything(model_class)
        model.compile(
            keras.optimizers.Adam(0.01),
            {"a": "mse", "b": "mae"},
            metrics={"a": ["mae"]},
            **checked,
            **mine,
        )
        history = model.fit(
            X, targets, batch_size=10, epochs=3, shuffle=False, verbose=0, callbacks=[Forget()]
        ).history
        results.append((model, history))
    (stock, stock_history), (ours, our_history) = results
    assert_same_arithmetic(
        [value(v) for v in ours.variables], [value(v) for v in stock.variables]
    )  # seeds too
    for name, numbers in stock_history.items():
        np.testing.assert_allclose(our_history[name], numbers, rtol=1e-6)
    # Stock assigns this counter twice in each of 12 steps; that it did shows what was compared.
    assert value(ours.get_layer("twice").calls) == 24
    start = everything(keras.Model)
    assert differ(weights(start.get_layer("spectral")), weights(ours.get_layer("spectral"))) > 1e-3


def test_seeds_advance_under_an_empty_policy() -> None:
    def drop(model_class: type[keras.Model]) -> keras.Model:
        keras.utils.set_random_seed(3)
        inputs = keras.Input((6,))
        x = keras.layers.Dropout(0.5, name="drop", seed=5)(inputs)
        return model_class(inputs, keras.layers.Dense(2)(x))

    stock, ours = fit(drop(keras.Model)), fit(drop(kt.TrainOpsModel), updates=[])
    assert_same([value(v) for v in ours.variables], [value(v) for v in stock.variables])
    seeds = [value(v) for v in ours.variables if "seed" in v.path]
    fresh = [value(v) for v in drop(kt.TrainOpsModel).variables if "seed" in v.path]
    assert not np.array_equal(seeds[0], fresh[0])


class CountingCell(keras.layers.Layer):
    """A recurrent cell that counts its steps."""

    state_size = output_size = 2

    def build(self, shape: Any) -> None:
        self.steps = self.add_weight(shape=(), name="steps", trainable=False, initializer="zeros")

    def call(self, x: Any, states: Any, training: bool = False) -> Any:
        self.steps.assign(self.steps + 1)
        return x + states[0], [x + states[0]]


def recurrent(unroll: bool, model_class: type[keras.Model] = kt.TrainOpsModel) -> Any:
    keras.utils.set_random_seed(3)
    inputs = keras.Input((3, 2))
    x = keras.layers.TimeDistributed(keras.layers.BatchNormalization(name="norm"))(inputs)
    x = keras.layers.RNN(CountingCell(), unroll=unroll, name="rnn")(x)
    return model_class(inputs, keras.layers.Dense(2)(x))


def test_unrolled_time_steps_are_collected() -> None:
    x = X.reshape(40, 3, 2)
    found = []
    for model, updates in (
        (recurrent(True, keras.Model), {}),
        (recurrent(True), {"updates": [LayerUpdates()]}),
    ):
        model.compile("sgd", "mse", **updates)
        model.fit(x, Y, batch_size=20, shuffle=False, verbose=0)
        found.append(weights(model))
        assert value(model.get_layer("rnn").cell.steps) == 6
    assert_same_arithmetic(found[1], found[0])


@pytest.mark.backends("tensorflow")  # on JAX plain Keras fails, and PyTorch has no graph
def test_rejects_updates_within_a_loop() -> None:
    model = recurrent(unroll=False)
    model.compile("sgd", "mse", updates=[LayerUpdates()])
    with pytest.raises(ValueError, match=r"assigns .*/steps inside a loop.*`unroll=True`"):
        model.fit(X.reshape(40, 3, 2), Y, verbose=0)


@pytest.mark.backends("tensorflow")
def test_updates_within_a_loop_run_by_default() -> None:
    model, stock = recurrent(unroll=False), recurrent(False, keras.Model)
    average = model.add_update(kt.updates.MovingAverage(0.9))
    for each in (model, stock):
        each.compile("sgd", "mse")
        each.fit(X.reshape(40, 3, 2), Y, shuffle=False, verbose=0)
    assert_same(weights(model), weights(stock))
    assert len(average.averages()) == 4


def test_frozen_batch_norm_stays_frozen() -> None:
    model = net()
    model.get_layer("first").trainable = False
    fit(model, updates=[LayerUpdates()])
    assert_same(statistics(model, "first"), [np.zeros(6, "float32"), np.ones(6, "float32")])
    assert (statistics(model, "second")[0] != 0).all()


def test_layer_updates_compile_with_xla() -> None:
    model = fit(net(), updates=[LayerUpdates(include="first")], jit_compile=True)
    stock = fit(net(keras.Model))
    np.testing.assert_allclose(
        statistics(model, "first")[0], statistics(stock, "first")[0], rtol=1e-5
    )
    assert_same(statistics(model, "second"), [np.zeros(5, "float32"), np.ones(5, "float32")])
