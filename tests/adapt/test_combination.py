"""Adapters that join several tensors, or take a part of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import keras_trainops as kt
from tests.adapt.helpers import (
    ARRAY,
    assert_not_combined,
    assert_refused_unread,
    assert_same_as_numpy,
    each_case,
    one_variable,
    restored,
)
from tests.helpers import refused, two_layers, value

CASES: list[tuple[Any, list[np.ndarray], np.ndarray]] = [
    (
        kt.adapt.Concat(axis=-1),
        [ARRAY, ARRAY[..., :1]],
        np.concatenate([ARRAY, ARRAY[..., :1]], 2),
    ),
    (
        kt.adapt.Concat(),
        [ARRAY, ARRAY + 1, ARRAY + 2],
        np.concatenate([ARRAY, ARRAY + 1, ARRAY + 2]),
    ),
    (kt.adapt.Stack(), [ARRAY, ARRAY + 1], np.stack([ARRAY, ARRAY + 1])),
    (kt.adapt.Stack(axis=-1), [ARRAY, ARRAY + 1], np.stack([ARRAY, ARRAY + 1], -1)),
    (kt.adapt.Sum(), [ARRAY, ARRAY + 1, ARRAY + 2], 3 * ARRAY + 3),
    (kt.adapt.Split(2, 3, axis=1), [ARRAY], ARRAY[:, 2:]),
    (kt.adapt.Split(1, [1, 3], axis=-1), [ARRAY], ARRAY[..., 1:]),
]


@each_case(CASES)
def test_equals_numpy(
    adapter: kt.adapt.Adapter, arrays: list[np.ndarray], expected: np.ndarray
) -> None:
    assert_same_as_numpy(adapter, arrays, expected)


def test_split_and_concat_in_one_restore() -> None:
    model = two_layers()
    kernel, bias = np.arange(18.0).reshape(3, 6), np.arange(2.0)
    rename = {
        "fused": ["head/kernel", "trunk/kernel"],
        "b1": "head/bias",
        "b0": "head/bias",
    }
    adapt = {
        "head/kernel": kt.adapt.Split(0, [2, 4], axis=1),
        "trunk/kernel": [kt.adapt.Split(1, [2, 4], axis=1), kt.adapt.Transpose()],
        "head/bias": kt.adapt.Concat(),
    }
    arrays = {"fused": kernel, "b0": bias[:1], "b1": bias[1:]}
    report = kt.restore(model, arrays, rename=rename, adapt=adapt)
    np.testing.assert_array_equal(value(model.get_layer("head").kernel), kernel[:, :2])
    np.testing.assert_array_equal(value(model.get_layer("trunk").kernel), kernel[:, 2:].T)
    np.testing.assert_array_equal(value(model.get_layer("head").bias), [1, 0])  # order of the rules
    assert report.restored["head/bias"] == "b1 + b0"


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (
            kt.adapt.Concat(),
            "Concat(): it combines several tensors, but only one key leads here",
        ),
        (kt.adapt.Split(0, [2, 3], axis=1), "`parts` must add up to 6, the length of axis 1. Rec"),
        (kt.adapt.Split(0, 4, axis=1), "6 cannot be split into 4 parts of equal length"),
    ],
    ids=repr,
)
def test_rejects_a_tensor_before_reading(adapter: Any, message: str) -> None:
    assert_refused_unread(adapter, message)


@pytest.mark.parametrize(
    ("shapes", "adapter", "message"),
    [
        ([(2, 3), (3, 2)], kt.adapt.Stack(), "must have the same shape, but are (2, 3) and (3, 2)"),
        ([(2, 3), (3, 2)], kt.adapt.Sum(), "must have the same shape, but are (2, 3) and (3, 2)"),
        ([(2, 3), (3, 2)], kt.adapt.Concat(1), "the same shape except along axis 1, but are (2, "),
        ([(2, 3), (3,)], kt.adapt.Concat(0), "the same shape except along axis 0, but are (2, 3)"),
        ([(2, 3), (3,)], kt.adapt.Concat(1), "`axis` must be one of the 1 axes of (3,). Received"),
        ([(3, 2), (3, 2)], kt.adapt.Pad(0), "it takes one tensor, but 2 keys lead here. Combine"),
    ],
)
def test_rejects_keys_that_do_not_combine(
    shapes: Any, adapter: kt.adapt.Adapter, message: str
) -> None:
    assert_not_combined(shapes, adapter, message)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kt.adapt.Split(3, 3), "`index` must be that of one of 3 parts, from 0.*index=3"),
        (lambda: kt.adapt.Split(0, [-1, 2]), r"`parts` must be lengths ≥ 0.*\[-1, 2\]"),
        (lambda: kt.adapt.Split(0, [1.5, 2]), r"`parts` must be whole numbers"),
    ],
)
def test_split_rejects_invalid_arguments(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_rejects_a_sum_out_of_range() -> None:
    model = one_variable((2,), "int8", held=0)
    hundreds = np.full(2, 100, "int8")
    with refused(model, "outside the range of int8", kt.RestoreError):
        restored([hundreds, hundreds], model, kt.adapt.Sum())
