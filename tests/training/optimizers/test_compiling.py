from __future__ import annotations

import contextlib
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.training.optimizers.compiling import OptimizerArguments, with_loss_scales
from tests.helpers import two_replicas, weights

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 4)).astype("float32")
Y = RNG.normal(size=(24, 2)).astype("float32")


def test_the_optimizers_of_users_are_not_changed() -> None:
    own = {"a": keras.optimizers.Adam(), "b": keras.optimizers.SGD()}
    before = {name: dict(vars(each)) for name, each in own.items()}
    group = OptimizerArguments(
        "rmsprop", own, {"a": kt.transforms.ClipByNorm(1.0)}, {"a": "x", "b": "y"}
    ).create(keeps_state=True)
    assert {name: vars(each) for name, each in own.items()} == before
    assert isinstance(group.by_name["a"], kt.TransformedOptimizer)
    assert group.by_name["a"].inner_optimizer is own["a"]
    assert group.by_name["b"] is own["b"]


def test_a_loss_scale_goes_around_each_of_several() -> None:
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())
    group = kt.OptimizerGroup({"a": scaled, "b": keras.optimizers.SGD()}, {"a": "x", "b": "y"})
    found = with_loss_scales(keras.optimizers.LossScaleOptimizer(group))
    assert found.by_name["a"] is scaled
    assert isinstance(found.by_name["b"], keras.optimizers.LossScaleOptimizer)
    single = keras.optimizers.SGD()
    assert with_loss_scales(single) is single


@pytest.mark.backends("tensorflow")
def test_gradients_accumulate_on_replicas() -> None:
    """Plain Keras raises: replicas synchronise within a condition."""
    trained = []
    for scope in (contextlib.nullcontext, two_replicas().scope):
        with scope():
            keras.utils.set_random_seed(1)
            inputs = keras.Input((4,))
            model: Any = kt.TrainOpsModel(inputs, keras.layers.Dense(2)(inputs))
            model.compile(keras.optimizers.SGD(0.1, 0.9, gradient_accumulation_steps=3), "mse")
        model.fit(X, Y, batch_size=4, epochs=2, shuffle=False, verbose=0)
        assert int(model.optimizer.iterations.numpy()) == 4
        trained.append(weights(model))
    for one, two in zip(*trained, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
