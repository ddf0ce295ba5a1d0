"""The adapter for position embeddings of a different length, or for images of a different size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, SupportsIndex, TypeAlias, get_args

import keras
import numpy as np

from keras_trainops.adapt.axes import axis_of, unmasked, whole_numbers, with_length
from keras_trainops.adapt.base import OneTensor, Shape

Interpolation: TypeAlias = Literal["nearest", "bilinear", "bicubic", "lanczos3", "lanczos5"]

_INTERPOLATIONS = get_args(Interpolation)


class ResizePositions(OneTensor):
    """Interpolates position embeddings to a new length or grid, with `keras.ops.image.resize`.

    Embeddings have shape (positions, width) or (1, positions, width). Positions of an image are the
    cells of a grid of patches, row by row, and are interpolated in two dimensions. A grid given as
    one number is a sequence.

    Args:
        old_grid: Grid of the tensor's positions: (rows, columns), or the length of a sequence.
            Default: a square grid, or the tensor's length if `new_grid` is a sequence.
        new_grid: Grid of the variable's positions. Default: a square grid, or the variable's length
            if `old_grid` is a sequence.
        prefix_tokens: Number of leading positions outside the grid, such as a class token. They are
            kept unchanged.
        axis: Axis of the positions.
        interpolation: "nearest", "bilinear", "bicubic", "lanczos3" or "lanczos5", as in
            `keras.ops.image.resize`. Results of "bicubic" differ between backends.
        antialias: Whether to smooth when the number of positions shrinks.

    Raises:
        ValueError: If a grid, the number of tokens or the interpolation is invalid.

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

    resizes = True

    def __init__(
        self,
        old_grid: int | Sequence[int] | None = None,
        new_grid: int | Sequence[int] | None = None,
        prefix_tokens: int = 0,
        axis: int = -2,
        interpolation: Interpolation = "bilinear",
        antialias: bool = False,
    ) -> None:
        self.old_grid, self.new_grid = (
            _checked_grid("old_grid", old_grid),
            _checked_grid("new_grid", new_grid),
        )
        if self.old_grid and self.new_grid and len(self.old_grid) != len(self.new_grid):
            raise ValueError(
                "`old_grid` and `new_grid` must have the same number of dimensions. Received: "
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
        """Return (rows, columns) of the tensor and of the variable; a sequence is one column.

        Args:
            old: Number of positions of the tensor, with prefix tokens.
            new: Number of positions of the variable, with prefix tokens.
        """
        return (
            self._grid_of("old_grid", self.old_grid, old - self.prefix_tokens),
            self._grid_of("new_grid", self.new_grid, new - self.prefix_tokens),
        )

    def _grid_of(
        self, argument: str, grid: tuple[int, ...] | None, positions: int
    ) -> tuple[int, int]:
        grid = grid or self._default_grid(positions)
        if positions < 1 or grid is None:
            raise ValueError(
                f"`{argument}` is required: {positions} positions (without {self.prefix_tokens} "
                "prefix tokens) are not a square grid. For a sequence, give one grid as a number"
            )
        if math.prod(grid) != positions:
            raise ValueError(
                f"`{argument}` must have {positions} positions, without {self.prefix_tokens} "
                f"prefix tokens. Received: {argument}={grid}"
            )
        return (grid[0], math.prod(grid[1:]))

    def _default_grid(self, positions: int) -> tuple[int, ...] | None:
        """Return the length of a sequence, a square grid, or None if it would not be square."""
        given = self.old_grid or self.new_grid
        if given is not None and len(given) == 1:
            return (positions,)
        side = math.isqrt(max(positions, 0))
        return (side, side) if side * side == positions else None

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

    def _undo(self, array: np.ndarray, shape: Shape, target: Shape) -> np.ndarray:
        axis = axis_of(self.axis, shape)
        old, new = self._grids(shape[axis], array.shape[axis])
        if old != new:
            raise ValueError("interpolated positions do not determine the original ones")
        return array

    def __repr__(self) -> str:
        options = {
            "old_grid": (self.old_grid, None),
            "new_grid": (self.new_grid, None),
            "prefix_tokens": (self.prefix_tokens, 0),
            "axis": (self.axis, -2),
            "interpolation": (self.interpolation, "bilinear"),
            "antialias": (self.antialias, False),
        }
        given = [
            f"{name}={value!r}" for name, (value, default) in options.items() if value != default
        ]
        return f"ResizePositions({', '.join(given)})"


def _checked_grid(argument: str, grid: int | Sequence[int] | None) -> tuple[int, ...] | None:
    if grid is None:
        return None
    sizes = whole_numbers(argument, [grid] if isinstance(grid, SupportsIndex) else grid)
    if len(sizes) not in (1, 2) or min(sizes) < 1:
        raise ValueError(
            f"`{argument}` must be (rows, columns), or one number for a sequence. Received: "
            f"{argument}={grid!r}"
        )
    return sizes
