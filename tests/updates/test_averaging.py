"""Averages of weights: closed forms, Keras's own average, and how they are used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import (
    assert_same,
    assert_same_arithmetic,
    differ,
    two_layers,
    value,
    values,
    weights,
)

U = kt.updates
RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 4)).astype("float32")
Y = RNG.normal(size=(24, 2)).astype("float32")


class Weights(U.Update):
    """Records the kernel of `head` after each weight update."""

    def build(self, model: keras.Model) -> None:
        if not self.variables:
            self.row = self.add_variable("row", dtype="int32")
            self.kernels = self.add_variable("kernels", (100, 3, 2))

    def __call__(self, model: keras.Model, loss: Any) -> None:
        now = keras.ops.equal(keras.ops.arange(100), self.row.value)[:, None, None]
        kernel = model.get_layer("head").kernel.value
        self.kernels.assign(keras.ops.where(now, kernel, self.kernels.value))
        self.row.assign(self.row + 1)


def train(
    average: U.Update, epochs: int = 2, optimizer: Any = None, **options: Any
) -> tuple[Any, np.ndarray]:
    """A model trained for 12 steps an epoch, and the head's kernel after each."""
    model = kt.with_train_ops(two_layers())
    log = Weights()
    chosen = optimizer or keras.optimizers.SGD(0.05)
    model.compile(chosen, "mse", updates=[U.LayerUpdates(), log, average], **options)
    model.fit(X, Y, batch_size=2, epochs=epochs, shuffle=False, verbose=0)
    return model, value(log.kernels)[: int(value(log.row))].astype("float64")


def of_head(average: U.Update, model: keras.Model) -> np.ndarray:
    kernel = model.get_layer("head").kernel
    (found,) = [array for variable, array in average.averages() if variable is kernel]
    return found


def exponential(kernels: np.ndarray, decay: Callable[[int], float]) -> np.ndarray:
    average = kernels[0]
    for t, kernel in list(enumerate(kernels))[1:]:
        average = decay(t) * average + (1 - decay(t)) * kernel
    return average


def polynomial(step: Any) -> Any:
    return 1 - (1 + step / 4) ** -0.7


@pytest.mark.parametrize(
    ("decay", "oracle"),
    [
        (0.9, lambda t: 0.9),
        (U.WarmUp(0.9), lambda t: min(0.9, (1 + t) / (10 + t))),
        (U.WarmUp(0.8, power=0.7, gamma=4), lambda t: min(0.8, polynomial(t))),
        (
            keras.optimizers.schedules.PiecewiseConstantDecay([5], [0.5, 0.9]),
            lambda t: 0.5 if t <= 5 else 0.9,
        ),
    ],
    ids=["constant", "warm-up", "polynomial warm-up", "schedule"],
)
def test_average_follows_its_closed_form(decay: Any, oracle: Callable[[int], float]) -> None:
    average = U.MovingAverage(decay)
    model, kernels = train(average)
    np.testing.assert_allclose(of_head(average, model), exponential(kernels, oracle), atol=1e-6)
    assert differ([of_head(average, model)], [kernels[-1]]) > 1e-3


def test_debiased_average_follows_its_closed_form() -> None:
    average = U.MovingAverage(0.95, debias=True)
    model, kernels = train(average)
    share = 0.05 * 0.95 ** np.arange(len(kernels))[::-1]
    expected = np.tensordot(share, kernels, 1) / share.sum()
    np.testing.assert_allclose(of_head(average, model), expected, rtol=2e-5)


def test_average_of_every_fifth_update() -> None:
    average = U.MovingAverage(0.9, every=5)
    model, kernels = train(average)
    expected = exponential(kernels[4::5], lambda t: 0.9)
    np.testing.assert_allclose(of_head(average, model), expected, rtol=1e-5)


@pytest.mark.parametrize("eager", [False, True], ids=["graph", "eager"])
def test_average_equals_that_of_keras(eager: bool) -> None:
    average = U.MovingAverage(0.9)
    model, _ = train(average, run_eagerly=eager)
    stock = two_layers()
    stock.compile(
        keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.9), "mse", run_eagerly=eager
    )
    stock.fit(X, Y, batch_size=2, epochs=2, shuffle=False, verbose=0)
    # Stock writes its averages into the weights when training ends.
    assert differ([a for _, a in average.averages()], weights(stock)) <= 5e-7
    assert differ(weights(model), weights(stock)) > 1e-3


