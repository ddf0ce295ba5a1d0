from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import assert_same, refused, value, values, weights

RNG = np.random.default_rng(0)
X = RNG.normal(3.0, 2.0, size=(22, 6, 6, 3)).astype("float32")
Y = RNG.normal(size=(22, 2)).astype("float32")


def net() -> Any:
    """A model with two batch norms, one after the other, and a frozen one."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6, 6, 3))
    x = keras.layers.BatchNormalization(name="first")(inputs)
    x = keras.layers.Conv2D(4, 3, activation="relu", name="conv")(x)
    x = keras.layers.BatchNormalization(name="second", momentum=0.9)(x)
    x = keras.layers.BatchNormalization(name="frozen", trainable=False)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = kt.TrainOpsModel(inputs, keras.layers.Dense(2, name="head")(x))
    model.compile("sgd", "mse")
    return model


def moments(model: Any, name: str) -> list[np.ndarray]:
    layer = model.get_layer(name)
    return [value(layer.moving_mean), value(layer.moving_variance)]


def one_big_batch() -> Any:
    """A model trained with momentum 0 on one batch of all data."""
    model = net()
    for name in ("first", "second"):
        model.get_layer(name).momentum = 0.0
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(X, Y, batch_size=len(X), verbose=0)
    return model


@pytest.mark.parametrize("batch_size", [22, 8, 5])
def test_layer_by_layer_equals_one_big_batch(batch_size: int) -> None:
    model = net()
    kt.updates.recalibrate_batch_norm(model, X, batch_size=batch_size, layer_by_layer=True)
    for name in ("first", "second"):
        found, expected = moments(model, name), moments(one_big_batch(), name)
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)
    assert_same(moments(model, "frozen"), moments(net(), "frozen"))
    np.testing.assert_allclose(moments(model, "first")[1], X.var((0, 1, 2)), rtol=1e-5)


def test_one_pass_pools_the_moments_of_batches() -> None:
    model = net()
    before = net()
    kt.updates.recalibrate_batch_norm(model, X, batch_size=8)
    expected = moments(one_big_batch(), "first")
    np.testing.assert_allclose(moments(model, "first"), expected, rtol=1e-5)
    means, squares, counts = [], [], []
    for i in range(0, len(X), 8):
        batch = X[i : i + 8]
        scaled = (batch - batch.mean((0, 1, 2))) / np.sqrt(batch.var((0, 1, 2)) + 1e-3)
        hidden = keras.ops.convert_to_numpy(before.get_layer("conv")(scaled.astype("float32")))
        means.append(hidden.mean((0, 1, 2)))
        squares.append((hidden**2).mean((0, 1, 2)))
        counts.append(len(batch))
    mean = np.average(means, axis=0, weights=counts)
    variance = np.average(squares, axis=0, weights=counts) - mean**2
    np.testing.assert_allclose(moments(model, "second"), (mean, variance), rtol=1e-4, atol=1e-5)


def test_callback_recalibrates_at_the_end_of_training() -> None:
    model = net()
    precise = kt.RecalibrateBatchNorm((X, Y), batch_size=5, layer_by_layer=True)
    model.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=[precise])
    stock = net()
    stock.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    assert_same(
        [value(v) for v in model.trainable_variables], [value(v) for v in stock.trainable_variables]
    )
    np.testing.assert_allclose(moments(model, "first")[0], X.mean((0, 1, 2)), rtol=1e-5)
    assert [model.get_layer(n).momentum for n in ("first", "second")] == [0.99, 0.9]
    assert [model.get_layer(n).trainable for n in ("first", "second", "frozen")] == [1, 1, 0]
    model.fit(X, Y, batch_size=8, verbose=0)  # and it trains on


class Batches(keras.utils.PyDataset):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Any:
        rows = slice(4 * index, 4 * index + 4)
        return X[rows], Y[rows]


@pytest.mark.parametrize("steps", [None, 2])
def test_datasets_and_a_number_of_steps(steps: int | None) -> None:
    model, other = net(), net()
    kt.updates.recalibrate_batch_norm(model, Batches(), steps)
    kt.updates.recalibrate_batch_norm(other, X[: 4 * (steps or 5)], batch_size=4)
    assert_same(weights(model), weights(other))


def test_layer_called_twice_pools_both_calls() -> None:
    first, second = keras.Input((3,)), keras.Input((3,))
    norm = keras.layers.BatchNormalization(name="norm")
    model = keras.Model([first, second], norm(first) + norm(second))
    a, b = RNG.normal(1, 2, size=(10, 3)), RNG.normal(5, 1, size=(10, 3))
    kt.updates.recalibrate_batch_norm(model, [a, b], batch_size=4)
    both = np.concatenate([a, b])
    np.testing.assert_allclose(moments(model, "norm"), (both.mean(0), both.var(0)), rtol=1e-5)


@pytest.mark.parametrize("batch_size", [10, 3])
def test_masked_values_do_not_count(batch_size: int) -> None:
    inputs = keras.Input((4, 3))
    x = keras.layers.Masking()(inputs)
    model = keras.Model(inputs, keras.layers.BatchNormalization(name="norm")(x))
    data = RNG.normal(2, 3, size=(10, 4, 3)).astype("float32")
    lengths = np.arange(10) % 4 + 1
    data[np.arange(4) >= lengths[:, None]] = 0
    kt.updates.recalibrate_batch_norm(model, data, batch_size=batch_size)
    there = data[np.arange(4) < lengths[:, None]]
    np.testing.assert_allclose(moments(model, "norm"), (there.mean(0), there.var(0)), rtol=1e-4)


def test_frozen_variables_stay_frozen() -> None:
    model = net()
    model.get_layer("first").gamma.trainable = False
    kt.updates.recalibrate_batch_norm(model, X, layer_by_layer=True)
    assert not model.get_layer("first").gamma.trainable
    assert "call" not in vars(model.get_layer("first"))


def test_verbose_reports_layers_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    kt.updates.recalibrate_batch_norm(net(), X, batch_size=8, verbose=1)
    assert "Recalibrated 2 batch normalizations in " in capsys.readouterr().out


def test_failures_change_nothing() -> None:
    def broken() -> Any:
        yield X[:4], Y[:4]
        raise KeyError("no more")

    model = net()
    with refused(model, "no more", KeyError):
        kt.updates.recalibrate_batch_norm(model, broken())
    assert model.get_layer("second").momentum == 0.9
    without = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with refused(without, "has no `keras.layers.BatchNormalization` that is not frozen"):
        kt.updates.recalibrate_batch_norm(without, np.zeros((2, 3)))
    with refused(model, "`data` contains nothing that reaches 'first'"):
        kt.updates.recalibrate_batch_norm(model, iter_nothing())
    for steps in (0, True, 1.5):
        with refused(model, rf"`steps` must be an integer >= 1, or None\. Received: steps={steps}"):
            kt.updates.recalibrate_batch_norm(model, X, steps=steps)
    with refused(model, "goes through the data several times, but `data` is a generator"):
        kt.updates.recalibrate_batch_norm(model, broken(), layer_by_layer=True)
    assert values(model)


def test_rejects_empty_data_for_several_passes() -> None:
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.BatchNormalization()(inputs))
    with pytest.raises(ValueError, match="`data` is empty"):
        kt.updates.recalibrate_batch_norm(model, iter_nothing(), layer_by_layer=True)


def iter_nothing() -> Any:
    class Nothing(keras.utils.PyDataset):
        def __len__(self) -> int:
            return 0

    return Nothing()
