from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import assert_same, differ, refused, value, values

TargetNetwork = kt.updates.TargetNetwork
RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 4)).astype("float32")
Y = RNG.normal(size=(12, 2)).astype("float32")


def part(name: str, units: int = 2, trainable: bool = True) -> keras.Model:
    inputs = keras.Input((4,))
    x = keras.layers.BatchNormalization(name="norm")(inputs)
    made = keras.Model(inputs, keras.layers.Dense(units, name="out")(x), name=name)
    made.trainable = trainable
    return made


def net(update: Any, units: int = 2, trainable: bool = False, **options: Any) -> Any:
    keras.utils.set_random_seed(3)
    online, target = part("online"), part("target", units, trainable)
    inputs = keras.Input((4,))
    model = kt.TrainOpsModel(inputs, online(inputs) + 0 * keras.ops.sum(target(inputs)))
    updates = [kt.updates.LayerUpdates(), update]
    model.compile(keras.optimizers.SGD(0.1), "mse", updates=updates, **options)
    return model


def fit(model: Any, **options: Any) -> Any:
    model.fit(X, Y, batch_size=2, shuffle=False, verbose=0, **options)
    return model


def of(model: Any, name: str) -> list[np.ndarray]:
    return [value(v) for v in model.get_layer(name).weights]


def test_target_follows_softly() -> None:
    """Compare each step with NumPy, batch statistics included."""
    model = net(TargetNetwork("online", "target", tau=0.25))
    expected = of(model, "online")
    for i in range(0, 12, 2):
        model.train_on_batch(X[i : i + 2], Y[i : i + 2])
        expected = [0.25 * s + 0.75 * t for s, t in zip(of(model, "online"), expected, strict=True)]
        assert differ(of(model, "target"), expected) <= 1e-6
    assert differ(of(model, "target"), of(model, "online")) > 1e-3


def test_target_is_copied_every_few_steps() -> None:
    model = net(TargetNetwork("online", "target", every=4))
    start = of(model, "online")
    assert differ(of(model, "target"), start) > 1e-3
    copies = []
    for i in range(0, 12, 2):
        model.train_on_batch(X[i : i + 2], Y[i : i + 2])
        copies.append((of(model, "target"), of(model, "online")))
    for step, (target, online) in enumerate(copies, start=1):
        if step < 4:
            assert_same(target, start)  # which it takes over as training begins
        elif step == 4:
            assert_same(target, online)
        else:
            assert_same(target, copies[3][1])


def test_target_starts_once_from_warm_started_weights() -> None:
    model = net(TargetNetwork("online", "target", every=1000))
    arrays = {f"online/{v.path}": np.full(v.shape, 2.0) for v in part("online").weights}
    fit(model, callbacks=[kt.WarmStart(arrays, verbose=0)])
    fit(model)
    assert all((weight == 2).all() for weight in of(model, "target"))
    assert not all((weight == 2).all() for weight in of(model, "online"))


def test_target_starts_when_its_training_begins() -> None:
    model = net(TargetNetwork("online", "target", every=1000))
    model.compile(model.optimizer, "mse")
    fit(model)
    update = TargetNetwork("online", "target", every=1000)
    model.compile(model.optimizer, "mse", updates=[kt.updates.LayerUpdates(), update])
    start = of(model, "online")
    fit(model)
    assert_same(of(model, "target"), start)
    model.compile(keras.optimizers.SGD(0.1), "mse", updates=[kt.updates.LayerUpdates(), update])
    fit(model)
    assert_same(of(model, "target"), start)


def test_saved_target_is_resumed_exactly() -> None:
    def update() -> Any:
        return TargetNetwork("online", "target", tau=0.1, every=2)

    whole = fit(fit(net(update())))
    fit(net(update())).save("half.keras")
    assert_same(values(fit(keras.saving.load_model("half.keras"))), values(whole))


def test_layers_may_be_given_instead_of_names() -> None:
    keras.utils.set_random_seed(3)
    online, target = part("online"), part("target", trainable=False)
    inputs = keras.Input((4,))
    model = kt.TrainOpsModel(inputs, online(inputs) + 0 * keras.ops.sum(target(inputs)))
    model.compile(
        "sgd", "mse", updates=[kt.updates.LayerUpdates(), TargetNetwork(online, target, 0.5)]
    )
    by_name = net(TargetNetwork("online", "target", 0.5))
    by_name.optimizer.learning_rate = 0.01
    assert_same(of(fit(model), "target"), of(fit(by_name), "target"))


@pytest.mark.parametrize(
    ("update", "options", "message"),
    [
        (
            TargetNetwork("online", "target", 0.5),
            {"units": 3},
            r"out/kernel \(4, 2\) and .*\(4, 3\)",
        ),
        (TargetNetwork("online", part("norm"), 0.5), {}, "has no layer 'norm' to take"),
        (TargetNetwork("online", "online", 0.5), {}, "the same variables in both: .*kernel"),
        (
            TargetNetwork("online", "aim", 0.5),
            {},
            "has no layer 'aim' to take",
        ),
        (TargetNetwork("online", "target", 0.5), {"trainable": True}, "must not be trained.*gamma"),
    ],
)
def test_source_and_target_must_fit(update: Any, options: Any, message: str) -> None:
    model = net(update, **options)
    model.optimizer.build(model.trainable_variables)
    with refused(model, rf"(?s){message}"):
        fit(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Pass `tau` or `every`, which define how the target follows"),
        ({"tau": 0}, "`tau` must be above 0 and at most 1"),
        ({"tau": 1.5}, "`tau` must be above 0 and at most 1"),
        ({"every": 0}, "`every` must be an integer >= 1"),
    ],
)
def test_rejects_invalid_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TargetNetwork("online", "target", **arguments)
    with pytest.raises(ValueError, match="`target` must be a layer or the name of one"):
        TargetNetwork("online", [], tau=0.5)
