"""Read a part of a tensor that is stored as plain bytes, and little else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from keras_trainops.checkpoints.storage.raw import Extent, aligned

Index: TypeAlias = tuple[slice, ...]  # one slice per axis, with steps of 1

_SHORT_RUN = 512  # bytes; reading that few takes as long as reading `_SHORT_GAP`
_SHORT_GAP = 8192
_NEGLIGIBLE = 1 / 16  # of a run
_BLOCK = 1 << 20  # bytes


def normalized(index: Index, shape: Sequence[int]) -> Index:
    """Return an index with all bounds as numbers, from 0 to the length of each axis.

    Raises:
        ValueError: If it does not have one slice per axis, or a step is not 1.
    """
    if len(index) != len(shape):
        raise ValueError(f"a part of a tensor of shape {tuple(shape)} cannot be {index}")
    bounds = [each.indices(length) for each, length in zip(index, shape, strict=True)]
    if any(step != 1 for _, _, step in bounds):
        raise ValueError(f"the steps of a part must be 1. Received: {index}")
    return tuple(slice(start, max(start, stop)) for start, stop, _ in bounds)


def whole(shape: Sequence[int]) -> Index:
    """Return the index of all elements."""
    return tuple(slice(0, length) for length in shape)


def shape_of(index: Index) -> tuple[int, ...]:
    """Return the shape of a part with a normalized index."""
    return tuple(each.stop - each.start for each in index)


def aligned_copy(array: np.ndarray) -> np.ndarray:
    """Return a copy in C order, in memory that backends can use without another copy."""
    copied = aligned(array.shape, array.dtype)
    np.copyto(copied, array)
    return copied


def read_part(extent: Extent, shape: Sequence[int], index: Index, part: np.ndarray) -> None:
    """Fill an array with a part of a tensor.

    Elements that are adjacent in the file are read at once, and so are those with small gaps
    between them.

    Args:
        extent: The place of the tensor.
        shape: The shape of the tensor.
        index: The normalized index of the part.
        part: A contiguous array of the part's shape and the tensor's dtype.

    Raises:
        EOFError: If the file ends too early.
    """
    if not part.size:
        return
    # Rows are the elements of the innermost axis that is cut, with all axes in it.
    cut = [axis for axis, length in enumerate(shape) if shape_of(index)[axis] != length]
    axis = cut[-1] if cut else 0
    inside = math.prod(shape[axis + 1 :])
    row = math.prod(shape[axis:])
    start, stop = (index[axis].start, index[axis].stop) if shape else (0, 1)
    run = slice(start * inside, stop * inside)
    if axis == 0:
        extent.read_into(part, run.start)
        return
    rows, above = index[axis - 1], shape[: axis - 1]
    runs = part.reshape(-1, rows.stop - rows.start, run.stop - run.start)
    outer = index[: axis - 1]
    for number, place in enumerate(np.ndindex(shape_of(outer))):
        position = 0
        for at, each, length in zip(place, outer, above, strict=True):
            position = position * length + each.start + at
        first = position * shape[axis - 1] + rows.start
        _read_rows(extent, first * row, row, run, runs[number])


def _read_rows(extent: Extent, begin: int, row: int, run: slice, runs: np.ndarray) -> None:
    """Read the same run of elements of each row; the rows are adjacent and begin at `begin`."""
    used, gap = runs[0].nbytes, (row - runs.shape[1]) * runs.itemsize
    if gap > used * _NEGLIGIBLE and (used >= _SHORT_RUN or gap > _SHORT_GAP):
        for number, each in enumerate(runs):
            extent.read_into(each, begin + number * row + run.start)
        return
    most = max(1, _BLOCK // (row * runs.itemsize))
    for first in range(0, len(runs), most):
        count = min(most, len(runs) - first)
        # The last row ends with its run, as nothing may follow in the file.
        block = np.empty(count * row - (row - run.stop) - run.start, runs.dtype)
        extent.read_into(block, begin + first * row + run.start)
        strides = (row * runs.itemsize, runs.itemsize)
        view = np.lib.stride_tricks.as_strided(block, (count, runs.shape[1]), strides)
        runs[first : first + count] = view
