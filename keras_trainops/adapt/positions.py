"""Position embeddings of another length, or for images of another size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import SupportsIndex

import keras
import numpy as np

from keras_trainops.adapt.base import (
    OneTensor,
    Shape,
    axis_of,
    unmasked,
    whole_numbers,
    with_length,
)

_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos3", "lanczos5")


class ResizePositions(OneTensor):
    """Interpolates position embeddings to another length or grid, with `keras.ops.image.resize`.

    Embeddings are (positions, width) or (1, positions, width). The positions of an image are those
    of a grid of patches, row by row, and are interpolated in two dimensions; a grid with one number
    is a sequence.

    Args:
        old_grid: (rows, columns) of the tensor's positions, or their number for a sequence; None: a
            square grid, or as many as there are where `new_grid` is that of a sequence.
        new_grid: The same for the variable.
        prefix_tokens: How many positions in front, as that of a class token, are no part of the
            grid. They are kept.
        axis: The axis of the positions.
        interpolation: "bilinear", "bicubic" or what else `keras.ops.image.resize` takes; "bicubic"
            is not the same on all backends.
        antialias: Whether to smooth where there are fewer positions than before.

    Raises:
        ValueError: If a grid, the number of tokens or the interpolation makes no sense.

    Example:
        A vision transformer from 224×224 to 384×320 pixels, in patches of 16×16:

        >>> import keras_trainops as kt
        >>> adapter = kt.adapt.ResizePositions(new_grid=(24, 20), prefix_tokens=1)
        >>> adapter.shape([(1, 1 + 14 * 14, 192)], target=(1, 1 + 24 * 20, 192))
        (1, 481, 192)

        A text model from 512 tokens to 1024:

        >>> kt.adapt.ResizePositions(new_grid=1024).shape([(512, 64)], target=(1024, 64))
        (1024, 64)

    References: `resample_abs_pos_embed` of timm; Dosovitskiy et al. 2021, section 3.2
    (https://arxiv.org/abs/2010.11929).
    """

    def __init__(
        self,
        old_grid: int | Sequence[int] | None = None,
        new_grid: int | Sequence[int] | None = None,
        prefix_tokens: int = 0,
        axis: int = -2,
        interpolation: str = "bilinear",
        antialias: bool = False,
    ) -> None:
        self.old_grid, self.new_grid = _grid("old_grid", old_grid), _grid("new_grid", new_grid)
        if self.old_grid and self.new_grid and len(self.old_grid) != len(self.new_grid):
            raise ValueError(
                "`old_grid` and `new_grid` must have as many dimensions. Received: "
                f"old_grid={old_grid!r}, new_grid={new_grid!r}"
            )
        if prefix_tokens < 0:
            raise ValueError(f"`prefix_tokens` must be ≥ 0. Received: {prefix_tokens=}")
        if interpolation not in _INTERPOLATIONS:
            raise ValueError(
                f"`interpolation` must be one of {_INTERPOLATIONS}. Received: {interpolation=}"
            )
        self.prefix_tokens, self.axis = prefix_tokens, axis
        self.interpolation, self.antialias = interpolation, antialias

    def _shape(self, shape: Shape, target: Shape) -> Shape:
        axis, length = axis_of(self.axis, shape), target[axis_of(self.axis, target)]
        self._grids(shape[axis], length)
        return with_length(shape, axis, length)

    def _grids(self, old: int, new: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """(rows, columns) of tensor and variable; a sequence is one column."""
        sequence = len(self.old_grid or self.new_grid or (0, 0)) == 1
        return (
            self._whole("old_grid", self.old_grid, old - self.prefix_tokens, sequence),
            self._whole("new_grid", self.new_grid, new - self.prefix_tokens, sequence),
        )

    def _whole(
        self, argument: str, grid: tuple[int, ...] | None, count: int, sequence: bool
    ) -> tuple[int, int]:
        side = math.isqrt(max(count, 0))
        if count < 1 or (grid is None and not sequence and side * side != count):
            raise ValueError(
                f"`{argument}` must be given: {count} positions (without {self.prefix_tokens} "
                "prefix tokens) are no square grid. For a sequence one grid is a number"
            )
        grid = grid or ((count,) if sequence else (side, side))
        if math.prod(grid) != count:
            raise ValueError(
                f"`{argument}` must have {count} positions, without {self.prefix_tokens} prefix "
                f"tokens. Received: {argument}={grid}"
            )
        return (grid[0], math.prod(grid[1:]))

    def _adapt(self, array: np.ndarray, target: Shape) -> np.ndarray:
        array, axis = unmasked(array), axis_of(self.axis, array.shape)
        new_length = target[axis_of(self.axis, target)]
        old, new = self._grids(array.shape[axis], new_length)
        first = np.moveaxis(array, axis, 0)
        tokens, positions = first[: self.prefix_tokens], first[self.prefix_tokens :]
        resized = keras.ops.image.resize(
            positions.reshape(*old, -1).astype("float32"),
            new,
            interpolation=self.interpolation,
            antialias=self.antialias,
            data_format="channels_last",
        )
        values = keras.ops.convert_to_numpy(resized).reshape(-1, *first.shape[1:])
        return np.moveaxis(np.concatenate([tokens, values]), 0, axis)

    def __repr__(self) -> str:
        options = {
            "old_grid": (self.old_grid, None),
            "new_grid": (self.new_grid, None),
            "prefix_tokens": (self.prefix_tokens, 0),
            "axis": (self.axis, -2),
            "interpolation": (self.interpolation, "bilinear"),
            "antialias": (self.antialias, False),
        }
        given = [f"{name}={value!r}" for name, (value, usual) in options.items() if value != usual]
        return f"ResizePositions({', '.join(given)})"


def _grid(argument: str, grid: int | Sequence[int] | None) -> tuple[int, ...] | None:
    if grid is None:
        return None
    sizes = whole_numbers(argument, [grid] if isinstance(grid, SupportsIndex) else grid)
    if len(sizes) not in (1, 2) or min(sizes) < 1:
        raise ValueError(
            f"`{argument}` must be (rows, columns), or one number for a sequence. Received: "
            f"{argument}={grid!r}"
        )
    return sizes


def _is_square(count: int) -> bool:
    return count > 0 and math.isqrt(count) ** 2 == count
