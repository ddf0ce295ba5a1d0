from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.training.trainability import Trainability
from tests.helpers import assert_same, differ, refused, weights

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 4)).astype("float32")
Y = RNG.normal(size=(16, 2)).astype("float32")


TRAIN: dict[str, Callable[[Any], Any]] = {
    "fit": lambda m: m.fit(X, Y, batch_size=8, shuffle=False, verbose=0),
    "train_on_batch": lambda m: m.train_on_batch(X, Y),
}


either_way = pytest.mark.parametrize("train", TRAIN.values(), ids=TRAIN)


def net(model_class: Any = kt.TrainOpsModel, name: str | None = None) -> Any:
    keras.utils.set_random_seed(3)
    inputs = keras.Input((4,))
    x = keras.layers.Dense(5, activation="tanh", name="trunk")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    return model_class(inputs, keras.layers.Dense(2, name="head")(x), name=name)


def freeze_all(model: Any) -> None:
    model.trainable = False


def freeze_each(model: Any) -> None:
    for layer in model.layers:
        layer.trainable = False


@either_way
@pytest.mark.parametrize("trained_before", [False, True])
def test_refuses_a_layer_frozen_since_compile(train: Any, trained_before: bool) -> None:
    model = net()
    model.compile("sgd", "mse")
    if trained_before:
        train(model)
    model.get_layer("trunk").trainable = False
    message = r"have changed since the model was compiled: trunk/kernel, trunk/bias\. Compile again"
    with refused(model, message):
        train(model)
    model.compile(model.optimizer, "mse")
    trunk = weights(model)[:2]
    train(model)
    assert_same(weights(model)[:2], trunk)


@pytest.mark.parametrize("change", ["less", "more"])
def test_refuses_freezing_and_thawing_after_training(change: str) -> None:
    model = net()
    model.get_layer("trunk").trainable = change == "less"
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model.fit(X, Y, verbose=0)
    model.get_layer("trunk").trainable = change == "more"
    before = weights(model)
    with pytest.raises(ValueError, match=r"have changed .*: trunk/kernel, trunk/bias. Compile ag"):
        model.fit(X, Y, verbose=0)
    assert_same(weights(model), before)
    model.compile(model.optimizer, "mse")
    model.fit(X, Y, verbose=0)


@either_way
def test_refuses_a_model_unfrozen_since_compile(train: Any) -> None:
    model = net()
    model.trainable = False
    model.compile("sgd", "mse")
    before = weights(model)
    if keras.backend.backend() == "jax":
        train(model)
    else:
        with pytest.warns(UserWarning, match="does not have any trainable weights"):
            train(model)
    assert_same(weights(model), before)
    model.trainable = True
    every = "trunk/kernel, trunk/bias, norm/gamma, norm/beta, head/kernel, head/bias"
    with refused(model, f"since the model was compiled: {re.escape(every)}. Compile again"):
        train(model)
    model.compile("sgd", "mse")
    train(model)
    assert differ(weights(model), before) > 1e-4


@either_way
def test_refuses_a_single_weight_frozen_since_compile(train: Any) -> None:
    model = net()
    model.compile("sgd", "mse")
    model.get_layer("head").bias.trainable = False
    with refused(model, r"since the model was compiled: head/bias\. Compile again"):
        train(model)


@either_way
def test_layers_outside_variables_to_train_may_be_frozen(train: Any) -> None:
    model = net()
    model.compile("sgd", "mse", variables_to_train=["head"])
    model.get_layer("trunk").trainable = False
    before = weights(model)
    train(model)
    assert differ(weights(model)[-2:], before[-2:]) > 1e-4
    assert_same(weights(model)[:2], before[:2])
    model.get_layer("head").trainable = False
    model.get_layer("trunk").trainable = True
    with refused(model, r"since the model was compiled: head/kernel, head/bias\. Compile again"):
        train(model)


def test_unbuilt_models_remember_which_layers_were_trainable() -> None:
    model = kt.with_train_ops(
        keras.Sequential([keras.layers.Dense(3, name="trunk"), keras.layers.Dense(2, name="head")])
    )
    model.compile("sgd", "mse")
    model.layers[0].trainable = False
    with pytest.raises(ValueError, match=r"since the model was compiled: trunk\. Compile again"):
        model.fit(X, Y, verbose=0)
    model.layers[0].trainable = True
    model.fit(X, Y, verbose=0)
    assert len(model.trainable_variables) == 4


