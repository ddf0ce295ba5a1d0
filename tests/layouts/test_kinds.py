"""Every reading rearranges the tensor's elements, prints as code, and has an exact inverse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.layouts.kinds import (
    Convolution,
    Depthwise,
    Layout,
    Linear,
    Parameter,
    RecurrentBias,
    RecurrentKernel,
    Table,
    Vector,
)
from keras_trainops.layouts.questions import code_of
from keras_trainops.layouts.reading import Reading

pytestmark = pytest.mark.once

T, R = "Transpose()", "Reshape()"
SWAP = "Transpose([2, 3, 1, 0])"

# Layout, shape of the tensor, and its readings: convention and steps.
CASES: list[tuple[Layout, tuple[int, ...], list[tuple[str | None, list[str]]]]] = [
    (Linear((4,), (6,)), (6, 4), [("torch", [T])]),
    (Linear((4,), (6,)), (4, 6), [("keras", [])]),
    (Linear((4,), (4,)), (4, 4), [("torch", [T]), ("keras", [])]),
    (Linear((4,), (6,)), (6, 4, 1, 1), [("torch", [SWAP, R])]),
    (Linear((4,), (6,)), (1, 1, 4, 6), [("keras", [R])]),
    (Linear((24,), (5,)), (5, 4, 2, 3), [("torch", [SWAP, R])]),
    (Linear((24,), (5,)), (2, 3, 4, 5), [("keras", [R])]),
    (Linear((24,), (5,), features=(2, 3, 4)), (5, 4, 2, 3), [("torch", [SWAP, R])]),
    (Linear((24,), (5,), features=(2, 3, 4)), (5, 4, 3, 2), []),
    (Linear((24,), (5,), features=(2, 3, 4)), (3, 2, 4, 5), []),
    (
        Linear((24,), (5,), features=(2, 3, 4)),
        (5, 24),
        [("torch", [T, "Reshape([4, 2, 3, -1])", "Transpose([1, 2, 0, 3])", R])],
    ),
    (Linear((24,), (5,), is_channels_first=True), (5, 24), [("torch", [T])]),
    (Linear((24,), (5,), is_channels_first=True), (5, 4, 2, 3), []),
    (Linear((4,), (3, 2)), (6, 4), [("torch", [T, R])]),
    (Linear((4,), (3, 2)), (4, 6), [("keras", [R])]),
    (Linear((4,), (3, 2)), (4, 3, 2), [("keras", [])]),
    (Linear((4,), (3, 2)), (3, 2, 4), [("torch", ["Transpose([2, 0, 1])"])]),
    (Linear((4,), (3, 2)), (2, 3, 4), []),
    (Linear((6,), (3, 2)), (2, 3, 6), []),
    (Linear((6,), (3, 2)), (6, 6), [("torch", [T, R]), ("keras", [R])]),
    (Linear((3, 2), (5,)), (5, 6), [("torch", [T, R])]),
    (Linear((3, 2), (5,)), (6, 5), [("keras", [R])]),
    (Linear((3, 2), (5,)), (5, 3, 2), [("torch", ["Transpose([1, 2, 0])"])]),  # XLNet
    (Linear((3, 2), (5,)), (5, 2, 3), []),
    (Linear((3, 2), (5,)), (5, 6, 1), [("torch", [T, R])]),
    (
        Linear((4,), (3, 2), (1, 0, 2)),  # Gemma
        (6, 4),
        [("torch", [T, "Reshape([4, 3, 2])", "Transpose([1, 0, 2])"])],
    ),
    (Linear((4,), (3, 2), (1, 0, 2)), (3, 4, 2), [("keras", [])]),
    (Linear((4,), (3, 2), (1, 0, 2)), (4, 3, 2), [("keras", ["Transpose([1, 0, 2])"])]),
    (Linear((4,), (6,), (1, 0)), (6, 4), [(None, [])]),
    (Linear((4,), (6,), (1, 0)), (4, 6), [("keras", [T])]),
    (Convolution((2, 3, 4, 6)), (6, 4, 2, 3), [("torch", [SWAP])]),
    (Convolution((2, 3, 4, 6)), (2, 3, 4, 6), [("keras", [])]),
    (Convolution((3, 4, 6)), (6, 4, 3), [("torch", [T])]),
    (Convolution((2, 3, 5, 4, 6)), (6, 4, 2, 3, 5), [("torch", ["Transpose([2, 3, 4, 1, 0])"])]),
    (Convolution((3, 3, 3, 3)), (3, 3, 3, 3), [("torch", [SWAP]), ("keras", [])]),
    (Convolution((1, 1, 4, 6)), (6, 4), [("torch", [T, R])]),
    (Convolution((1, 1, 4, 6)), (4, 6), [("keras", [R])]),
    (Convolution((1, 3, 4, 6)), (6, 4, 3), [("torch", [T, R])]),
    (
        Convolution((2, 3, 4, 6)),  # flattened patches, in two orders
        (6, 24),
        [("torch", ["Reshape([6, 4, 2, 3])", SWAP]), ("torch", [T, R])],
    ),
    (Convolution((2, 3, 4, 6)), (24, 6), [("keras", [R])]),
    (Convolution((2, 3, 6, 4), is_transposed=True), (4, 6, 2, 3), [("torch", [SWAP])]),
    (Convolution((2, 3, 6, 4), is_transposed=True), (2, 3, 6, 4), [("keras", [])]),
    (
        Convolution((2, 3, 6, 4), is_transposed=True),
        (2, 3, 4, 6),
        [("keras", ["Flip([0, 1])", "Transpose([0, 1, 3, 2])"])],
    ),
    (Convolution((2, 3, 6, 4), is_transposed=True), (4, 36), []),
    (
        Depthwise((2, 5, 3, 4)),
        (12, 1, 2, 5),
        [("torch", ["Reshape([3, 4, 2, 5])", "Transpose([2, 3, 0, 1])"])],
    ),
    (Depthwise((2, 5, 3, 1)), (3, 1, 2, 5), [("torch", ["Transpose([2, 3, 0, 1])"])]),
    (Depthwise((2, 5, 3, 4)), (2, 5, 1, 12), [("keras", [R])]),
    (Depthwise((2, 5, 3, 4)), (2, 5, 3, 4), [("keras", [])]),
    (Depthwise((2, 5, 3, 4)), (3, 4, 2, 5), []),  # an ordinary convolution
    (Depthwise((2, 5, 3, 4)), (4, 3, 2, 5), []),
    (Vector((6,)), (6,), [(None, [])]),
    (Vector((6,)), (1, 1, 6), [(None, [R])]),
    (Vector((6,)), (5,), []),
    (Vector((3, 2)), (6,), [(None, [R])]),
    (Vector((3, 2)), (2, 3), []),
    (Vector((1, 1, 6)), (6,), [(None, [R])]),
    (
        Vector((24,), features=(2, 3, 4)),
        (24,),
        [("torch", ["Reshape([4, 2, 3])", "Transpose([1, 2, 0])", R]), ("keras", [])],
    ),
    (
        Vector((5, 6, 4), has_channels_last=True),
        (4, 5, 6),
        [("torch", ["Transpose([1, 2, 0])"])],
    ),
    (Vector((5, 6, 4), has_channels_last=True), (5, 6, 4), [(None, [])]),
    (Table((9, 4)), (9, 4), [(None, [])]),
    (Table((4, 4)), (4, 4), [(None, [])]),
    (Table((9, 4)), (1, 9, 4), [(None, [R])]),
    (Table((1, 9, 4)), (9, 4), [(None, [R])]),
    (Table((9, 4)), (4, 9), []),
    (RecurrentKernel((4, 12)), (12, 4), [("torch", [T])]),
    (RecurrentKernel((4, 12)), (4, 12), [("keras", [])]),
    (RecurrentKernel((4, 9), (1, 0, 2)), (9, 4), [("torch", [T, "Gates([1, 0, 2])"])]),
    (RecurrentKernel((4, 9), (1, 0, 2), is_in_torch=False), (9, 4), []),
    (RecurrentBias((12,)), (12,), [(None, [])]),
    (RecurrentBias((2, 9), (1, 0, 2)), (2, 9), [("keras", [])]),
    (Parameter((6,)), (6, 1, 1), [(None, [R])]),
    (Parameter((1, 1, 6)), (6,), [(None, [R])]),
    (Parameter((4, 6)), (4, 6), [(None, [])]),
    (Parameter((4, 6)), (6, 4), [("torch", [T])]),
    (Parameter((4, 4)), (4, 4), [(None, []), ("torch", [T])]),
    (Parameter((3, 4, 6)), (3, 6, 4), [("torch", ["Transpose([0, 2, 1])"])]),
    (Parameter((3, 4, 6)), (3, 4, 6), [(None, [])]),
    (Parameter((3, 4, 6)), (12, 6), [(None, [R])]),  # DBRX, down
    (
        Parameter((3, 4, 6)),  # DBRX, up
        (18, 4),
        [("torch", ["Reshape([3, 6, 4])", "Transpose([0, 2, 1])"])],
    ),
    (Parameter((2, 3, 4, 5)), (5, 4, 3, 2), []),
]
IDS = [f"{layout} from {list(shape)}" for layout, shape, _ in CASES]


@pytest.mark.parametrize(("layout", "shape", "expected"), CASES, ids=IDS)
def test_lists_all_readings(layout: Layout, shape: tuple[int, ...], expected: Any) -> None:
    found = [(r.convention, list(map(repr, r.steps))) for r in layout.readings(shape)]
    assert found == expected


def adapted(reading: Reading, array: np.ndarray, target: tuple[int, ...]) -> np.ndarray:
    return array if reading.adapter is None else reading.adapter([array], target)


@pytest.mark.parametrize(("layout", "shape"), [case[:2] for case in CASES], ids=IDS)
def test_every_reading_has_an_exact_inverse(layout: Layout, shape: tuple[int, ...]) -> None:
    tensor = np.random.default_rng(0).normal(size=shape).astype("f4")
    for reading in layout.readings(shape):
        value = adapted(reading, tensor, layout.shape)
        assert value.shape == layout.shape
        np.testing.assert_array_equal(np.sort(value, axis=None), np.sort(tensor, axis=None))
        back = value
        if reading.adapter is not None:
            (back,) = reading.adapter.inverse(value, [shape], layout.shape)
        np.testing.assert_array_equal(back, tensor)
        assert back.shape == shape


@pytest.mark.parametrize(("layout", "shape"), [case[:2] for case in CASES], ids=IDS)
def test_every_reading_can_be_pasted(layout: Layout, shape: tuple[int, ...]) -> None:
    tensor = np.random.default_rng(0).normal(size=shape)
    for reading in layout.readings(shape):
        pasted = eval(code_of(reading.steps), {"kt": kt})
        adapter = kt.adapt.Chain(*pasted) if isinstance(pasted, list) else pasted
        value = adapted(reading, tensor, layout.shape)
        np.testing.assert_array_equal(adapter([tensor], layout.shape), value)
