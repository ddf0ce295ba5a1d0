"""The versions of Keras that this package is tested with."""

from __future__ import annotations

import warnings

import keras

TESTED_KERAS = ((3, 12), (3, 15))


def warn_if_untested() -> None:
    """Warn, once at import, if the installed Keras is outside the tested range."""
    version = tuple(int(part) for part in keras.__version__.split(".")[:2])
    low, high = TESTED_KERAS
    if not low <= version <= high:
        tested = f"{low[0]}.{low[1]} to {high[0]}.{high[1]}"
        warnings.warn(
            f"keras_trainops is tested with Keras {tested}; this is Keras {keras.__version__}. It "
            "uses some of Keras's private API: run its tests before you rely on it.",
            stacklevel=3,
        )
