"""Chains, callables as adapters, and the rules of `adapt=` that concern every adapter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest

import keras_trainops as kt
from tests.adapt.helpers import (
    ARRAY,
    assert_refused_unread,
    assert_same_as_numpy,
    one_variable,
    restored,
)
from tests.helpers import refused, two_layers, value


def kernel(model: keras.Model, name: str = "head") -> np.ndarray:
    return value(model.get_layer(name).kernel)


def test_first_matching_pattern_wins() -> None:
    model = two_layers()
    arrays = {"trunk/kernel": np.ones((12, 1)), "head/kernel": np.arange(6.0).reshape(2, 3)}
    adapt = {"head": kt.adapt.Transpose(), ".*/kernel": kt.adapt.Reshape()}
    report = kt.restore(model, arrays, adapt=adapt)
    assert report.adapted == {"trunk/kernel": "Reshape()", "head/kernel": "Transpose()"}
    np.testing.assert_array_equal(kernel(model), arrays["head/kernel"].T)


def test_chain_equals_numpy() -> None:
    adapter = kt.adapt.Chain(kt.adapt.Concat(1), kt.adapt.Transpose(), kt.adapt.Crop(0))
    assert_same_as_numpy(adapter, [ARRAY, ARRAY], np.concatenate([ARRAY, ARRAY], 1).T[:3])


def test_callable_combines_keys_in_rule_order() -> None:
    model = two_layers()
    left, right = np.ones((3, 1)), np.full((3, 1), 2.0)
    rename = {"first": "head/kernel", "second": "head/kernel"}

    def side_by_side(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.concatenate([a, b], axis=1)

    report = kt.restore(
        model, {"second": right, "first": left}, rename=rename, adapt={"head": side_by_side}
    )
    np.testing.assert_array_equal(kernel(model), [[1, 2]] * 3)
    assert report.restored == {"head/kernel": "first + second"}
    assert report.adapted == {"head/kernel": "side_by_side"}
    with refused(model, r"Two keys for one variable: 'first' and 'second'.*with `adapt=`"):
        kt.restore(model, {"second": right, "first": left}, rename=rename)
    both = (
        r"\(3, 1\) under key 'first' and \(3, 1\) under key 'second'; Transpose\(\): it takes one"
    )
    with refused(model, both):
        kt.restore(
            model,
            {"second": right, "first": left},
            rename=rename,
            adapt={"head": kt.adapt.Transpose()},
        )


@pytest.mark.parametrize(
    ("adapt", "message"),
    [
        ({"haed": kt.adapt.Reshape()}, "`adapt`: Pattern 'haed' matches no variable.*'head/"),
        ({"head": kt.adapt.Reshape(), "head/kernel": kt.adapt.Reshape()}, "`adapt`: .* never"),
        ({"head/kernel": kt.adapt.Reshape()}, r"\(7, 1\) has 7 elements, but the variable's \(3, "),
        (
            {"head": kt.adapt.Transpose()},
            r"\(3, 2\) in the model, \(7, 1\) under key 'head/kernel', \(1, 7\) after T",
        ),
        (
            {"head": kt.adapt.Transpose([0, 2, 1])},
            r"takes 3 axes, but the tensor has shape \(7, 1\)",
        ),
        ({"head": lambda a: a[:6]}, r"becomes \(6, 1\) by <lambda>, and the variable is \(3, 2\)"),
        ({"head": lambda a: a[:6].reshape(3, 2) * np.nan}, "has 6 values that are NaN"),
        ({"head": lambda a: a @ a}, "head/kernel: <lambda> failed on 'head/kernel': .*matmul"),
        ({"head": "transpose"}, r"must be an instance from `keras_trainops.adapt`.*'transpose'"),
        ({"head": kt.adapt.Transpose}, "An adapter must be an instance from .*class"),
    ],
)
def test_rejects_adapters_that_do_not_fit(adapt: Any, message: str) -> None:
    model = two_layers()
    with refused(model, message):
        kt.restore(model, {"head/kernel": np.ones((7, 1))}, adapt=adapt)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (
            [kt.adapt.Transpose(), kt.adapt.Reshape()],
            "(6, 4) after Transpose(), then Reshape(): (6, 4) has 24 elements, but the variable's",
        ),
        (
            [kt.adapt.Transpose(), kt.adapt.Crop(axis=0)],
            "(3, 4) after Chain(Transpose(), Crop(axis=0)); kt.adapt.Crop(axis=1) after it would",
        ),
    ],
    ids=repr,
)
def test_chain_reports_each_shape_before_reading(adapter: Any, message: str) -> None:
    assert_refused_unread(adapter, message)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kt.adapt.Chain(), "A chain must contain at least one adapter"),
        (
            lambda: kt.adapt.Chain(3),
            "An adapter must be an instance from `keras_trainops.adapt`.* Received: 3",
        ),
    ],
)
def test_chain_rejects_invalid_arguments(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_callable_may_mask_elements() -> None:
    model = two_layers()
    before = kernel(model)
    mask_first = lambda a: np.ma.array(a, mask=np.arange(6).reshape(3, 2) == 0)  # noqa: E731
    kt.restore(model, {"head/kernel": np.ones((3, 2))}, adapt={"head": mask_first})
    expected = np.ones((3, 2), "f4")
    expected[0, 0] = before[0, 0]
    np.testing.assert_array_equal(kernel(model), expected)


def test_result_of_callable_is_copied() -> None:
    model, kept = two_layers(), np.ones((3, 2), "f4")
    kt.restore(model, {"head/kernel": np.ones(1)}, adapt={"head": lambda _: kept})
    kept[:] = 5
    assert (kernel(model) == 1).all()


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
def test_rejects_result_of_callable(function: Callable[..., Any], message: str) -> None:
    model = one_variable((2, 3))
    with refused(model, message, kt.RestoreError):
        restored(np.ones((2, 3)), model, function)


def test_callable_may_return_lists_and_tensors() -> None:
    found = restored(np.ones((2, 3)), one_variable((2, 3)), lambda a: (2 * a).tolist())
    np.testing.assert_array_equal(found, np.full((2, 3), 2))
    found = restored(
        np.ones((2, 3)), one_variable((2, 3)), lambda a: keras.ops.convert_to_tensor(3 * a)
    )
    np.testing.assert_array_equal(found, np.full((2, 3), 3))


def test_second_result_of_callable_is_checked() -> None:
    calls: list[int] = []

    def worse(array: np.ndarray) -> np.ndarray:
        calls.append(1)
        return array if len(calls) == 1 else array * np.nan

    model = one_variable((2, 3))
    with refused(model, "read again, has 6 values that are NaN or infinite", kt.RestoreError):
        restored(np.ones((2, 3)), model, worse, memory="bounded")
    assert len(calls) == 2


def test_shapes_after_a_callable_are_checked() -> None:
    model = one_variable((4, 3))
    with refused(model, "`indices` must have length 1, one per slice", kt.RestoreError):
        restored(np.ones((1, 3)), model, [lambda a: a, kt.adapt.Pad(axis=0, indices=[0, 1])])


def test_narrow_dtypes_are_computed_in_wide_ones() -> None:
    hundreds = np.full(2, 100, "int8")
    found = restored([hundreds, hundreds], one_variable((2,)), kt.adapt.Sum())
    np.testing.assert_array_equal(found, [200, 200])
    ones = np.ones((1, 1, 2048, 3), ml_dtypes.bfloat16)
    found = restored(ones, one_variable((1, 1, 1, 3)), kt.adapt.InputChannels())
    np.testing.assert_array_equal(found, np.full((1, 1, 1, 3), 2048))
    large = np.full((1, 1, 3, 2), 30_000, "float16")
    found = restored(large, one_variable((1, 1, 1, 2)), kt.adapt.InputChannels())
    np.testing.assert_array_equal(found, np.full((1, 1, 1, 2), 90_000))


def test_accepts_integers_of_numpy() -> None:
    assert kt.adapt.Split(0, np.int64(3)).shape([(6, 2)], (2, 2)) == (2, 2)
    assert kt.adapt.Reshape(np.int64(6)).shape([(2, 3)], (6,)) == (6,)
    adapter = kt.adapt.ResizePositions(new_grid=np.int64(4))
    assert adapter.shape([(2, 3)], (4, 3)) == (4, 3)
