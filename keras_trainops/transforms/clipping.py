"""Transforms that limit the size of gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_trainops.scalars import Number, check_positive, deserialize_number, serialize_number
from keras_trainops.transforms.base import Gradient, GradientTransform, upcast
from keras_trainops.transforms.scope import value_of


class _ClipByNumber(GradientTransform):
    """Base class of clips with one limit, which is a number or a schedule."""

    clips = True
    row_sparse = True
    _argument = ""

    def __init__(self, limit: Number) -> None:
        name = self._argument
        setattr(self, name, check_positive(name, deserialize_number(limit), scheduled=True))

    def _limit(self) -> Any:
        return value_of(getattr(self, self._argument))

    def get_config(self) -> dict[str, Any]:
        return {self._argument: serialize_number(getattr(self, self._argument))}


@keras.saving.register_keras_serializable(package="keras_trainops")
class ClipByNorm(_ClipByNumber):
    """Scales each gradient down so that its own L2 norm is at most `max_norm`.

    `g' = g · c / max(‖g‖₂, c)`, for each variable on its own. Repeated rows of an embedding's
    gradient are summed before the norm is taken.

    Args:
        max_norm: The largest L2 norm, > 0; a number or a schedule over the weight updates.

    Returns:
        Gradients with the shapes and dtypes they came with; `None` stays `None`.

    Raises:
        ValueError: If `max_norm` is not > 0.

    Example:
        >>> import keras_trainops as kt
        >>> clip = kt.transforms.ClipByNorm(3.0)

    References: `clip_gradient_norms` of tf.contrib.training; `tf.clip_by_norm`; `clipnorm` of
    Keras's optimizers.
    """

    _argument = "max_norm"

    def __init__(self, max_norm: Number) -> None:
        super().__init__(max_norm)

    def __call__(
        self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]
    ) -> Sequence[Gradient]:
        limit = self._limit()
        return [None if g is None else self._clip(g, limit) for g in gradients]

    def _clip(self, gradient: Gradient, limit: Any) -> Gradient:
        values = upcast(gradient)
        limit = ops.cast(limit, values.dtype)
        norm = ops.sqrt(ops.sum(ops.square(values)))
        return ops.cast(values * limit / ops.maximum(norm, limit), gradient.dtype)


@keras.saving.register_keras_serializable(package="keras_trainops")
class ClipByGlobalNorm(_ClipByNumber):
    """Scales all gradients down together so that their joint L2 norm is at most `max_norm`.

    `g' = g · c / max(‖g‖, c)` with `‖g‖² = Σ ‖gᵢ‖₂²` over all variables, summed in at least
    float32. A norm that is not finite makes all gradients NaN, as in Keras.

    Args:
        max_norm: The largest joint L2 norm, > 0; a number or a schedule over the weight updates.

    Returns:
        Gradients with the shapes and dtypes they came with; `None` stays `None`.

    Raises:
        ValueError: If `max_norm` is not > 0.

    Example:
        >>> import keras_trainops as kt
        >>> clip = kt.transforms.ClipByGlobalNorm(1.0)

    References: `tf.clip_by_global_norm`; `global_clipnorm` of Keras's optimizers, with equal
    results on one device without sparse gradients.
    """

    _argument = "max_norm"

    def __init__(self, max_norm: Number) -> None:
        super().__init__(max_norm)

    def __call__(
        self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]
    ) -> Sequence[Gradient]:
        present = [upcast(g) for g in gradients if g is not None]
        if not present:
            return gradients
        limit = self._limit()
        norm = global_norm(present)
        # The same operations in the same order as in Keras, for bit-identical results. The last
        # term is 0 for finite norms; otherwise it makes the factor NaN.
        factor = limit * ops.minimum(1.0 / norm, 1.0 / limit) + (norm - norm)
        return [None if g is None else scaled(g, factor) for g in gradients]


@keras.saving.register_keras_serializable(package="keras_trainops")
class ClipByValue(_ClipByNumber):
    """Limits each element of each gradient to `[-max_value, max_value]`.

    `g' = min(max(g, -v), v)`; NaN stays NaN.

    Args:
        max_value: The largest absolute value, > 0; a number or a schedule over the weight updates.

    Returns:
        Gradients with the shapes and dtypes they came with; `None` stays `None`.

    Raises:
        ValueError: If `max_value` is not > 0.

    Example:
        >>> import keras_trainops as kt
        >>> clip = kt.transforms.ClipByValue(0.5)

    References: `tf.clip_by_value`; `clipvalue` of Keras's optimizers.
    """

    _argument = "max_value"

    def __init__(self, max_value: Number) -> None:
        super().__init__(max_value)

    def __call__(
        self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]
    ) -> Sequence[Gradient]:
        limit = self._limit()
        return [
            None if g is None else ops.clip(g, ops.cast(-limit, g.dtype), ops.cast(limit, g.dtype))
            for g in gradients
        ]


@keras.saving.register_keras_serializable(package="keras_trainops")
class ClipByBlockRMS(_ClipByNumber):
    """Scales each gradient down so that its own root mean square is at most `threshold`.

    `g' = g / max(1, rms(g) / c)` with `rms(g)² = mean(g²)` over all elements of the variable, those
    of rows without a gradient included. Unlike the limit of `ClipByNorm`, this one does not depend
    on the variable's size.

    Args:
        threshold: The largest root mean square `c`, > 0; a number or a schedule over the weight
            updates.

    Returns:
        Gradients with the shapes and dtypes they came with; `None` stays `None`.

    Raises:
        ValueError: If `threshold` is not > 0.

    Example:
        >>> import keras_trainops as kt
        >>> clip = kt.transforms.ClipByBlockRMS(1.0)

    References: Shazeer and Stern 2018, "Adafactor: Adaptive Learning Rates with Sublinear Memory
    Cost"; `optax.clip_by_block_rms`.
    """

    _argument = "threshold"

    def __init__(self, threshold: Number) -> None:
        super().__init__(threshold)

    def __call__(
        self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]
    ) -> Sequence[Gradient]:
        limit = self._limit()
        return [
            None if g is None else self._clip(g, math.prod(v.shape), limit)
            for g, v in zip(gradients, variables, strict=True)
        ]

    def _clip(self, gradient: Gradient, size: int, limit: Any) -> Gradient:
        values = upcast(gradient)
        # The gradient of an embedding may consist of some rows only; the others are zero.
        rms = ops.sqrt(ops.sum(ops.square(values)) / max(size, 1))
        ratio = rms / ops.cast(limit, values.dtype)
        return ops.cast(values / ops.maximum(1.0, ratio), gradient.dtype)


def global_norm(gradients: Sequence[Gradient]) -> Any:
    """Return the joint L2 norm of gradients without Nones, as a float32 or float64 scalar."""
    return ops.sqrt(ops.sum(ops.stack([ops.sum(ops.square(upcast(g))) for g in gradients])))


def scaled(gradient: Gradient, factor: Any) -> Gradient:
    """Multiply a gradient by a scalar, and keep its dtype."""
    values = upcast(gradient)
    return ops.cast(values * ops.cast(factor, values.dtype), gradient.dtype)
