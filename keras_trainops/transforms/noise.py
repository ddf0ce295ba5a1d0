"""Transforms that add noise."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_trainops.scalars import check_number
from keras_trainops.transforms.base import Gradient, GradientTransform
from keras_trainops.transforms.pending import upcast


@keras.saving.register_keras_serializable(package="keras_trainops")
class Noise(GradientTransform):
    """Adds Gaussian noise with a variance that decays over the weight updates.

    `g' = g + N(0, η / (1 + t)^γ)` in update `t`, counted from 0.

    The seed and the count are saved with the optimizer, so a resumed run draws the same noise as an
    uninterrupted one. Noise is drawn once for all replicas, after their gradients are reduced. The
    random numbers depend on the backend.

    Args:
        variance: The variance `η` in the first update, >= 0.
        decay: The exponent `γ`, >= 0; 0 keeps the variance constant.
        seed: An integer; None draws one when the transform is created.

    Returns:
        Gradients with the shapes and dtypes they came with; `None` stays `None`. The gradient of
        an embedding becomes dense.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import keras_trainops as kt
        >>> noise = kt.transforms.Noise(variance=0.01, decay=0.55, seed=1)

    References: Neelakantan et al. 2015, "Adding Gradient Noise Improves Learning for Very Deep
    Networks"; `optax.add_noise`.
    """

    def __init__(
        self, variance: float = 0.01, decay: float = 0.55, seed: int | None = None
    ) -> None:
        self.variance = check_number("variance", variance, ">= 0", lambda x: x >= 0)
        self.decay = check_number("decay", decay, ">= 0", lambda x: x >= 0)
        self.seed = random.randrange(2**31) if seed is None else seed
        if isinstance(seed, bool) or not isinstance(self.seed, int):
            raise ValueError(f"`seed` must be an integer or None. Received: seed={seed!r}")

    def build(self, variables: Sequence[keras.Variable]) -> None:
        self._generator = self.add_seed(self.seed)
        self._updates = self.add_variable("updates", dtype="int32")

    def __call__(
        self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]
    ) -> Sequence[Gradient]:
        updates = ops.cast(self._updates, "float32")
        deviation = ops.sqrt(self.variance / (1 + updates) ** self.decay)
        self._updates.assign(self._updates + 1)
        return [None if g is None else self._noisy(g, deviation) for g in gradients]

    def _noisy(self, gradient: Gradient, deviation: Any) -> Gradient:
        values = upcast(gradient)
        drawn = keras.random.normal(values.shape, dtype=values.dtype, seed=self._generator)
        return ops.cast(values + ops.cast(deviation, values.dtype) * drawn, gradient.dtype)

    def get_config(self) -> dict[str, Any]:
        return {"variance": self.variance, "decay": self.decay, "seed": self.seed}
