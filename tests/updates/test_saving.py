"""The state of updates in saved models."""

from __future__ import annotations

from typing import Any

import keras
import pytest

import keras_trainops as kt
from tests.helpers import assert_same, two_layers, value, values
from tests.updates.run_log import Log, fit, mixed, net, ran


def test_state_is_resumed_with_the_optimizer() -> None:
    """The batch counter and an update's own variables, in a new object from a file."""

    def updates() -> list[Any]:
        return [kt.updates.LayerUpdates(), Log(every=5), Log(every=7, on="batch")]

    whole, half = net(updates=updates()), net(updates=updates())
    fit(whole)
    fit(whole)
    fit(half)
    half.save("half.keras")
    loaded = keras.saving.load_model("half.keras")
    fit(loaded)
    logs = loaded.train_ops.policy.after_weights
    assert [ran(log) for log in logs] == [(4, 20), (3, 21)]
    assert_same(values(loaded), values(whole))


def test_state_waits_for_updates_registered_later() -> None:
    model = net()
    model.add_update(Log(every=5))
    fit(model)
    model.save("model.keras")
    loaded = keras.saving.load_model("model.keras")
    log = loaded.add_update(Log(every=5))
    fit(loaded)
    assert ran(log) == (4, 20)


def test_warns_about_state_of_other_updates() -> None:
    model = net()
    model.add_update(Log())
    fit(model)
    model.save("model.keras")
    loaded = keras.saving.load_model("model.keras")
    log = loaded.add_update(Log(every=5, on="batch"))
    with pytest.warns(UserWarning, match=r"state for 2 update variables, but the model has 3"):
        fit(loaded)
    assert ran(log)[0] == 2


def test_waiting_state_is_saved_again() -> None:
    model = net()
    model.add_update(Log(every=5))
    fit(model)
    model.save("1.keras")
    keras.saving.load_model("1.keras").save("2.keras")
    loaded = keras.saving.load_model("2.keras")
    log = loaded.add_update(Log(every=5))
    fit(loaded)
    assert ran(log) == (4, 20)


def test_loss_scale_is_resumed_with_any_updates() -> None:
    model = mixed()
    model.add_update(Log())
    fit(model)
    model.optimizer.dynamic_scale.assign(8.0)
    model.save("model.keras")
    loaded = keras.saving.load_model("model.keras")
    assert value(loaded.optimizer.dynamic_scale) == 8
    fit(loaded)
    log = loaded.add_update(Log())
    fit(loaded)
    assert ran(log) == (value(model.optimizer.iterations) + 12, value(loaded.optimizer.iterations))


def test_weights_files_hold_no_update_state() -> None:
    model = net(updates=[kt.updates.LayerUpdates(), kt.updates.MovingAverage(0.9)])
    fit(model)
    model.save_weights("with.weights.h5")
    plain = two_layers(5)
    plain.load_weights("with.weights.h5")
    assert_same([value(v) for v in plain.weights], [value(v) for v in model.weights])
