from __future__ import annotations

from typing import Any

import keras

import keras_trainops as kt
from keras_trainops.training.steps.texts import EVALUATION, TRAINING, has_own_text, text_of


class Below(keras.Model):
    def training_step(self, step: Any, data: Any) -> dict[str, Any]:
        return {"below": 1.0}


def test_the_users_text_goes_first_wherever_its_class_stands() -> None:
    model: Any = kt.with_train_ops(Below())
    assert has_own_text(model, TRAINING)
    assert not has_own_text(model, EVALUATION)
    assert text_of(model, TRAINING)(None, None) == {"below": 1.0}


def test_the_mixins_text_is_the_default() -> None:
    inputs = keras.Input((2,))
    model: Any = kt.TrainOpsModel(inputs, inputs)
    assert not has_own_text(model, TRAINING)
    assert text_of(model, TRAINING) == model.training_step
