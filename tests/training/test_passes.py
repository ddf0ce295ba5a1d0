from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.backends import backend
from keras_trainops.training.passes import Batch, Outcome, passes
from tests.helpers import assert_same, numpy, two_layers, value, values

RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 4)).astype("float32")
Y = RNG.normal(size=(8, 2)).astype("float32")
WEIGHTS = np.arange(8, dtype="float32")


def compiled(model: Any, **options: Any) -> Any:
    kt.with_train_ops(model).compile(keras.optimizers.SGD(0.1, **options), "mse", updates=[])
    model.optimizer.build(model.trainable_variables)
    return model


def run(model: Any, sample_weight: Any = None) -> Outcome:
    """Make the passes as a training step does."""
    tensors = [None if t is None else keras.ops.convert_to_tensor(t) for t in (X, Y, sample_weight)]
    found = []

    def step(model: Any, data: Any) -> dict[str, Any]:
        found.append(passes(model, Batch(*data)))
        return {}

    state: list[Any] = []
    if keras.backend.backend() == "jax":
        optimizer, metrics = model.optimizer.variables, model.metrics_variables
        groups = (model.trainable_variables, model.non_trainable_variables, optimizer, metrics)
        state = [tuple([v.value for v in group] for group in groups)]
    backend().run_step(step, model, *state, tensors)
    return found[0]


def closed_form(model: Any, sample_weight: Any) -> list[np.ndarray]:
    """Return the gradients of the weighted mean squared error of two linear layers."""
    kernel1, bias1, kernel2, bias2 = [value(v).astype("float64") for v in model.weights]
    hidden = X @ kernel1 + bias1
    of_output = 2 * (hidden @ kernel2 + bias2 - Y) * sample_weight[:, None] / (8 * 2)
    of_hidden = of_output @ kernel2.T
    return [X.T @ of_hidden, of_hidden.sum(0), hidden.T @ of_output, of_output.sum(0)]


@pytest.mark.parametrize("sample_weight", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("scale", [None, 8.0])
def test_gradients_are_the_closed_form_times_the_scale(scale: Any, sample_weight: Any) -> None:
    model = compiled(two_layers(), loss_scale_factor=scale)
    outcome = run(model, sample_weight)
    expected = closed_form(model, np.ones(8) if sample_weight is None else sample_weight)
    for gradient, wanted in zip(outcome.gradients, expected, strict=True):
        np.testing.assert_allclose(numpy(gradient), wanted * (scale or 1), rtol=1e-4, atol=1e-5)
    error = np.square(numpy(outcome.y_pred) - Y).mean(1)
    loss = error.mean() if sample_weight is None else (error * sample_weight).mean()
    np.testing.assert_allclose(numpy(outcome.loss), loss, rtol=1e-5)  # not scaled


def test_passes_collect_assignments_without_making_them() -> None:
    inputs = keras.Input((4,))
    x = keras.layers.Dense(2)(keras.layers.BatchNormalization(momentum=0.5, name="norm")(inputs))
    model = compiled(keras.Model(inputs, x))
    before = values(model)
    outcome = run(model)
    assert_same(values(model), before)
    norm = model.get_layer("norm")
    assigned = {variable.path: numpy(new) for variable, new in outcome.assigned}
    assert assigned.keys() == {"norm/moving_mean", "norm/moving_variance"}
    np.testing.assert_allclose(assigned[norm.moving_mean.path], X.mean(0) / 2, rtol=1e-5, atol=1e-6)


def test_a_variable_without_influence_has_no_gradient() -> None:
    class Idle(keras.layers.Layer):
        def build(self, shape: Any) -> None:
            self.idle = self.add_weight(shape=(2,), name="idle")

        def call(self, x: Any) -> Any:
            return x

    inputs = keras.Input((4,))
    model = compiled(keras.Model(inputs, keras.layers.Dense(2)(Idle()(inputs))))
    names = [variable.name for variable in model.trainable_variables]
    gradient = dict(zip(names, run(model).gradients, strict=True))["idle"]
    assert gradient is None or not numpy(gradient).any()  # JAX has zeros