def test_stochastic_average_is_the_mean_of_later_weights() -> None:
    average = U.StochasticWeightAverage(start=8, every=3)
    model, kernels = train(average)
    chosen = [i for i in range(24) if (i + 1) % 3 == 0 and i + 1 >= 8]
    assert len(chosen) == 6
    np.testing.assert_allclose(of_head(average, model), kernels[chosen].mean(0), rtol=1e-5)
    early = U.StochasticWeightAverage(start=1000)
    model, kernels = train(early)
    np.testing.assert_array_equal(of_head(early, model), value(model.get_layer("head").kernel))


def with_statistics() -> Any:
    keras.utils.set_random_seed(3)
    inputs = keras.Input((4,))
    x = keras.layers.BatchNormalization(name="norm")(inputs)
    x = Counting(name="counting")(x)
    return kt.TrainOpsModel(inputs, keras.layers.Dense(2, name="head")(x))


class Counting(keras.layers.Layer):
    """Counts its calls in an integer."""

    def build(self, shape: Any) -> None:
        self.calls = self.add_weight(
            shape=(), dtype="int32", name="calls", trainable=False, initializer="zeros"
        )

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            self.calls.assign(self.calls + 1)
        return x


def test_patterns_and_statistics_choose_the_weights() -> None:
    def averaged(**options: Any) -> set[str]:
        model = with_statistics()
        average = U.MovingAverage(0.5, **options)
        model.compile("sgd", "mse")
        model.add_update(average)
        model.fit(X, Y, batch_size=8, shuffle=False, verbose=0)
        found = {v.path: array for v, array in average.averages()}
        for variable, array in average.averages():
            assert array.shape == variable.shape
            assert array.dtype == variable.dtype
        if "counting/calls" in found:
            assert found["counting/calls"] == 3  # copied
        if "norm/moving_mean" in found:
            means = X.reshape(3, 8, 4).mean(1)
            moving = np.zeros(4)
            expected = None
            for mean in means:
                moving = 0.99 * moving + 0.01 * mean
                expected = moving if expected is None else (expected + moving) / 2
            np.testing.assert_allclose(found["norm/moving_mean"], expected, rtol=1e-3, atol=1e-6)
        return set(found)

    trained = {"norm/gamma", "norm/beta", "head/kernel", "head/bias"}
    statistics = {"norm/moving_mean", "norm/moving_variance", "counting/calls"}
    assert averaged() == trained
    assert averaged(statistics=True) == trained | statistics
    assert averaged(patterns="head") == {"head/kernel", "head/bias"}
    assert averaged(patterns="head/bias", statistics=True) == {"head/bias"} | statistics


def test_half_precision_weights_have_float32_averages() -> None:
    inputs = keras.Input((4,))
    dense = keras.layers.Dense(2, name="head", dtype="bfloat16", bias_initializer="ones")
    model = kt.TrainOpsModel(inputs, dense(inputs))
    average = U.MovingAverage(0.999)
    model.compile(keras.optimizers.SGD(0.25), "mse", updates=[U.LayerUpdates(), average])
    model.fit(X, Y, batch_size=2, verbose=0)
    kept = {v.name: v.dtype for v in average.variables}
    assert kept["average_of_kernel"] == "float32"
    assert {array.dtype.name for _, array in average.averages()} == {"bfloat16"}


@pytest.mark.parametrize("fails", [False, True])
def test_swapped_restores_the_weights(fails: bool) -> None:
    average = U.MovingAverage(0.9)
    model, _ = train(average)
    own = values(model)
    averages = [array for _, array in average.averages()]
    if fails:
        with pytest.raises(KeyError, match="inside"), average.swapped():
            assert_same(weights(model), averages)
            raise KeyError("inside")
    else:
        with average.swapped():
            assert_same(weights(model), averages)
            inside = model.evaluate(X, Y, verbose=0)
        other = two_layers()
        other.set_weights(averages)
        other.compile("sgd", "mse")
        assert inside == pytest.approx(other.evaluate(X, Y, verbose=0), rel=1e-6)
    assert_same(values(model), own)
    average.finalize()
    assert_same(weights(model), averages)


