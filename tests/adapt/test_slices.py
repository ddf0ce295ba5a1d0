"""`Pad` and `Crop`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import keras_trainops as kt
from tests.adapt.helpers import (
    ARRAY,
    KEPT,
    assert_refused_unread,
    assert_same_as_numpy,
    each_case,
    one_variable,
    restored,
)
from tests.helpers import two_layers, value


def padded(indices: list[int], length: int) -> np.ndarray:
    result = np.full((2, length, 4), KEPT)
    result[:, indices] = ARRAY
    return result


CASES: list[tuple[Any, list[np.ndarray], np.ndarray]] = [
    (kt.adapt.Pad(axis=1), [ARRAY], padded([0, 1, 2], 5)),
    (kt.adapt.Pad(axis=-2, indices=[4, 0, 2]), [ARRAY], padded([4, 0, 2], 5)),
    (kt.adapt.Pad(axis=1, default=7), [ARRAY], np.nan_to_num(padded([0, 1, 2], 5), nan=7)),
    (kt.adapt.Pad(axis=1), [ARRAY], ARRAY),
    (kt.adapt.Crop(axis=2), [ARRAY], ARRAY[:, :, :3]),
    (kt.adapt.Crop(axis=-1, indices=[3, 0]), [ARRAY], ARRAY[:, :, [3, 0]]),
]


@each_case(CASES)
def test_equals_numpy(
    adapter: kt.adapt.Adapter, arrays: list[np.ndarray], expected: np.ndarray
) -> None:
    assert_same_as_numpy(adapter, arrays, expected)


def test_pad_keeps_other_slices_of_the_variable() -> None:
    model, array = two_layers(), np.arange(6.0).reshape(2, 3)
    before = value(model.get_layer("trunk").kernel)
    adapt = {"trunk/kernel": [kt.adapt.Pad(axis=0, indices=[3, 1])]}
    report = kt.restore(model, {"trunk/kernel": array}, adapt=adapt)
    after = value(model.get_layer("trunk").kernel)
    np.testing.assert_array_equal(after[[3, 1]], array)
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    assert report.adapted == {"trunk/kernel": "Chain(Pad(axis=0, indices=[3, 1]))"}


def test_pads_integers_with_floats() -> None:
    array = np.arange(3, dtype="int8")
    adapted = kt.adapt.Pad(axis=0, default=0.5)([array], (4,))
    np.testing.assert_array_equal(adapted, [0, 1, 2, 0.5])


def test_pad_mixes_two_narrow_dtypes() -> None:
    found = restored(
        np.ones((2, 2), "float16"), one_variable((2, 3), "bfloat16"), kt.adapt.Pad(axis=-1)
    )
    np.testing.assert_array_equal(found.astype("float32"), [[1, 1, 7]] * 2)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (kt.adapt.Pad(axis=7), "`axis` must be one of the 2 axes of (4, 6). Received: axis=7"),
        (
            kt.adapt.Pad(axis=0),
            "along axis 0 the tensor has 4 slices and the variable only 3. `Crop` takes a part",
        ),
        (
            kt.adapt.Pad(axis=1, indices=[0, 1]),
            "along axis 1 the tensor has 6 slices and the variable only 2",
        ),
        (kt.adapt.Crop(axis=-3), "`axis` must be one of the 2 axes of (4, 6). Received: axis=-3"),
        (kt.adapt.Crop(axis=0, indices=[4]), "`indices` must be < 4, the length of the tensor's"),
    ],
    ids=repr,
)
def test_rejects_a_tensor_before_reading(adapter: Any, message: str) -> None:
    assert_refused_unread(adapter, message)


def test_crop_rejects_a_shorter_tensor() -> None:
    with pytest.raises(ValueError, match=r"only 2 of the 5 slices the variable needs. `Pad` puts"):
        kt.adapt.Crop(axis=0).shape([(2, 3)], (5, 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kt.adapt.Pad(0, [1, 1]), r"`indices` must be distinct and not neg.*\[1, 1\]"),
        (lambda: kt.adapt.Crop(0, [0, -1]), r"`indices` must be distinct and not neg.*\[0, -1\]"),
        (lambda: kt.adapt.Pad(0, default="no"), "`default` must be None, a number, .*'no'"),
        (lambda: kt.adapt.Pad(0, default=[None]), r"`default` must be None, a number, .*\[None\]"),
        (lambda: kt.adapt.Pad(0, indices=[0.9]), r"`indices` must be whole numbers"),
    ],
)
def test_rejects_invalid_arguments(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_pad_counts_indices_and_defaults() -> None:
    pad = kt.adapt.Pad(axis=0, indices=[0, 1, 2])
    with pytest.raises(ValueError, match=r"must have length 2, one per .* Received: 3 indices"):
        pad.shape([(2, 5)], (4, 5))
    with pytest.raises(ValueError, match=r"`indices` must be < 2, the length of the variable's"):
        pad.shape([(2, 5)], (2, 5))
    pad = kt.adapt.Pad(axis=0, default=np.ones((3, 1)))
    with pytest.raises(ValueError, match=r"`default` must have shape \(2, 5\).*shape \(3, 1\)"):
        pad.shape([(2, 5)], (4, 5))
