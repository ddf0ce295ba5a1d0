from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import value
from tests.updates import run_log
from tests.updates.batch_norm import X, Y, net

LayerUpdates = kt.updates.LayerUpdates


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
def test_functions_run_in_order_under_steps_per_execution() -> None:
    model = net()
    log = keras.Variable(np.zeros(()), trainable=False)
    double = kt.updates.Function(lambda model, loss: log.assign(log * 2), [log])
    increment = kt.updates.Function(lambda model, loss: log.assign(log + 1), [log])
    model.compile("sgd", "mse", updates=[LayerUpdates(), increment, double], steps_per_execution=2)
    model.fit(X, Y, batch_size=20, verbose=0)
    assert value(log) == 6  # ((0 + 1) * 2 + 1) * 2


def test_functions_with_variables_have_no_configuration() -> None:
    own = keras.Variable(0.0, trainable=False)
    own_update = kt.updates.Function(lambda model, loss: own.assign(loss), [own])
    model = run_log.net(updates=[own_update])
    run_log.fit(model)
    with pytest.raises(ValueError, match="has its own variables, which a configuration"):
        model.save("model.keras")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kt.updates.Function(print, ["a"]), r"`variables` must be `keras\.Variable`s"),
        (lambda: kt.updates.Function(3), "`function` must be callable"),
        (
            lambda: run_log.net().add_update(run_log.Log(), every=2),
            r"Only functions take options here \(received: every\)\. Pass them to Log itself",
        ),
        (
            lambda: run_log.net().add_update(LayerUpdates(), every=2),
            r"Only functions take options here .* Pass them to LayerUpdates itself",
        ),
    ],
)
def test_rejects_invalid_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
