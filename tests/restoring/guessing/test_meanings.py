"""Tensors that fit and mean something else are a question."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

import keras_trainops as kt
from tests.helpers import refused, value

pytestmark = pytest.mark.once


def network(norm: type[keras.layers.Layer]) -> keras.Model:
    layers = [keras.Input((4,)), keras.layers.Dense(5, name="up_proj"), norm(name="norm")]
    return keras.Sequential(layers)


def written(directory: Path, model_type: str) -> Path:
    tensors = {
        "up_proj.weight": np.ones((5, 4), "float32"),
        "norm.weight": np.full(5, 7, "float32"),
    }
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    return directory / "model.safetensors"


def test_norms_stored_minus_1_are_not_loaded_as_they_are(tmp_path: Path) -> None:
    model, file = network(keras.layers.RMSNormalization), written(tmp_path, "gemma2")
    suggestion = kt.suggest_rename(model, file)
    assert "norm.weight" not in suggestion.pairs
    assert "`kt.adapt.Add(1)`" in suggestion.questions[0]
    with refused(model, "there are 1 questions"):
        kt.restore(model, file, rename="auto", on_missing="ignore")


def test_plain_norms_are_no_question(tmp_path: Path) -> None:
    model, file = network(keras.layers.RMSNormalization), written(tmp_path, "llama")
    kt.restore(model, file, rename="auto", on_missing="ignore")
    np.testing.assert_array_equal(value(model.weights[-1]), np.full(5, 7))


class RotaryEmbedding(keras.layers.Layer):
    """Rotates halves, as keras_hub's."""

    def call(self, x: object) -> object:
        return x


def test_a_rotation_of_neighbours_is_a_question(tmp_path: Path) -> None:
    layers = [keras.Input((4,)), keras.layers.Dense(5, name="up_proj"), RotaryEmbedding()]
    model = keras.Sequential(layers)
    (question,) = kt.suggest_rename(model, written(tmp_path, "gptj")).questions
    assert "rotates neighbouring elements" in question
    assert kt.suggest_rename(model, written(tmp_path, "llama")).questions == ()
