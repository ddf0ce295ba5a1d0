from __future__ import annotations

from typing import Any

import keras
import pytest

from tests.transforms.gradients import T, close, each, run


def test_pairs_may_come_back_in_another_order() -> None:
    def halve_and_turn(pairs: Any) -> Any:
        return [(None if g is None else g * 0.5, v) for g, v in reversed(pairs)]

    close(run(T.FromPairs(halve_and_turn)), each(lambda g: g * 0.5))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda pairs: pairs[:2], "must return each of its 4 variables once. It returned 2 pairs"),
        (lambda pairs: [pairs[0]] * 4, "It returned 4 pairs with 1 different variables"),
        (lambda pairs: [g for g, _ in pairs], r"must return \(gradient, variable\) pairs"),
    ],
)
def test_rejects_pairs_without_each_variable_once(function: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(T.FromPairs(function))


@keras.saving.register_keras_serializable(package="tests")
def thirds(gradients: Any, variables: Any) -> Any:
    return [None if g is None else g / 3 for g in gradients]


def test_a_registered_function_is_saved_by_name() -> None:
    config = keras.saving.serialize_keras_object(T.FromFunction(thirds))
    close(run(keras.saving.deserialize_keras_object(config)), each(lambda g: g / 3))