class FailsInTheSecond(keras.callbacks.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.tests = 0

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self.tests += 1
        if self.tests == 2:
            raise KeyError("in validation")


def test_only_validation_uses_the_average() -> None:
    def fit(use: bool, extra: list[Any] | None = None) -> tuple[Any, Any, dict[str, Any]]:
        model = kt.with_train_ops(two_layers())
        average = U.MovingAverage(0.9)
        model.compile(keras.optimizers.SGD(0.05), "mse", updates=[U.LayerUpdates(), average])
        history = model.fit(
            X,
            Y,
            batch_size=4,
            epochs=3,
            shuffle=False,
            verbose=0,
            validation_data=(X, Y),
            validation_batch_size=24,
            callbacks=[*([kt.UseAverage()] if use else []), *(extra or [])],
        ).history
        return model, average, history

    model, average, history = fit(use=True)
    plain, _, plain_history = fit(use=False)
    assert_same(weights(model), weights(plain))
    assert history["loss"] == plain_history["loss"]
    with average.swapped():
        last = model.evaluate(X, Y, batch_size=24, verbose=0)
    assert history["val_loss"][-1] == pytest.approx(last, rel=1e-6)
    assert abs(history["val_loss"][-1] - plain_history["val_loss"][-1]) > 1e-4
    outside = model.evaluate(X, Y, batch_size=24, verbose=0)
    assert outside == pytest.approx(plain_history["val_loss"][-1], rel=1e-6)


def test_failing_validation_restores_the_weights() -> None:
    model = kt.with_train_ops(two_layers())
    model.compile(keras.optimizers.SGD(0.05), "mse")
    average = model.add_update(U.MovingAverage(0.9))
    plain = two_layers()
    plain.compile(keras.optimizers.SGD(0.05), "mse")
    plain.fit(X, Y, batch_size=4, shuffle=False, verbose=0)
    with pytest.raises(KeyError, match="in validation"):
        model.fit(
            X,
            Y,
            batch_size=4,
            shuffle=False,
            verbose=0,
            validation_data=(X, Y),
            validation_batch_size=8,
            callbacks=[kt.UseAverage(), FailsInTheSecond()],
        )
    assert_same_arithmetic(weights(model), weights(plain))
    assert differ(weights(model), [array for _, array in average.averages()]) > 1e-4
    loss = model.evaluate(X, Y, verbose=0)  # outside of `fit`: the model's own
    plain = two_layers()
    plain.set_weights(weights(model))
    plain.compile("sgd", "mse")
    assert loss == pytest.approx(plain.evaluate(X, Y, verbose=0), rel=1e-6)


def test_finalize_recalibrates_the_averaged_model() -> None:
    model = with_statistics()
    average = U.StochasticWeightAverage(start=3)
    model.compile(keras.optimizers.SGD(0.05), "mse", updates=[U.LayerUpdates(), average])
    use = kt.UseAverage(average, finalize=True, recalibrate=X)
    model.fit(X, Y, batch_size=4, epochs=2, verbose=0, validation_data=(X, Y), callbacks=[use])
    trained = [value(v) for v in model.trainable_variables]
    assert_same(trained, [array for _, array in average.averages()])
    norm = model.get_layer("norm")
    np.testing.assert_allclose(value(norm.moving_mean), X.mean(0), atol=1e-6)
    np.testing.assert_allclose(value(norm.moving_variance), X.var(0), rtol=1e-5)


def test_saved_average_is_resumed_exactly() -> None:
    def make() -> Any:
        model = kt.with_train_ops(two_layers())
        model.compile(
            keras.optimizers.Adam(0.05),
            "mse",
            updates=[U.LayerUpdates(), U.MovingAverage(0.9, debias=True)],
        )
        return model

    def fit(model: Any) -> Any:
        model.fit(X, Y, batch_size=4, shuffle=False, verbose=0)
        return model

    whole = fit(fit(make()))
    fit(make()).save("half.keras")
    loaded = keras.saving.load_model("half.keras")
    (average,) = loaded.train_ops.policy.after_weights
    assert differ([a for _, a in average.averages()], weights(loaded)) > 1e-3
    assert_same(values(fit(loaded)), values(whole))


def test_average_starts_from_warm_started_weights() -> None:
    loaded = {f"{v.path}": np.full(v.shape, 3.0, "float32") for v in two_layers().weights}
    model = kt.with_train_ops(two_layers())
    average = model.add_update(U.MovingAverage(0.999))
    model.compile(keras.optimizers.SGD(1e-6), "mse")
    model.fit(X, Y, verbose=0, callbacks=[kt.WarmStart(loaded, verbose=0)])
    for _, array in average.averages():
        np.testing.assert_allclose(array, 3.0, rtol=1e-3)


def test_averages_survive_other_variables_to_train() -> None:
    model = kt.with_train_ops(two_layers())
    average = U.MovingAverage(0.5)
    updates = [U.LayerUpdates(), average]
    model.compile("sgd", "mse", updates=updates, variables_to_train="head")
    model.fit(X, Y, verbose=0)
    before = of_head(average, model)
    model.compile(model.optimizer, "mse", updates=updates)
    model.fit(X, Y, epochs=0, verbose=0)
    assert len(average.averages()) == 4
    np.testing.assert_array_equal(of_head(average, model), before)


@pytest.mark.parametrize("debias", [False, True])
def test_variables_trained_later_start_their_own_average(debias: bool) -> None:
    model = kt.with_train_ops(two_layers())
    average = U.MovingAverage(0.9, debias=debias)
    updates = [U.LayerUpdates(), average]
    model.compile(keras.optimizers.SGD(0.0), "mse", updates=updates, variables_to_train="head")
    model.fit(X, Y, batch_size=6, verbose=0)
    model.compile(model.optimizer, "mse", updates=updates)
    model.fit(X, Y, batch_size=24, verbose=0)
    for variable, array in average.averages():
        np.testing.assert_allclose(array, value(variable), rtol=1e-5)


def test_average_serves_one_model() -> None:
    average = U.MovingAverage(0.9)
    model, _ = train(average)
    with pytest.raises(ValueError, match="This MovingAverage already belongs to another model"):
        train(average)
    assert average.averages()[0][0] is model.weights[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: U.MovingAverage(1.0), r"`decay` must be at least 0 and below 1\. Received: "),
        (lambda: U.WarmUp(-0.1), "`decay` must be"),
        (lambda: U.WarmUp(0.9, power=0), "`power` must be > 0, or None"),
        (lambda: U.StochasticWeightAverage(start=-1), "`start` must be an integer >= 0"),
        (lambda: U.MovingAverage(patterns=3), "A pattern must be a regular expression"),
        (lambda: U.MovingAverage().averages(), "MovingAverage has no averages yet"),
        (lambda: kt.UseAverage(0.9), "`average` must be a `MovingAverage`, a"),
        (lambda: train(U.MovingAverage(patterns="tail")), "'tail' matches no variable. Closest"),
    ],
)
def test_rejects_invalid_arguments(make: Any, message: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message):
        make()


