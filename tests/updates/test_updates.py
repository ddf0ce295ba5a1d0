from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops import keras_private
from tests.helpers import assert_same, assert_same_arithmetic, differ, value, weights

LayerUpdates = kt.updates.LayerUpdates
RNG = np.random.default_rng(0)
X = RNG.normal(2.0, 3.0, size=(40, 6)).astype("float32")
Y = RNG.normal(size=(40, 2)).astype("float32")


def net(model_class: type[keras.Model] = kt.TrainOpsModel, momentum: float = 0.9) -> Any:
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6,))
    x = keras.layers.BatchNormalization(name="first", momentum=momentum)(inputs)
    x = keras.layers.Dense(5, name="dense")(x)
    x = keras.layers.BatchNormalization(name="second")(x)
    return model_class(inputs, keras.layers.Dense(2, name="head")(x))


def fit(model: keras.Model, epochs: int = 2, **compile_options: Any) -> keras.Model:
    options = {"optimizer": keras.optimizers.SGD(0.01), "loss": "mse", **compile_options}
    model.compile(**options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what a list leaves out; it has its own tests
        model.fit(X, Y, batch_size=20, epochs=epochs, shuffle=False, verbose=0)
    return model


def statistics(model: keras.Model, name: str) -> list[np.ndarray]:
    layer = model.get_layer(name)
    return [value(layer.moving_mean), value(layer.moving_variance)]


def test_the_layers_own_updates_follow_the_policy() -> None:
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


def test_a_list_names_once_what_it_leaves_out() -> None:
    model = net()

    @model.add_update
    def registered(model: Any, loss: Any) -> None:
        pass

    model.compile("sgd", "mse", updates=[LayerUpdates(include=["first"])])
    expected = "leaves out .*: second/moving_mean, second/moving_variance, registered"
    with pytest.warns(UserWarning, match=expected) as caught:
        model.fit(X, Y, epochs=2, verbose=0)
        model.fit(X, Y[:, ::-1], verbose=0)
    assert len([w for w in caught if "leaves out" in str(w.message)]) == 1


@pytest.mark.parametrize("updates", [None, [LayerUpdates()]])
def test_a_policy_that_leaves_nothing_out_says_nothing(updates: Any) -> None:
    model = net()
    model.compile("sgd", "mse", updates=updates)
    model.fit(X, Y, verbose=0)  # a warning would be an error here
    assert (statistics(model, "first")[0] != 0).all()


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
def test_the_collected_updates_equal_stock_training_bit_for_bit(options: dict[str, Any]) -> None:
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


def test_seeds_advance_and_training_is_stock_where_there_is_nothing_to_leave_out() -> None:
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


def test_updates_over_time_steps_are_collected_where_they_are_unrolled() -> None:
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
def test_updates_within_a_loop_are_refused_with_what_to_do() -> None:
    model = recurrent(unroll=False)
    model.compile("sgd", "mse", updates=[LayerUpdates()])
    with pytest.raises(ValueError, match=r"assigns .*/steps within a loop.*`unroll=True`"):
        model.fit(X.reshape(40, 3, 2), Y, verbose=0)


@pytest.mark.backends("tensorflow")
def test_updates_within_a_loop_run_where_nothing_is_chosen() -> None:
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


def test_it_compiles_with_xla() -> None:
    model = fit(net(), updates=[LayerUpdates(include="first")], jit_compile=True)
    stock = fit(net(keras.Model))
    np.testing.assert_allclose(
        statistics(model, "first")[0], statistics(stock, "first")[0], rtol=1e-5
    )
    assert_same(statistics(model, "second"), [np.zeros(5, "float32"), np.ones(5, "float32")])


@pytest.mark.parametrize("how", ["list", "before", "after", "decorator"])
@pytest.mark.parametrize("eager", [False, True], ids=["graph", "eager"])
def test_functions_run_after_each_weight_update(how: str, eager: bool) -> None:
    model = net()
    count = keras.Variable(0, trainable=False, dtype="int32")
    last = keras.Variable(np.zeros((5, 2)), trainable=False)
    total = keras.Variable(0.0, trainable=False)

    def update(model: keras.Model, loss: Any) -> None:
        count.assign_add(1)
        total.assign_add(loss)
        last.assign(model.get_layer("head").kernel)

    own = [count, last, total]
    updates = None
    if how == "list":
        updates = [LayerUpdates(), kt.updates.Function(update, own)]
    elif how == "before":
        assert model.add_update(update, variables=own) is update
    elif how == "decorator":
        assert model.add_update(variables=own)(update) is update
    model.compile(keras.optimizers.SGD(0.01), "mse", updates=updates, run_eagerly=eager)
    if how == "after":
        model.add_update(update, variables=own)
    history = model.fit(X, Y, batch_size=20, epochs=3, verbose=0).history
    assert count == 6
    assert float(keras.ops.convert_to_tensor(total)) == pytest.approx(
        2 * sum(history["loss"]), rel=1e-5
    )
    np.testing.assert_array_equal(value(last), value(model.get_layer("head").kernel))


@pytest.mark.backends("tensorflow", "jax")  # PyTorch has no steps_per_execution
def test_functions_run_in_the_order_of_the_list_and_under_steps_per_execution() -> None:
    model = net()
    log = keras.Variable(np.zeros(()), trainable=False)
    double = kt.updates.Function(lambda model, loss: log.assign(log * 2), [log])
    increment = kt.updates.Function(lambda model, loss: log.assign(log + 1), [log])
    model.compile("sgd", "mse", updates=[LayerUpdates(), increment, double], steps_per_execution=2)
    model.fit(X, Y, batch_size=20, verbose=0)
    assert value(log) == 6  # ((0 + 1) * 2 + 1) * 2


@pytest.mark.parametrize(
    ("updates", "message"),
    [
        ([LayerUpdates(include=["frist"])], "'frist' matches no variable. Closest paths: 'first/"),
        ([3], r"An update must be an `Update` .* Received: 3"),
        ([LayerUpdates], "An update must be an `Update`"),
        (3, "`updates` must be None .* or a list of updates"),
    ],
)
def test_updates_that_make_no_sense(updates: Any, message: str) -> None:
    model = net()
    before = weights(model)
    with pytest.raises(ValueError, match=message):
        model.compile("sgd", "mse", updates=updates)
        model.fit(X, Y, verbose=0)
    assert_same(weights(model), before)
    with pytest.raises(ValueError, match="An update must be an `Update`"):
        model.add_update("moving")
