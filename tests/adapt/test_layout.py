"""Adapters that reorder or reshape one tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.adapt.helpers import ARRAY, assert_refused_unread, assert_same_as_numpy, each_case
from tests.helpers import value

CASES: list[tuple[Any, list[np.ndarray], np.ndarray]] = [
    (kt.adapt.Reshape(), [ARRAY], ARRAY.reshape(4, 6)),
    (kt.adapt.Reshape([6, -1]), [ARRAY], ARRAY.reshape(6, 4)),
    (kt.adapt.Reshape([3, 8]), [ARRAY], ARRAY.reshape(3, 8)),
    (kt.adapt.Gates([1, 0], axis=2), [ARRAY], ARRAY[..., [2, 3, 0, 1]]),
    (
        kt.adapt.channels_first_flatten((3, 4, 2)),
        [ARRAY.reshape(24, 1) * [1, 10]],
        np.moveaxis(ARRAY, 0, -1).reshape(24, 1) * [1, 10],
    ),
]


@each_case(CASES)
def test_equals_numpy(
    adapter: kt.adapt.Adapter, arrays: list[np.ndarray], expected: np.ndarray
) -> None:
    assert_same_as_numpy(adapter, arrays, expected)


@pytest.mark.parametrize("axes", [None, [1, 0], (2, 0, 1), (3, 2, 0, 1)])
def test_transpose_equals_numpy(axes: Any) -> None:
    shape = (2, 3, 4, 5)[: len(axes) if axes else 3]
    array = np.arange(np.prod(shape)).reshape(shape)
    adapter = kt.adapt.Transpose(axes)
    expected = np.transpose(array, axes)
    assert adapter.shape([shape], ()) == expected.shape
    np.testing.assert_array_equal(adapter([array], ()), expected)


def test_transposes_a_square_kernel() -> None:
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(3, name="head")(inputs))
    array = np.arange(9, dtype="f4").reshape(3, 3)
    adapt = {"kernel": kt.adapt.Transpose()}
    report = kt.restore(model, {"head/kernel": array}, adapt=adapt)
    np.testing.assert_array_equal(value(model.get_layer("head").kernel), array.T)
    assert report.adapted == {"head/kernel": "Transpose()"}
    assert "Transpose()" in str(report)
    assert report.to_dict()["adapted"] == {"head/kernel": "Transpose()"}


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (
            kt.adapt.Gates([2, 0, 1], axis=0),
            "4 of (4, 6) cannot be split into 3 equal blocks",
        ),
        (kt.adapt.Reshape([5, -1]), "(4, 6) has 24 elements, but (5, -1) has a multiple of 5"),
        (kt.adapt.channels_first_flatten((2, 3, 2)), "Reshape([2, 2, 3, -1])"),
    ],
    ids=repr,
)
def test_rejects_a_tensor_before_reading(adapter: Any, message: str) -> None:
    assert_refused_unread(adapter, message)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kt.adapt.Reshape([-1, -1]), r"`shape` must be a shape with at most one -1.*-1\]"),
        (lambda: kt.adapt.Reshape([2.5]), r"`shape` must be whole numbers"),
        (lambda: kt.adapt.Gates([0, 2]), r"`order` must be a permutation.*order=\[0, 2\]"),
        (lambda: kt.adapt.channels_first_flatten([3]), r"`shape` must be .*shape=\[3\]"),
        (lambda: kt.adapt.channels_first_flatten(()), r"`shape` must be that of the features"),
    ],
)
def test_rejects_invalid_arguments(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_transpose_rejects_axes_without_a_permutation() -> None:
    with pytest.raises(ValueError, match=r"`axes` must be a permutation.*axes=\(0, 2\)"):
        kt.adapt.Transpose((0, 2))


@pytest.mark.once
@pytest.mark.parametrize(
    "adapter",
    [
        kt.adapt.Transpose(),
        kt.adapt.Transpose([1, 2, 0]),
        kt.adapt.Chain(kt.adapt.Transpose([1, 2, 0]), kt.adapt.Transpose()),
    ],
    ids=repr,
)
def test_the_sources_of_a_part_are_adapted_to_it(adapter: kt.adapt.Adapter) -> None:
    array = np.arange(3 * 4 * 5).reshape(3, 4, 5)
    whole = adapter([array], ())
    index = (slice(1, 2), slice(0, 3), slice(2, 4))
    found = adapter.sources(index, [array.shape], whole.shape)
    assert found is not None
    (part,) = found
    assert array[part].size == whole[index].size
    np.testing.assert_array_equal(adapter([array[part]], whole[index].shape), whole[index])


@pytest.mark.once
@pytest.mark.parametrize(
    "adapter",
    [
        kt.adapt.Flip([0]),
        kt.adapt.Chain(kt.adapt.Transpose(), kt.adapt.Flip([0])),
        kt.adapt.Chain(kt.adapt.Flip([0]), kt.adapt.Transpose()),
        kt.adapt.Chain(np.transpose, kt.adapt.Transpose()),
    ],
    ids=str,
)
def test_whole_tensors_are_read_for_other_adapters(adapter: kt.adapt.Adapter) -> None:
    assert adapter.sources((slice(0, 1), slice(0, 2)), [(2, 4)], (4, 2)) is None
