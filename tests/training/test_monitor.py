"""Norms in the logs."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import numpy, value

T = kt.transforms
RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 6)).astype("float32")
Y = RNG.normal(size=(32, 2)).astype("float32") * 10
TRACED = pytest.mark.backends("tensorflow", "jax")  # PyTorch has no such option in Keras


def net(model_class: type[keras.Model] = kt.TrainOpsModel) -> Any:
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(8, activation="tanh", name="trunk")(inputs)
    return model_class(inputs, keras.layers.Dense(2, name="head")(x))


class Norms(T.GradientTransform):
    """Keeps each update's joint norm, an oracle that does nothing else."""

    def __init__(self, count: int) -> None:
        self.count = count

    def build(self, variables: Any) -> None:
        self.norms = self.add_variable("norms", (self.count,))
        self.at = self.add_variable("at", dtype="int32")

    def __call__(self, gradients: Any, variables: Any) -> Any:
        squares = [keras.ops.sum(keras.ops.square(g)) for g in gradients]
        norm = keras.ops.sqrt(keras.ops.sum(keras.ops.stack(squares)))
        here = keras.ops.equal(keras.ops.arange(self.count), self.at)
        self.norms.assign(keras.ops.where(here, norm, self.norms.value))
        self.at.assign(self.at + 1)
        return gradients


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="default"),
        pytest.param({"run_eagerly": True}, id="eager"),
        pytest.param({"steps_per_execution": 3}, id="steps", marks=TRACED),
        pytest.param({"jit_compile": True}, id="xla", marks=TRACED),
        pytest.param({"updates": [kt.updates.LayerUpdates()]}, id="policy"),
    ],
)
@pytest.mark.parametrize("count", [None, 2], ids=["plain", "accumulation"])
def test_the_logs_hold_the_mean_norm_of_the_epoch_s_updates(
    options: dict[str, Any], count: int | None
) -> None:
    updates = 8 // (count or 1)
    model, norms = net(), Norms(updates)
    chain = [T.Monitor({"h": "head"}, name="raw"), norms, T.ClipByGlobalNorm(0.5), T.Monitor()]
    optimizer = keras.optimizers.SGD(0.01, gradient_accumulation_steps=count)
    model.compile(optimizer, "mse", metrics=["mae"], gradient_transforms=chain, **options)
    history = model.fit(
        X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0, validation_data=(X, Y)
    ).history
    assert set(history) == {
        *("loss", "mae", "val_loss", "val_mae"),
        *("raw", "raw/h", "gradient_norm"),
    }
    np.testing.assert_allclose(history["gradient_norm"], [0.5, 0.5], rtol=1e-5)
    expected = value(norms.norms).reshape(2, -1).mean(1)
    np.testing.assert_allclose(history["raw"], expected, rtol=1e-5)
    assert all(0 < h < r for h, r in zip(history["raw/h"], history["raw"], strict=True))
    evaluated = model.evaluate(X, Y, verbose=0, return_dict=True)
    assert set(evaluated) == {"loss", "mae"}
    assert set(model.train_on_batch(X, Y, return_dict=True)) == set(history) - {
        "val_loss",
        "val_mae",
    }


def test_monitors_change_nothing() -> None:
    results = []
    for chain in ([T.ClipByNorm(0.5)], [T.Monitor(histogram=True), T.ClipByNorm(0.5)]):
        model = net()
        model.compile(keras.optimizers.Adam(0.01), "mse", gradient_transforms=chain)
        model.fit(X, Y, batch_size=8, shuffle=False, verbose=0)
        results.append(model.get_weights())
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-7)  # XLA fuses them in different ways


def test_two_monitors_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"log under one name: gradient_norm. Give each"):
        net().compile("sgd", "mse", gradient_transforms=[T.Monitor(), T.Monitor()])


class Root(keras.layers.Layer):
    """Its gradient is infinite at 0, where its value is fine."""

    def build(self, shape: Any) -> None:
        self.w = self.add_weight(shape=(), initializer="ones", name="w")

    def call(self, x: Any) -> Any:
        small = keras.ops.cast(keras.ops.all(keras.ops.equal(x, 0)), "float32")
        return x + keras.ops.sqrt(self.w * (1 - small))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="default"),
        pytest.param({"run_eagerly": True}, id="eager"),
        pytest.param({"jit_compile": True}, id="xla", marks=TRACED),
        pytest.param({"steps_per_execution": 4}, id="steps", marks=TRACED),
    ],
)
def test_a_bad_gradient_is_named(options: dict[str, Any]) -> None:
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(2, name="after")(Root(name="root")(inputs))
    model = kt.TrainOpsModel(inputs, x)
    model.compile(keras.optimizers.Adam(0.01), "mse", check_numerics=True, **options)
    data = X.copy()
    data[16:24] = 0  # the third batch
    message = r"The gradient of 'root/w' became NaN or infinite at step 2 "
    with pytest.raises(kt.NonFiniteLossError, match=message):
        model.fit(data, Y, batch_size=8, shuffle=False, verbose=0)
    assert model.optimizer.iterations == 2
    assert all(np.isfinite(w).all() for w in model.get_weights())
    assert np.isfinite(numpy(model(X))).all()
    model.fit(X, Y, batch_size=8, verbose=0)
    assert model.optimizer.iterations == 6
