from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

import keras_trainops as kt
from keras_trainops.transforms.scope import update_scope
from tests.helpers import assert_same, numpy, value, values, weights
from tests.training.small_models import fit_small, net, train
from tests.transforms.gradients import GRADIENTS, T, close, each, run, variables


def test_scale_uses_the_first_matching_pattern() -> None:
    g = GRADIENTS
    expected = [g[0] * 0.5, g[1] * 2, None, g[3]]
    close(run(T.Scale({"bias": 2.0, "trunk": 0.5})), expected)
    close(run(T.Scale(3.0)), each(lambda g: g * 3))
    made = variables()
    scale = T.Scale([(made[1], 2.0), (made[0], 0.5)])
    scale.build(made)
    tensors = [None if x is None else ops.convert_to_tensor(x, "float32") for x in g]
    close([None if x is None else numpy(x) for x in scale(tensors, made)], expected)
    again = T.Scale.from_config(scale.get_config())
    close(run(again), expected)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"heads": 2.0}, "Pattern 'heads' matches no variable. Closest paths: 'head/kernel'"),
        ({"kernel": 2.0, "head": 1.0}, "Pattern 'head' never applies"),
        ({"head": "2"}, "A factor must be a finite number, .* Received: '2' for Pattern 'head'"),
        ({"head": float("nan")}, "A factor must be a finite number"),
        ({"head": keras.Variable([1.0, 2.0])}, "a scalar `keras.Variable`. Received: <Variable"),
        ({}, "`factors` must name at least one pattern"),
        ("head", "A factor must be a finite number"),
    ],
)
def test_rejects_invalid_factors(factors: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(T.Scale(factors))


def test_layerwise_decay_has_the_factors_of_timm() -> None:
    made = variables()
    decay = T.LayerwiseDecay(0.5, ["trunk/kernel", "trunk/bias", ["unused", "head"]], min_scale=0.3)
    decay.build(made)
    assert list(decay.step_factors(made)) == [0.3, 0.5, 1.0, 1.0]
    chain = T.Chain([decay, T.ScaleStep({"head": 0.5}), T.Only("trunk", T.ScaleStep(2.0))])
    chain.build(made)
    with update_scope(lambda: 0):
        assert list(chain.step_factors(made)) == [0.6, 1.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: T.LayerwiseDecay(1.5, ["a"]), r"`decay` must be above 0 and at most 1"),
        (lambda: T.LayerwiseDecay(0.5, []), r"must name at least one pattern"),
    ],
)
def test_rejects_invalid_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


class Halve(keras.callbacks.Callback):
    """Halves a variable after each epoch."""

    def __init__(self, variable: Any) -> None:
        super().__init__()
        self.variable = variable

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.variable.assign(self.variable * 0.5)


@pytest.mark.parametrize("kind", [T.Scale, T.ScaleStep])
def test_variables_are_read_in_every_update(kind: Any) -> None:
    factor = keras.Variable(1.0, trainable=False, name="factor")
    model = net()
    # The same variable twice: it is one part of the state.
    chain = [kind({"trunk": factor}), T.ScaleStep({"head": factor})]
    model.compile(keras.optimizers.SGD(0.01), "mse", gradient_transforms=chain)
    fit_small(model, epochs=2, callbacks=[Halve(factor)])
    assert value(factor) == 0.25
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([3], [1.0, 0.5])
    by_schedule = train(net(), keras.optimizers.SGD(0.01), gradient_transforms=kind(schedule))
    for ours, expected in zip(weights(model), by_schedule, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-7)
    assert sum(v is factor for v in model.optimizer.variables) == 1


def test_a_variable_is_saved_by_its_value() -> None:
    factor = keras.Variable(0.5, trainable=False, dtype="float32", name="factor")
    whole, half = net(), net()
    train(whole, keras.optimizers.Adam(0.01), gradient_transforms=T.ScaleStep({"trunk": 0.5}))
    train(half, keras.optimizers.Adam(0.01), gradient_transforms=T.ScaleStep({"trunk": factor}))
    half.save("half.keras")
    factor.assign(100.0)  # belongs to the other model
    again = keras.saving.load_model("half.keras")
    ((_, loaded),) = again.optimizer.chain.transforms[0].factors
    assert (value(loaded), loaded.dtype, loaded.name) == (0.5, "float32", "factor")
    for model in (whole, again):
        fit_small(model)
    assert_same(weights(again), weights(whole))
    loaded.assign(0.25)
    assert 0.25 in [v for v in values(again) if v.shape == ()]


class WithFactor(keras.layers.Layer):
    """Has a scalar weight."""

    def build(self, shape: Any) -> None:
        self.factor = self.add_weight(shape=(), trainable=False, name="factor")

    def call(self, x: Any) -> Any:
        return x


def test_rejects_a_variable_of_the_model() -> None:
    layers = [keras.Input((6,)), WithFactor(name="own"), keras.layers.Dense(2, name="head")]
    model = kt.with_train_ops(keras.Sequential(layers))
    scale = T.Scale({"head": model.get_layer("own").factor})
    with pytest.raises(ValueError, match=r"one of the model's own variables: '.*own/factor'"):
        train(model, "sgd", gradient_transforms=scale)


def test_a_variable_works_without_the_mixin() -> None:
    factor, found = keras.Variable(0.5, trainable=False), []
    for c in (factor, 0.5):
        model = net(keras.Model)
        optimizer = kt.TransformedOptimizer(keras.optimizers.SGD(0.01), T.Scale(c))
        found.append(train(model, optimizer))
    assert_same(*found)
