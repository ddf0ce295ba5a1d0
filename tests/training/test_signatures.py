from __future__ import annotations

import inspect

import keras
import pytest

import keras_trainops as kt
from keras_trainops.training.mixin import TrainOpsMixin
from keras_trainops.training.signatures import TypedModel

pytestmark = pytest.mark.once

KERAS = ("compile", "fit", "evaluate", "predict", "train_on_batch", "test_on_batch")

Parameters = dict[str, tuple[inspect._ParameterKind, object]]  # name -> kind, default


def parameters(function: object) -> Parameters:
    assert callable(function)
    found = inspect.signature(function).parameters.values()
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {p.name: (p.kind, p.default) for p in found if p.kind not in variable}


def of_keyword_only(found: Parameters) -> Parameters:
    return {n: each for n, each in found.items() if each[0] is inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize("method", KERAS)
def test_typed_parameters_are_those_of_the_installed_keras(method: str) -> None:
    """Only `compile` has others, and they come last."""
    typed, of_keras = (
        list(parameters(getattr(c, method)).items()) for c in (TypedModel, keras.Model)
    )
    assert typed[: len(of_keras)] == of_keras
    assert method == "compile" or len(typed) == len(of_keras)


def test_typed_parameters_of_compile_are_keras_and_ours() -> None:
    typed, ours = parameters(TypedModel.compile), parameters(TrainOpsMixin.compile)
    assert of_keyword_only(typed) == of_keyword_only(ours)
    assert typed["optimizer"] == ours["optimizer"]
    assert typed.keys() == parameters(keras.Model.compile).keys() | ours.keys()


def test_typed_options_of_add_update_are_those_of_a_function() -> None:
    typed = of_keyword_only(parameters(TypedModel.add_update))
    options = parameters(kt.updates.Function.__init__)
    assert {n: default for n, (_, default) in typed.items()} == {
        n: default for n, (_, default) in options.items() if n not in ("self", "function")
    }


def test_the_mixin_has_the_texts_of_the_typed_methods() -> None:
    assert "gradient_transforms:" in (inspect.getdoc(TrainOpsMixin.compile) or "")
    assert "every:" in (inspect.getdoc(TrainOpsMixin.add_update) or "")


def test_the_typed_class_exists_for_type_checkers_alone() -> None:
    assert TrainOpsMixin.__mro__ == (TrainOpsMixin, object)
