"""Sizes in memory and kinds of dtypes."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np


def nbytes(shape: Iterable[int], dtype: np.dtype) -> int:
    """Return the size of an array in bytes; NumPy's own integers could overflow."""
    return math.prod(int(n) for n in shape) * dtype.itemsize


def is_real(dtype: np.dtype) -> bool:
    """Return True for dtypes of real numbers, including those of `ml_dtypes`."""
    return dtype.kind in "biuf" or dtype.name.startswith(("bfloat16", "float8"))
