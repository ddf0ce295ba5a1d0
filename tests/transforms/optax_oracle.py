"""The results of optax, to compare with."""

from __future__ import annotations

from typing import Any

import numpy as np


def by_optax(transformation: Any, gradients: list[np.ndarray], weights: Any = None) -> list[Any]:
    state = transformation.init(weights if weights is not None else gradients)
    out, _ = transformation.update(gradients, state, weights)
    return [np.asarray(g, dtype="float64") for g in out]
