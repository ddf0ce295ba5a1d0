from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.restoring.naming.table import counted_names
from tests.helpers import assert_same, refused, value, weights
from tests.restoring.nested_models import FORMATS, made


def test_the_models_own_name_may_be_left_out() -> None:
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(2, name="head")], name="some_name_7"
    )
    assert model.weights[0].path == "some_name_7/head/kernel"
    for key in ("head/bias", "some_name_7/head/bias"):
        model.weights[1].assign([0.0, 0.0])
        kt.restore(model, {key: np.ones(2)})
        np.testing.assert_array_equal(value(model.weights[1]), np.ones(2))


@pytest.mark.once
def test_a_backbone_restores_into_its_outer_model() -> None:
    backbone = made(("functional", "backbone", (("dense",), ("a",))))
    model = made(
        ("sequential", "net", (("functional", "backbone", (("dense",), ("a",))), ("dense",))), 1000
    )
    head = weights(model)[4:]
    assert len(kt.restore(model, backbone, exclude=[model.layers[1]]).restored) == 4
    assert_same(weights(model)[:4], weights(backbone))
    assert_same(weights(model)[4:], head)
    again = made(("functional", "backbone", (("dense",), ("a",))), 1000)
    kt.restore(again, model)
    assert_same(weights(again), weights(backbone))


@pytest.mark.once
def test_layers_shared_between_models_restore() -> None:
    def shared(first: int) -> keras.Model:
        layer, i = keras.layers.Dense(2, name="dense"), keras.Input((2,))
        one, two = (keras.Model(i, layer(i), name=name) for name in ("one", "two"))
        model = keras.Sequential(
            [keras.Input((2,)), one, two, keras.layers.Dense(2, name="dense")], name="net"
        )
        for position, variable in enumerate(model.weights):
            variable.assign(np.full(variable.shape, first + position))
        return model

    for written in ("model", ".keras", ".weights.h5", ".safetensors"):
        source, target = shared(0), shared(1000)
        assert len(source.weights) == 4
        kt.restore(target, FORMATS[written](source))
        assert_same(weights(target), weights(source))


def test_a_star_is_the_variable_of_the_same_meaning() -> None:
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.BatchNormalization(name="norm")], name="net"
    )
    random = np.random.default_rng(0)
    leaves = ("running_var", "bias", "running_mean", "weight")
    theirs = {f"bn.{leaf}": random.normal(size=4).astype("float32") for leaf in leaves}
    report = kt.restore(model, theirs, rename={r"bn\.\w+": "norm/*"})
    assert report.restored == {
        "net/norm/gamma": "bn.weight",
        "net/norm/beta": "bn.bias",
        "net/norm/moving_mean": "bn.running_mean",
        "net/norm/moving_variance": "bn.running_var",
    }
    np.testing.assert_array_equal(value(model.weights[0]), theirs["bn.weight"])


def test_a_star_leads_tensors_without_a_counterpart_nowhere() -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="fc")], name="net")
    theirs = {"x.weight": np.ones((4, 2)), "x.running_mean": np.ones(2), "x.y": np.ones(2)}
    report = kt.plan_restore(model, theirs, rename={r"x\.\w+": "fc/*"}, on_unexpected="ignore")
    assert report.restored == {"net/fc/kernel": "x.weight"}
    assert report.unexpected == ("x.running_mean", "x.y")
    with refused(model, r"leads to no variable of the model: none is named 'fk/\*'"):
        kt.restore(model, theirs, rename={r"x\.\w+": "fk/*"})


class Block(keras.layers.Layer):
    """Two normalisations with automatic names."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name)
        self.first = keras.layers.LayerNormalization()
        self.second = keras.layers.LayerNormalization()

    def call(self, inputs: Any) -> Any:
        return self.second(self.first(inputs))


def test_automatic_names_may_be_counted_in_their_owner() -> None:
    keras.layers.LayerNormalization()  # so that the first number is not 0
    x = inputs = keras.Input((3,))
    blocks = [Block(f"block{i}") for i in range(2)]
    for block in blocks:
        x = block(x)
    model = keras.Model(inputs, x, name="net")
    theirs = {
        f"h.{i}.ln_{j}.{leaf}": np.full(3, 10 * i + j)
        for i in (0, 1)
        for j in (1, 2)
        for leaf in ("weight", "bias")
    }
    rules = {r"h\.(\d)\.ln_(\d)\.\w+": r"block\1/layer_normalization#\2/*"}
    kt.restore(model, theirs, rename=rules)
    for i, block in enumerate(blocks):
        for j, layer in ((1, block.first), (2, block.second)):
            assert {float(value(v)[0]) for v in layer.weights} == {10 * i + j}
    theirs["h.1.ln_3.weight"] = np.ones(3)
    with refused(model, r"unused: h.1.ln_3.weight"):
        kt.restore(model, theirs, rename=rules)


def test_paths_are_counted_within_their_owner() -> None:
    names = ["a/norm_3/w", "a/norm_3/b", "a/norm_9/w", "a/fc/w", "b/norm_4/w", "top"]
    assert list(counted_names(dict.fromkeys(names))) == [
        *("a/norm#1/w", "a/norm#1/b", "a/norm#2/w", "a/fc#1/w", "b/norm#1/w", "top")
    ]
