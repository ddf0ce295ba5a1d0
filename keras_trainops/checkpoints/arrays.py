"""Sizes and kinds of arrays, without the arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np


def nbytes(shape: Iterable[int], dtype: np.dtype) -> int:
    """The size of an array in memory, exact where NumPy's own integers would overflow."""
    return math.prod(int(n) for n in shape) * dtype.itemsize


def is_real(dtype: np.dtype) -> bool:
    """Whether values of this dtype are real numbers, those of `ml_dtypes` among them."""
    return dtype.kind in "biuf" or dtype.name.startswith(("bfloat16", "float8"))
