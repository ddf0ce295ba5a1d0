"""What the values of a tensor are like, told piece by piece."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Statistics(NamedTuple):
    """Of the finite values of a tensor; None where it has none.

    Attributes:
        minimum, maximum, mean, std: Of the finite values, computed in float64; `std` is that of
            the whole population (`ddof=0`).
        nan, infinite: How many values are NaN, and infinite.
    """

    minimum: float | None
    maximum: float | None
    mean: float | None
    std: float | None
    nan: int
    infinite: int


def statistics(pieces: Iterable[np.ndarray]) -> Statistics:
    """The statistics of real numbers that come in pieces; no more than one is held.

    Example:
        >>> import numpy as np
        >>> statistics([np.array([1.0, np.nan]), np.array([3.0, np.inf])])
        Statistics(minimum=1.0, maximum=3.0, mean=2.0, std=1.0, nan=1, infinite=1)

    References: Chan, Golub & LeVeque (1979), to combine means and squares of parts.
    """
    count, nan, infinite = 0, 0, 0
    mean, squares = 0.0, 0.0  # of the deviations from the mean; both as multiples of `unit`
    unit = float(np.finfo(np.float64).tiny)
    low, high = math.inf, -math.inf
    for piece in pieces:
        values = piece.reshape(-1).astype(np.float64)
        finite = values[np.isfinite(values)]
        not_numbers = int(np.isnan(values).sum())
        nan, infinite = nan + not_numbers, infinite + values.size - finite.size - not_numbers
        if not finite.size:
            continue
        low, high = min(low, float(finite.min())), max(high, float(finite.max()))
        # A power of two near the largest magnitude, so that no square or sum leaves float64.
        larger = max(unit, 2.0 ** (math.frexp(max(-low, high))[1] - 1))
        mean, squares, unit = mean * (unit / larger), squares * (unit / larger) ** 2, larger
        finite /= unit
        here = float(finite.mean())
        apart, total = here - mean, count + finite.size
        squares += float(np.square(finite - here).sum()) + apart**2 * count * finite.size / total
        mean += apart * finite.size / total
        count = total
    if not count:
        return Statistics(None, None, None, None, nan, infinite)
    mean = min(max(mean * unit, low), high)  # what rounding may have led out of them
    std = min(math.sqrt(squares / count) * unit, high / 2 - low / 2)
    return Statistics(low, high, mean, std, nan, infinite)
