"""Names of owners and variables, from their places in a weights file."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.checkpoints.formats.keras.naming import (
    StoredVariable,
    owner_prefixes,
    variable_keys,
)
from tests.checkpoints.writers import WRITERS
from tests.helpers import assert_same, make_everything, randomise, value, weights

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("group", "shapes", "names"),
    [
        ("layers/dense_1", [(3, 2), (2,)], ["kernel", "bias"]),
        ("layers/batch_normalization", [(2,), (2,)], ["moving_mean", "moving_variance"]),
        ("layers/gru/cell", [(2, 6), (2, 6)], ["kernel", "recurrent_kernel"]),
        ("layers/my_layer", [(2,), (2,)], ["0", "1"]),
        ("layers/my_layer", [(2, 3), (3,)], ["kernel", "bias"]),
    ],
)
def test_variables_are_named_by_class_or_shapes(
    group: str, shapes: list[tuple[int, ...]], names: list[str]
) -> None:
    stored = [StoredVariable(group, str(i), shape) for i, shape in enumerate(shapes)]
    assert list(variable_keys(stored, {group: "mine"}).values()) == [f"mine/{n}" for n in names]
    assert list(variable_keys(stored, {}).values()) == [f"{group}/{n}" for n in names]


def test_a_layer_keeps_the_names_it_chose() -> None:
    stored = [StoredVariable("layers/dense", key, (3, 2)) for key in ("matrix", "offset")]
    keys = variable_keys(stored, {"layers/dense": "mine"})
    assert list(keys.values()) == ["mine/matrix", "mine/offset"]


def test_owners_of_one_name_are_numbered_in_order() -> None:
    groups = ["layers/dense_10", "layers/dense_2", "layers/net/layers/dense"]
    owners = {**dict.fromkeys(groups, "same"), "layers/net": "net"}
    prefixes = owner_prefixes(groups, owners)
    assert list(prefixes.items()) == [
        ("layers/dense_2", "same#1/"),
        ("layers/dense_10", "same#2/"),
        ("layers/net/layers/dense", "net/same/"),
    ]


class Twins(keras.Model):
    """Two layers of one name, and two variables of one name."""

    def __init__(self) -> None:
        super().__init__()
        self.one = keras.layers.Dense(3, name="dense")
        self.two = keras.layers.Dense(3, name="dense")

    def build(self, input_shape: object) -> None:
        self.one.build((None, 3))
        self.two.build((None, 3))
        self.first = self.add_weight(shape=(3,), name="w")
        self.second = self.add_weight(shape=(3,), name="w")

    def call(self, x: object) -> object:
        return self.two(self.one(x)) * self.first + self.second


def twins(seed: int) -> keras.Model:
    model = Twins()
    model(np.ones((1, 3)))
    return randomise(model, seed)


@pytest.mark.parametrize("form", ["weights.h5", "model"])
def test_numbers_layers_and_variables_of_one_name(form: str) -> None:
    source, target = make_everything(twins)
    report = kt.restore(target, WRITERS[form](source))
    assert_same(weights(target), weights(source))
    assert len(report.restored) == 6
    kt.restore(target, {"dense#1/bias": [1.0, 2.0, 3.0], "dense#2/bias": [4.0, 5.0, 6.0]})
    np.testing.assert_array_equal(value(target.two.bias), [4.0, 5.0, 6.0])


def test_names_the_variables_of_recurrent_cells() -> None:
    inputs = keras.Input((3, 2))
    keras.Model(inputs, keras.layers.GRU(2, name="gru")(inputs)).save_weights("w.weights.h5")
    with kt.open_checkpoint("w.weights.h5") as checkpoint:
        leaves = [key.rpartition("/")[2] for key in checkpoint]
    assert leaves == ["kernel", "recurrent_kernel", "bias"]