def compiled_to_train(train: Any, trained_before: bool, chosen: bool) -> Any:
    model = net()
    updates = [kt.updates.LayerUpdates()] if chosen else None
    model.compile(keras.optimizers.Adam(0.01), "mse", updates=updates)
    if trained_before:
        train(model)
    return model


@functools.cache
def weights_unfrozen(train: Any, trained_before: bool, chosen: bool) -> list[np.ndarray]:
    """Return the weights after the same training, never frozen."""
    model = compiled_to_train(train, trained_before, chosen)
    for _ in range(2):
        train(model)
    return weights(model)


@either_way
@pytest.mark.parametrize("freeze", [freeze_all, freeze_each])
@pytest.mark.parametrize("trained_before", [False, True])
@pytest.mark.parametrize("chosen", [False, True], ids=["keras", "policy"])
def test_a_model_frozen_inside_another_trains_as_compiled(
    train: Any, freeze: Any, trained_before: bool, chosen: bool
) -> None:
    """As in a GAN, bit for bit as the same training without the other model."""
    frozen = compiled_to_train(train, trained_before, chosen)
    freeze(frozen)
    flags = [layer.trainable for layer in (frozen, *frozen.layers)]
    for _ in range(2):
        train(frozen)
        assert [layer.trainable for layer in (frozen, *frozen.layers)] == flags
    # Batch-norm statistics too.
    assert_same(weights(frozen), weights_unfrozen(train, trained_before, chosen))


@pytest.mark.parametrize("combined_class", [keras.Model, kt.TrainOpsModel])
def test_trains_a_generative_adversarial_network(combined_class: Any) -> None:
    keras.utils.set_random_seed(1)
    critic, noise = net(name="critic"), keras.Input((3,))
    critic.compile("sgd", "mse")
    generator = keras.Model(noise, keras.layers.Dense(4, name="make")(noise), name="generator")
    critic.trainable = False
    combined = combined_class(noise, critic(generator(noise)))
    combined.compile("sgd", "mse")
    draws = RNG.normal(size=(16, 3)).astype("float32")
    for _ in range(2):
        before = weights(critic), weights(generator)
        critic.train_on_batch(X, Y)
        assert differ(weights(critic), before[0]) > 1e-4
        assert_same(weights(generator), before[1])
        before = weights(critic), weights(generator)
        combined.train_on_batch(draws, Y)
        assert_same(weights(critic), before[0])
        assert differ(weights(generator), before[1]) > 1e-5


def test_shared_layers_get_their_flags_back() -> None:
    inputs, shared = keras.Input((4,)), keras.layers.Dense(4, name="shared")
    inner = keras.Model(inputs, shared(shared(inputs)), name="inner")
    x = keras.layers.Dense(2, name="head")(inner(inputs) + shared(inputs))
    model = kt.TrainOpsModel(inputs, x)
    shared.trainable = False
    model.compile("sgd", "mse")
    model.trainable = False
    before = weights(model)
    model.fit(X, Y, verbose=0)
    assert {
        v.path
        for v, a, b in zip(model.weights, before, weights(model), strict=True)
        if not np.array_equal(a, b)
    } == {"head/kernel", "head/bias"}
    assert not any(layer.trainable for layer in (model, *model.layers, shared))


class Stop(keras.callbacks.Callback):
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        raise RuntimeError("stop here")


def test_layers_get_their_flags_back_after_errors() -> None:
    model = net()
    model.compile("sgd", "mse")
    model.trainable = False
    with pytest.raises(RuntimeError, match="stop here"):
        model.fit(X, Y, verbose=0, callbacks=[Stop()])
    assert not any(layer.trainable for layer in (model, *model.layers))


def test_layers_of_one_name_are_told_apart() -> None:
    class Lazy(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.built_one = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="a")])
            self.lazy_one = keras.layers.Dense(2, name="a")

        def call(self, x: Any) -> Any:
            return self.lazy_one(self.built_one(x))

    model = Lazy()
    before = Trainability(model)
    model.built_one.layers[0].trainable = False
    assert before.changed_unbuilt(model) == []
    model.lazy_one.trainable = False
    assert before.changed_unbuilt(model) == ["a"]
