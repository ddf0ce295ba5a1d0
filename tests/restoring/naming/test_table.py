from __future__ import annotations

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import assert_same, value, weights
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
