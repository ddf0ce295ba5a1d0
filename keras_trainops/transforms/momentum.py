"""Transforms that accumulate gradients over weight updates."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_trainops.scalars import check_decay
from keras_trainops.transforms.base import Gradient, GradientTransform
from keras_trainops.transforms.pending import upcast


class _Accumulation(GradientTransform):
    """Base class of transforms with an accumulator for each variable."""

    def __init__(self, decay: float, accumulator_dtype: str | None) -> None:
        self.decay = check_decay(decay)
        self.accumulator_dtype = _checked_dtype(accumulator_dtype)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        self.use_as_state(())
        self._accumulator_of = {
            # The number makes names unique, since paths may repeat.
            id(v): self.add_variable(f"{i}_{v.path}", dtype=self.accumulator_dtype, like=v)
            for i, v in enumerate(variables)
        }

    def __call__(
        self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]
    ) -> Sequence[Gradient]:
        return [
            None if g is None else self._accumulate(g, self._accumulator_of[id(v)])
            for g, v in zip(gradients, variables, strict=True)
        ]

    def _accumulate(self, gradient: Gradient, accumulator: keras.Variable) -> Gradient:
        values = upcast(gradient)
        accumulated = self._next(values, ops.cast(accumulator, values.dtype))
        accumulator.assign(ops.cast(accumulated, accumulator.dtype))
        return ops.cast(self._transformed(values, accumulated), gradient.dtype)

    @abstractmethod
    def _next(self, gradient: Any, accumulator: Any) -> Any:
        """Return the new value of an accumulator."""

    @abstractmethod
    def _transformed(self, gradient: Any, accumulated: Any) -> Any:
        """Return the transformed gradient."""

    def get_config(self) -> dict[str, Any]:
        return {"decay": self.decay, "accumulator_dtype": self.accumulator_dtype}


@keras.saving.register_keras_serializable(package="keras_trainops")
class Momentum(_Accumulation):
    """Adds previous gradients, which decay, to each gradient.

    `m ← g + d · m`, `g' = m`; with `nesterov` `g' = g + d · m`, with the new `m`. A variable whose
    gradient is `None` keeps its `m`.

    Before `keras.optimizers.SGD(r)` it equals `SGD(r, momentum=d)` at a constant learning rate. It
    accumulates what comes before it in the chain; what comes after it changes the sum: a clip after
    it limits the step. Adam has a momentum of its own.

    Args:
        decay: The decay `d`, `0 <= d < 1`.
        nesterov: If True, use Nesterov momentum.
        accumulator_dtype: The dtype of `m`; None for that of the variable. The arithmetic is in at
            least float32.

    Returns:
        Gradients with the shapes and dtypes they came with; `None` stays `None`. The gradient of
        an embedding becomes dense.

    Raises:
        ValueError: If `decay` is out of range, or `accumulator_dtype` is not a float dtype.

    Example:
        >>> import keras_trainops as kt
        >>> chain = [kt.transforms.Momentum(0.9), kt.transforms.ClipByGlobalNorm(1.0)]

    References: Sutskever et al. 2013, "On the importance of initialization and momentum in deep
    learning"; `optax.trace`.
    """

    def __init__(
        self, decay: float, nesterov: bool = False, accumulator_dtype: str | None = None
    ) -> None:
        super().__init__(decay, accumulator_dtype)
        self.nesterov = nesterov

    def _next(self, gradient: Any, accumulator: Any) -> Any:
        return gradient + self.decay * accumulator

    def _transformed(self, gradient: Any, accumulated: Any) -> Any:
        return gradient + self.decay * accumulated if self.nesterov else accumulated

    def get_config(self) -> dict[str, Any]:
        return {"nesterov": self.nesterov, **super().get_config()}


@keras.saving.register_keras_serializable(package="keras_trainops")
class Ema(_Accumulation):
    """Replaces each gradient by an exponential moving average of it and the previous ones.

    `m ← d · m + (1 − d) · g`, which starts from 0, and `g' = m`; with `debias`
    `g' = m / (1 − dᵗ)` in update `t`, counted from 1. A variable whose gradient is `None` keeps its
    `m`.

    Args:
        decay: The decay `d`, `0 <= d < 1`.
        debias: If True, correct the average for its start from 0.
        accumulator_dtype: The dtype of `m`; None for that of the variable. The arithmetic is in at
            least float32.

    Returns:
        Gradients with the shapes and dtypes they came with; `None` stays `None`. The gradient of
        an embedding becomes dense.

    Raises:
        ValueError: If `decay` is out of range, or `accumulator_dtype` is not a float dtype.

    Example:
        >>> import keras_trainops as kt
        >>> smooth = kt.transforms.Ema(0.9)

    References: `optax.ema`. For averages of weights see `keras_trainops.updates.MovingAverage`.
    """

    def __init__(
        self, decay: float, debias: bool = True, accumulator_dtype: str | None = None
    ) -> None:
        super().__init__(decay, accumulator_dtype)
        self.debias = debias

    def build(self, variables: Sequence[keras.Variable]) -> None:
        super().build(variables)
        self._updates = self.add_variable("updates", dtype="int32")

    def __call__(
        self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]
    ) -> Sequence[Gradient]:
        self._updates.assign(self._updates + 1)
        return super().__call__(gradients, variables)

    def _next(self, gradient: Any, accumulator: Any) -> Any:
        return self.decay * accumulator + (1 - self.decay) * gradient

    def _transformed(self, gradient: Any, accumulated: Any) -> Any:
        if not self.debias:
            return accumulated
        correction = 1 - ops.power(self.decay, ops.cast(self._updates, "float32"))
        return accumulated / ops.cast(correction, accumulated.dtype)

    def get_config(self) -> dict[str, Any]:
        return {"debias": self.debias, **super().get_config()}


def _checked_dtype(dtype: Any) -> str | None:
    """Return the name of a float dtype, or None.

    Raises:
        ValueError: If `dtype` is neither.
    """
    if dtype is None:
        return None
    name: str = keras.backend.standardize_dtype(dtype)
    if not keras.backend.is_float_dtype(name):
        raise ValueError(f"`accumulator_dtype` must be a float dtype or None. Received: {dtype!r}")
    return name
