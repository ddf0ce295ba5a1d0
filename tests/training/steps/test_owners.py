from __future__ import annotations

from typing import Any

import keras
import pytest

import keras_trainops as kt
from keras_trainops.training.steps.owners import owners, owners_of, the_one
from tests.training.custom_steps import adversaries, fit


def test_each_variable_names_its_optimizer_before_and_after_the_build() -> None:
    model = adversaries()
    fit(model, steps_per_epoch=1)
    built = owners_of(owners(model), model.trainable_variables)
    assert sorted(set(built)) == ["critic", "generator"]
    model.compile(
        optimizers={"critic": "sgd", "generator": "sgd"},
        variables_to_train={"critic": model.critic, "generator": model.generator},
    )
    assert owners_of(owners(model), model.trainable_variables) == built


def test_a_model_without_an_optimizer_is_an_error() -> None:
    inputs = keras.Input((2,))
    model: Any = kt.TrainOpsModel(inputs, keras.layers.Dense(1)(inputs))
    model.compile(None, "mse")
    with pytest.raises(ValueError, match="must be compiled with an optimizer"):
        owners_of(owners(model), model.trainable_variables)


def test_one_name_is_asked_for() -> None:
    assert the_one(["a", "a"]) == "a"
    for names in (["a", "b"], []):
        with pytest.raises(ValueError, match="one optimizer at a time"):
            the_one(names)
