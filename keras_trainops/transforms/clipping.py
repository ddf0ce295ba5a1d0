"""Transforms that limit the size of gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_trainops.scalars import Number, check_positive, deserialize_number, serialize_number
from keras_trainops.transforms.base import Gradient, GradientTransform
from keras_trainops.transforms.pending import Pending, Ratio, joint_norm
from keras_trainops.transforms.rescaling import Elementwise, Rescaling
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
class ClipByNorm(_ClipByNumber, Rescaling):
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

    def multipliers(self, gradients: Sequence[Pending]) -> Sequence[Any]:
        limit = self._limit()
        return [Ratio(limit, ops.maximum(g.norm(), limit)) for g in gradients]


@keras.saving.register_keras_serializable(package="keras_trainops")
class ClipByGlobalNorm(_ClipByNumber, Rescaling):
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

    def multipliers(self, gradients: Sequence[Pending]) -> Sequence[Any]:
        limit, norm = self._limit(), joint_norm(gradients)
        # The same operations in the same order as in Keras, for bit-identical results. The last
        # term is 0 for finite norms; otherwise it makes the factor NaN.
        factor = limit * ops.minimum(1.0 / norm, 1.0 / limit) + (norm - norm)
        return [factor] * len(gradients)


@keras.saving.register_keras_serializable(package="keras_trainops")
class ClipByValue(_ClipByNumber, Elementwise):
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

    def elements(self, gradient: Pending) -> Gradient:
        values, limit = gradient.value(), self._limit()
        return ops.clip(values, ops.cast(-limit, values.dtype), ops.cast(limit, values.dtype))


@keras.saving.register_keras_serializable(package="keras_trainops")
class ClipByBlockRMS(_ClipByNumber, Rescaling):
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

    def multipliers(self, gradients: Sequence[Pending]) -> Sequence[Any]:
        limit = self._limit()
        # The gradient of an embedding may consist of some rows only; the others are zero.
        sizes = [max(math.prod(g.variables[0].shape), 1) for g in gradients]
        return [
            Ratio(1.0, ops.maximum(1.0, g.norm() / math.sqrt(size) / limit))
            for g, size in zip(gradients, sizes, strict=True)
        ]
