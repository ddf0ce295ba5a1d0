"""`ResizePositions`, compared with PyTorch and TensorFlow."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch

import keras_trainops as kt

RNG = np.random.default_rng(0)


def by_torch(grid: np.ndarray, size: tuple[int, int], antialias: bool) -> np.ndarray:
    channels_first = torch.tensor(np.moveaxis(grid, -1, 0)[None])
    resized = torch.nn.functional.interpolate(
        channels_first, size, mode="bilinear", align_corners=False, antialias=antialias
    )
    return np.moveaxis(resized[0].numpy(), 0, -1)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("new", [(5, 6), (3, 2), (3, 4)])
def test_interpolates_grids_like_pytorch(new: tuple[int, int], antialias: bool) -> None:
    tokens = RNG.normal(size=(1, 1 + 12, 7)).astype("f4")
    adapter = kt.adapt.ResizePositions((3, 4), new, prefix_tokens=1, antialias=antialias)
    target = (1, 1 + math.prod(new), 7)
    assert adapter.shape([tokens.shape], target) == target
    adapted = adapter([tokens], target)
    np.testing.assert_array_equal(adapted[:, :1], tokens[:, :1])
    expected = by_torch(tokens[0, 1:].reshape(3, 4, 7), new, antialias)
    np.testing.assert_allclose(adapted[0, 1:].reshape(*new, 7), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.backends("tensorflow")  # other backends differ except for bilinear
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos3"])
def test_other_interpolations_equal_those_of_tensorflow(interpolation: str) -> None:
    tokens = RNG.normal(size=(9, 7)).astype("f4")
    adapter = kt.adapt.ResizePositions(new_grid=(5, 4), interpolation=interpolation)
    expected = tf.image.resize(tokens.reshape(3, 3, 7), (5, 4), interpolation).numpy()
    adapted = adapter([tokens], (20, 7))
    np.testing.assert_allclose(adapted, expected.reshape(20, 7), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [16, 7])
def test_interpolates_sequences_like_pytorch(length: int) -> None:
    table = RNG.normal(size=(9, 5)).astype("f4")  # a square number, but not a grid
    adapted = kt.adapt.ResizePositions(new_grid=length)([table], (length, 5))
    expected = torch.nn.functional.interpolate(
        torch.tensor(table.T[None]), length, mode="linear", align_corners=False
    )
    np.testing.assert_allclose(adapted, expected[0].numpy().T, rtol=1e-5, atol=1e-6)


def test_positions_may_be_on_another_axis() -> None:
    table = RNG.normal(size=(9, 5)).astype("f4")
    usual = kt.adapt.ResizePositions(new_grid=(4, 2))([table], (8, 5))
    other = kt.adapt.ResizePositions(new_grid=(4, 2), axis=-1)([table.T], (5, 8))
    np.testing.assert_array_equal(other, usual.T)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (
            kt.adapt.ResizePositions(),
            "`old_grid` is required: 10 positions .* are not a square grid",
        ),
        (kt.adapt.ResizePositions((2, 5)), "`new_grid` is required: 12 positions"),
        (kt.adapt.ResizePositions((2, 5), (3, 5)), r"`new_grid` must have 12 .*new_grid=\(3, 5\)"),
        (kt.adapt.ResizePositions((3, 3), (3, 4), 1), "`new_grid` must have 11 positions"),
        (kt.adapt.ResizePositions(9), "`old_grid` must have 10 positions"),
        (kt.adapt.ResizePositions(axis=2), "`axis` must be one of the 2 axes.*axis=2"),
    ],
)
def test_rejects_grids_that_do_not_fit(adapter: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapter.shape([(10, 7)], (12, 7))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"old_grid": (2, 3), "new_grid": 7}, "the same number of dimensions.*new_grid=7"),
        ({"old_grid": (2, 3, 4)}, r"`old_grid` must be \(rows, columns\).*\(2, 3, 4\)"),
        ({"new_grid": 0}, r"`new_grid` must be \(rows, columns\).*new_grid=0"),
        ({"new_grid": [2.5]}, "`new_grid` must be whole numbers"),
        ({"prefix_tokens": -1}, "`prefix_tokens` must be ≥ 0. Received: prefix_tokens=-1"),
        ({"interpolation": "cubic"}, "`interpolation` must be one of.*interpolation='cubic'"),
    ],
)
def test_rejects_invalid_arguments(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kt.adapt.ResizePositions(**options)
