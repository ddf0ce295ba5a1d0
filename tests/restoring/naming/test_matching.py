from __future__ import annotations

import keras
import numpy as np

import keras_trainops as kt
from tests.helpers import refused, two_layers
from tests.restoring.helpers import marks


def test_a_rule_may_lead_to_a_variable() -> None:
    model = two_layers()
    kt.restore(model, {"b": np.full(2, 5.0)}, rename={"b": model.get_layer("head").bias})
    assert marks(model)[3] == 5.0
    stranger = keras.Variable(np.zeros(2), name="stranger")
    with refused(model, "leads to the variable 'stranger', which is not a weight of this model"):
        kt.restore(model, {"b": np.full(2, 6.0)}, rename={"b": stranger})


def test_owners_distinguish_variables_with_equal_paths() -> None:
    def inner(name: str) -> keras.Model:
        x = keras.Input((4,))
        return keras.Model(x, keras.layers.Dense(2, name="dense")(x), name=name)

    inputs = keras.Input((4,))
    model = keras.Model(inputs, inner("left")(inputs) + inner("right")(inputs))
    arrays = {"left/dense/bias": np.full(2, 1.0), "right/dense/bias": np.full(2, 2.0)}
    kt.restore(model, arrays)
    assert marks(model)[1::2] == [1.0, 2.0]
    with refused(model, r"names 2 variables: 'left/dense/bias', 'right/dense/bias'"):
        kt.restore(model, {"dense/bias": np.full(2, 3.0)})
    kt.restore(model, {"dense/bias": np.full(2, 3.0)}, rename={"dense/bias": "right/dense/bias"})
    assert marks(model)[1::2] == [1.0, 3.0]
    kt.restore(
        model, {k: v + 5 for k, v in arrays.items()}, include="left"
    )  # owners work in patterns too
    assert marks(model)[1::2] == [6.0, 3.0]
