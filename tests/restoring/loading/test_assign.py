from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.restoring.loading import assign as assigning
from tests.helpers import assert_same, refused, two_layers, value
from tests.restoring.helpers import ALL, arrays


def test_values_are_cast_to_the_variables_dtype() -> None:
    inputs = keras.Input((4,))
    layer = keras.layers.Dense(2, name="half", dtype="float16")
    model = keras.Model(inputs, layer(inputs))
    kt.restore(model, {"half/kernel": np.full((4, 2), 1 / 3), "half/bias": [1, 2]})
    np.testing.assert_array_equal(value(layer.kernel), np.full((4, 2), 1 / 3).astype("float16"))
    with refused(
        model, "half/bias: the tensor under key 'half/bias' has values outside the range of float16"
    ):
        kt.restore(model, {"half/bias": [1e6, 0.0]})


@pytest.mark.parametrize("memory", ["once", "bounded"])
def test_a_failed_assignment_is_rolled_back(monkeypatch: pytest.MonkeyPatch, memory: Any) -> None:
    model = two_layers()
    last = model.weights[-1]
    original = type(last).assign

    def assign(self: Any, new: Any) -> Any:
        if self is last and np.all(np.asarray(new) == 4):
            raise MemoryError("no room")
        return original(self, new)

    monkeypatch.setattr(type(last), "assign", assign)
    with refused(model, "no room", MemoryError):
        kt.restore(model, ALL, memory=memory)


def test_all_old_values_come_back_if_tensors_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large ones too, in the memory that a variable took over, cast and partly adapted ones."""
    inputs = keras.Input((1024,))
    half = keras.layers.Dense(1024, name="half", dtype="float16")
    x = keras.layers.Dense(1024, name="large")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, name="last")(half(x)))
    source = {v.path: np.ones(v.shape, "float32") for v in model.weights}
    bias, original = model.get_layer("last").bias, keras.Variable.assign

    def assign(self: keras.Variable, new: Any) -> Any:
        if self is bias and np.all(keras.ops.convert_to_numpy(new) == 1):
            raise MemoryError("no room")
        return original(self, new)

    crop = {"half/kernel": lambda array: np.ma.masked_less(array, 2)}
    before = [value(variable) for variable in model.weights]
    with monkeypatch.context() as patch:
        patch.setattr(keras.Variable, "assign", assign)
        for adapt in (None, crop):
            with pytest.raises(MemoryError, match="no room") as error:
                kt.restore(model, source, adapt=adapt, memory="once")
            assert not getattr(error.value, "__notes__", [])
    assert_same([value(variable) for variable in model.weights], before)
    kt.restore(model, source, memory="once")
    assert all((value(variable) == 1).all() for variable in model.weights)


@pytest.mark.once
def test_values_that_cannot_be_rolled_back_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    model = two_layers()
    last, original = model.get_layer("head").bias, keras.Variable.assign

    def assign(self: keras.Variable, new: Any) -> Any:
        if self is last:
            raise MemoryError("no room")
        return original(self, new)

    monkeypatch.setattr(keras.Variable, "assign", assign)
    monkeypatch.setattr(assigning, "UNDO_BYTES", 24)
    with pytest.raises(MemoryError, match="no room") as error:
        kt.restore(model, arrays(), memory="bounded")
    assert "half-loaded: 2 variables keep their new values" in error.value.__notes__[0]


@pytest.mark.once
def test_the_largest_is_assigned_first(assigned: list[str]) -> None:
    model, source = two_layers(), arrays()
    del assigned[:]
    kt.restore(model, source, memory="bounded")
    assert assigned == ["trunk/kernel", "head/kernel", "trunk/bias", "head/bias"]