def test_use_average_needs_one_average(tmp_path: Path) -> None:
    for updates in ([], [U.MovingAverage(), U.MovingAverage(0.9)]):
        model = kt.with_train_ops(two_layers())
        model.compile("sgd", "mse", updates=[U.LayerUpdates(), *updates])
        with pytest.raises(ValueError, match=f"needs one average .* there are {len(updates)}"):
            model.fit(X, Y, verbose=0, callbacks=[kt.UseAverage()])


class WithCounter(keras.layers.Layer):
    """Has a counter beside a float weight."""

    def build(self, shape: Any) -> None:
        self.counter = self.add_weight(
            shape=(), dtype="int32", trainable=False, initializer="zeros", name="counter"
        )
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, x: Any) -> Any:
        return x * self.scale


def test_integers_are_copied_without_a_correction() -> None:
    inputs = keras.Input((4,))
    model = kt.TrainOpsModel(inputs, WithCounter(name="with_counter")(inputs))
    counter = model.get_layer("with_counter").counter
    counter.assign(3)
    average = kt.updates.MovingAverage(0.99, debias=True, statistics=True)
    model.compile("sgd", "mse", updates=[average])
    model.fit(np.ones((6, 4)), np.ones((6, 4)), batch_size=2, verbose=0)
    averages = {id(variable): array for variable, array in average.averages()}
    assert averages[id(counter)] == 3
