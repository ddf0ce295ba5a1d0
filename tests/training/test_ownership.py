"""What belongs to whom: optimizers, transforms and models that are used again."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import assert_same, assert_same_arithmetic, differ, two_layers, weights

T = kt.transforms
RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 4)).astype("float32")
Y = RNG.normal(size=(24, 2)).astype("float32")


def test_an_optimizer_is_free_of_transforms_it_is_compiled_without() -> None:
    optimizer = keras.optimizers.SGD(0.1)
    model, plain = kt.with_train_ops(two_layers()), two_layers()
    model.compile(optimizer, "mse", gradient_transforms=T.Scale(0.0))
    model.fit(X, Y, batch_size=8, verbose=0)
    assert_same(weights(model), weights(plain))
    model.compile(optimizer, "mse")
    plain.compile(keras.optimizers.SGD(0.1), "mse")
    for each in (model, plain):
        each.fit(X, Y, batch_size=8, shuffle=False, verbose=0)
    assert_same(weights(model), weights(plain))
    other = keras.optimizers.SGD(0.1)
    with pytest.raises(ValueError, match="`updates` must be None"):
        kt.with_train_ops(two_layers()).compile(
            other, "mse", gradient_transforms=T.Scale(0.0), updates="bad"
        )
    plain.compile(other, "mse")
    plain.fit(X, Y, verbose=0)
    assert differ(weights(plain), weights(model)) > 1e-4


def test_what_is_excluded_from_weight_decay_is_so_in_the_inner_optimizer() -> None:
    found = []
    for transforms in (None, T.Scale(1.0)):
        model = kt.with_train_ops(two_layers())
        optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.5)
        model.compile(optimizer, "mse", gradient_transforms=transforms)
        model.optimizer.exclude_from_weight_decay(var_names=["kernel"])
        model.fit(X, Y, batch_size=8, shuffle=False, verbose=0)
        found.append(weights(model))
    assert_same_arithmetic(*found)


def test_one_transform_and_one_optimizer_serve_one_model() -> None:
    clip, scale, optimizer = T.ClipByNorm(9.0), T.Scale(0.5), keras.optimizers.SGD(0.1)
    model, other = kt.with_train_ops(two_layers()), kt.with_train_ops(two_layers())
    model.compile(optimizer, "mse", gradient_transforms=[clip, scale])
    model.fit(X, Y, verbose=0)
    other.compile("sgd", "mse", gradient_transforms=clip)  # which keeps nothing of a model
    other.fit(X, Y, verbose=0)
    other.compile("sgd", "mse", gradient_transforms=scale)
    with pytest.raises(ValueError, match="This Scale belongs to another model already"):
        other.fit(X, Y, verbose=0)
    with pytest.raises(ValueError, match="'sgd' has trained another model: it was built for 'tr"):
        other.compile(optimizer, "mse")


def test_state_per_variable_cannot_be_carried_to_others() -> None:
    class Momenta(T.GradientTransform):
        def build(self, variables: Any) -> None:
            for i, v in enumerate(variables):
                self.add_variable(f"m{i}", v.shape)

        def __call__(self, gradients: Any, variables: Any) -> Any:
            return gradients

    model = kt.with_train_ops(two_layers())
    model.compile("sgd", "mse", gradient_transforms=Momenta(), variables_to_train=["head"])
    model.fit(X, Y, verbose=0)
    with pytest.raises(ValueError, match="keeps state that depends on which variables are"):
        model.compile(model.optimizer, "mse")


def test_a_compiled_model_that_was_given_the_mixin_is_saved() -> None:
    model = two_layers()
    model.compile("sgd", "mse")
    kt.with_train_ops(model).save("model.keras")
    assert_same(weights(keras.saving.load_model("model.keras")), weights(model))
