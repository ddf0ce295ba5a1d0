from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import two_layers, value


def group(**options: Any) -> kt.OptimizerGroup:
    optimizers = {"low": keras.optimizers.Adam(0.1), "high": keras.optimizers.SGD(0.2, 0.9)}
    return kt.OptimizerGroup(optimizers, {"low": "trunk", "high": "head"}, **options)


def test_it_has_the_variables_of_all_in_scopes_of_their_own() -> None:
    optimizer, model = group(), two_layers()
    optimizer.build(model.trainable_variables)
    parts = list(optimizer.optimizers)
    assert optimizer.variables == [*parts[0].variables, *parts[1].variables]
    slots = {v.path.split("/")[0] for v in optimizer.variables if "kernel" in v.path}
    assert slots == {"low", "high"}
    assert value(optimizer.iterations) == 0


def test_configuration_restores_it() -> None:
    optimizer = group(name="both")
    config = keras.saving.serialize_keras_object(optimizer)
    again = keras.saving.deserialize_keras_object(config)
    assert again.name == "both"
    assert list(again.by_name) == ["low", "high"]
    assert isinstance(again.by_name["high"], keras.optimizers.SGD)
    assert dict(again.patterns) == {"low": ["trunk"], "high": ["head"]}


def test_averages_of_each_reach_the_weights() -> None:
    model = two_layers()
    optimizers = {
        "low": keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5),
        "high": keras.optimizers.SGD(0.1),
    }
    optimizer = kt.OptimizerGroup(optimizers, {"low": "trunk", "high": "head"})
    optimizer.build(model.trainable_variables)
    average = optimizers["low"]._model_variables_moving_average[0]
    average.assign(np.full(average.shape, 7.0))
    head = value(model.get_layer("head").kernel)
    optimizer.finalize_variable_values(model.trainable_variables)
    np.testing.assert_array_equal(value(model.get_layer("trunk").kernel), np.full((4, 3), 7.0))
    np.testing.assert_array_equal(value(model.get_layer("head").kernel), head)


def test_an_optimizer_may_not_be_there_twice() -> None:
    one = keras.optimizers.SGD()
    with pytest.raises(ValueError, match="must have an optimizer of its own"):
        kt.OptimizerGroup({"a": one, "b": one}, {"a": "trunk", "b": "head"})


def test_a_pattern_must_match_a_variable() -> None:
    with pytest.raises(ValueError, match="Pattern 'trnk' matches no variable"):
        kt.OptimizerGroup({"a": keras.optimizers.SGD()}, {"a": "trnk"}).build(
            two_layers().trainable_variables
        )
