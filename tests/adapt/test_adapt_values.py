"""What adapters make of values: precision, what is left to the variable, and callables that err."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import refused, two_layers, value

A = kt.adapt


def variable(shape: tuple[int, ...], dtype: str = "float32", held: float = 7.0) -> Any:
    """A layer of one variable, `d/w`."""
    layer = keras.layers.Layer(name="d")
    layer.add_weight(shape=shape, dtype=dtype, name="w", initializer="zeros", trainable=False)
    layer.weights[0].assign(np.full(shape, held))
    layer.built = True
    return layer


def restored(source: np.ndarray | list[np.ndarray], target: Any, adapter: Any) -> np.ndarray:
    sources = source if isinstance(source, list) else [source]
    arrays = {f"t{i}": array for i, array in enumerate(sources)}
    kt.restore(target, arrays, rename=dict.fromkeys(arrays, "d/w"), adapt={"w": adapter})
    return value(target.weights[0])


def test_a_mean_of_what_is_left_to_the_variable_is_left_to_it() -> None:
    chain = [
        A.Rows(["a", "b"], ["a", "new", "b"]),
        A.Rows(["x", "y"], ["x", "y", "z"], axis=1, default="mean"),
    ]
    found = restored(np.array([[1.0, 3.0], [2.0, 6.0]]), variable((3, 3)), chain)
    np.testing.assert_array_equal(found, [[1, 3, 2], [7, 7, 7], [2, 6, 4]])


def test_narrow_numbers_are_computed_with_in_wide_ones() -> None:
    hundreds = np.full(2, 100, "int8")
    found = restored([hundreds, hundreds], variable((2,)), A.Sum())
    np.testing.assert_array_equal(found, [200, 200])
    ones = np.ones((1, 1, 2048, 3), ml_dtypes.bfloat16)
    found = restored(ones, variable((1, 1, 1, 3)), A.InputChannels())
    np.testing.assert_array_equal(found, np.full((1, 1, 1, 3), 2048))
    large = np.full((1, 1, 3, 2), 30_000, "float16")
    found = restored(large, variable((1, 1, 1, 2)), A.InputChannels())
    np.testing.assert_array_equal(found, np.full((1, 1, 1, 2), 90_000))


def test_a_sum_that_the_variable_cannot_hold_is_refused() -> None:
    model = variable((2,), "int8", held=0)
    hundreds = np.full(2, 100, "int8")
    with refused(model, "outside the range of int8", kt.RestoreError):
        restored([hundreds, hundreds], model, A.Sum())


def test_elements_of_a_narrow_variable_are_kept_beside_those_of_another_narrow_dtype() -> None:
    found = restored(np.ones((2, 2), "float16"), variable((2, 3), "bfloat16"), A.Pad(axis=-1))
    np.testing.assert_array_equal(found.astype("float32"), [[1, 1, 7]] * 2)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda a: a.astype(complex), r"becomes complex128 by .*, and the variable is float32"),
        (lambda a: a.astype(str), r"becomes <U32 by .*, and the variable is float32"),
        (lambda a: a.astype(object), r"becomes object by .*, and the variable is float32"),
        (lambda a: a[:1], r"becomes \(1, 3\) by .*, and the variable is \(2, 3\)"),
    ],
    ids=["complex", "strings", "objects", "shape"],
)
def test_what_a_callable_makes_must_be_for_the_variable(
    function: Callable[..., Any], message: str
) -> None:
    model = variable((2, 3))
    with refused(model, message, kt.RestoreError):
        restored(np.ones((2, 3)), model, function)


def test_a_callable_may_return_whatever_is_an_array_to_numpy() -> None:
    found = restored(np.ones((2, 3)), variable((2, 3)), lambda a: (2 * a).tolist())
    np.testing.assert_array_equal(found, np.full((2, 3), 2))
    found = restored(
        np.ones((2, 3)), variable((2, 3)), lambda a: keras.ops.convert_to_tensor(3 * a)
    )
    np.testing.assert_array_equal(found, np.full((2, 3), 3))


def test_what_a_callable_makes_the_second_time_is_looked_at_as_well() -> None:
    calls: list[int] = []

    def worse(array: np.ndarray) -> np.ndarray:
        calls.append(1)
        return array if len(calls) == 1 else array * np.nan

    model = variable((2, 3))
    with refused(model, "read again, has 6 values that are NaN or infinite", kt.RestoreError):
        restored(np.ones((2, 3)), model, worse)
    assert len(calls) == 2


def test_shapes_behind_a_callable_are_looked_at_when_they_are_known() -> None:
    model = variable((4, 3))
    with refused(model, "there must be one index for each of 1 slices", kt.RestoreError):
        restored(np.ones((1, 3)), model, [lambda a: a, A.Pad(axis=0, indices=[0, 1])])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: A.Rows(np.array([["a"], ["b"]]), ["a"]), r"`old_vocabulary` must be a list of"),
        (lambda: A.Pad(0, indices=[0.9]), r"`indices` must be whole numbers"),
        (lambda: A.Split(0, [1.5, 2]), r"`parts` must be whole numbers"),
        (lambda: A.Reshape([2.5]), r"`shape` must be whole numbers"),
        (lambda: A.ResizePositions(new_grid=[2.5]), r"`new_grid` must be whole numbers"),
        (lambda: A.channels_first_flatten(()), r"`shape` must be that of the features"),
    ],
)
def test_arguments_that_make_no_sense(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_numbers_of_numpy_are_numbers() -> None:
    assert A.Split(0, np.int64(3)).shape([(6, 2)], (2, 2)) == (2, 2)
    assert A.Reshape(np.int64(6)).shape([(2, 3)], (6,)) == (6,)
    adapter = A.ResizePositions(new_grid=np.int64(4))
    assert adapter.shape([(2, 3)], (4, 3)) == (4, 3)


def test_from_torch_finds_the_kernel_of_a_layer_with_lora() -> None:
    model = two_layers()
    head = model.get_layer("head")
    head.enable_lora(1)
    assert f"^{head._kernel.path}$" in A.from_torch(model)
