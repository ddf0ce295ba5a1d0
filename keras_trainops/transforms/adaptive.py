"""Clips with a limit that adapts to the weights, or to previous gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_trainops import paths
from keras_trainops.scalars import (
    Number,
    check_decay,
    check_positive,
    deserialize_number,
    serialize_number,
)
from keras_trainops.transforms.base import Gradient, GradientTransform
from keras_trainops.transforms.layouts import Axes, Overrides, unit_axes
from keras_trainops.transforms.pending import Pending, joint_norm, upcast
from keras_trainops.transforms.rescaling import Rescaling
from keras_trainops.transforms.scope import value_of


@keras.saving.register_keras_serializable(package="keras_trainops")
class AdaptiveClip(GradientTransform):
    """Limits each unit's gradient to a fraction of the unit's weights (AGC).

    For the weights `w` and the gradient `g` of one output unit:
    `g' = g · m / max(‖g‖₂, 1e-6)` unless `‖g‖₂ < m`, with `m = c · max(‖w‖₂, ε)`. A NaN makes its
    whole unit NaN.

    The layer's own layout defines a unit: a column of a `Dense` kernel, a filter of a convolution
    (also transposed, depthwise and separable), one head's dimension in `MultiHeadAttention`, an
    output of `EinsumDense`, a row of an `Embedding`. Biases and scales count as a whole.

    The paper excludes the last layer: `Only("^(?!head).*", AdaptiveClip(0.01))`.

    Args:
        clipping: The factor `c`, > 0; a number or a schedule over the weight updates.
        epsilon: Lower bound on the norm of the weights, > 0, so that units initialised to zero can
            move.
        axes: Mapping from pattern to the axes that lead to one unit, or to None for a whole tensor,
            for variables of layers with an unknown layout. Pairs if a pattern is a variable or a
            layer.

    Returns:
        Gradients with the shapes and dtypes they came with; `None` stays `None`.

    Raises:
        ValueError: If a number is out of range; at the first build, if the layer of a variable with
            more than one axis is unknown.

    Example:
        >>> import keras_trainops as kt
        >>> clip = kt.transforms.AdaptiveClip(0.01)

    References: Brock et al. 2021, "High-Performance Large-Scale Image Recognition Without
    Normalization"; `optax.adaptive_grad_clip`, which guesses the layout from the rank.
    """

    clips = True

    def __init__(
        self, clipping: Number = 0.01, epsilon: float = 1e-3, axes: Overrides = None
    ) -> None:
        self.clipping = check_positive("clipping", deserialize_number(clipping), scheduled=True)
        self.epsilon = check_positive("epsilon", epsilon)
        self.axes = paths.as_rules(axes)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        self._axes_of = unit_axes(variables, self.axes)

    def __call__(
        self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]
    ) -> Sequence[Gradient]:
        clipping = value_of(self.clipping)
        return [
            None if g is None else self._clip(g, v, self._axes_of[id(v)], clipping)
            for g, v in zip(gradients, variables, strict=True)
        ]

    def _clip(
        self, gradient: Gradient, variable: keras.Variable, axes: Axes, clipping: Any
    ) -> Gradient:
        values = upcast(gradient)
        weights = ops.cast(variable, values.dtype)
        limit = ops.cast(clipping, values.dtype) * ops.maximum(_norm(weights, axes), self.epsilon)
        norm = _norm(values, axes)
        clipped = values * (limit / ops.maximum(norm, 1e-6))
        return ops.cast(ops.where(norm < limit, values, clipped), gradient.dtype)

    def get_config(self) -> dict[str, Any]:
        return {
            "clipping": serialize_number(self.clipping),
            "epsilon": self.epsilon,
            "axes": paths.serializable_rules(self.axes),
        }


def _norm(values: Any, axes: Axes) -> Any:
    return ops.sqrt(ops.sum(ops.square(values), axis=axes, keepdims=True))


@keras.saving.register_keras_serializable(package="keras_trainops")
class AdaptiveNormClip(Rescaling):
    """Scales gradients down if their joint norm is large compared with previous steps.

    Keeps running averages of `n = log(‖g‖₂ + 1e-8)` and `n²`, with `d_t = min(d, t / (t + 1))` in
    update `t`; they include the current norm. With their mean `μ` and standard deviation `σ`:
    `g' = g · exp(μ) / ‖g‖₂` if `‖g‖₂ ≥ exp(μ + k σ)`.

    A norm that is not finite leaves the averages unchanged.

    Args:
        deviations: The limit `k`, > 0, in standard deviations above the mean.
        decay: The decay of the averages, `0 <= d < 1`.

    Returns:
        Gradients with the shapes and dtypes they came with; `None` stays `None`.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> import keras_trainops as kt
        >>> clip = kt.transforms.AdaptiveNormClip(deviations=2.0, decay=0.95)

    References: `adaptive_clipping_fn` of tf.contrib.layers.
    """

    clips = True

    def __init__(self, deviations: float = 2.0, decay: float = 0.95) -> None:
        self.deviations = check_positive("deviations", deviations)
        self.decay = check_decay(decay)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        self._updates = self.add_variable("updates", dtype="int32")
        self._mean = self.add_variable("mean")
        self._square = self.add_variable("mean_square")

    def multipliers(self, gradients: Sequence[Pending]) -> Sequence[Any]:
        norm = ops.cast(joint_norm(gradients), "float32")
        self._update_averages(norm)
        return [self._factor(norm)] * len(gradients)

    def _update_averages(self, norm: Any) -> None:
        finite = ops.isfinite(norm)
        log_norm = ops.log(ops.where(finite, norm, 1.0) + 1e-8)
        updates = ops.cast(self._updates, "float32")
        decay = ops.minimum(self.decay, updates / (updates + 1))
        for average, value in ((self._mean, log_norm), (self._square, ops.square(log_norm))):
            moved = decay * average + (1 - decay) * value
            average.assign(ops.where(finite, moved, average.value))
        self._updates.assign(self._updates + ops.cast(finite, "int32"))

    def _factor(self, norm: Any) -> Any:
        mean = ops.convert_to_tensor(self._mean)
        variance = self._square - ops.square(mean)
        limit = ops.exp(mean + self.deviations * ops.sqrt(ops.maximum(1e-8, variance)))
        return ops.where(norm < limit, 1.0, ops.exp(mean) / norm)

    def get_config(self) -> dict[str, Any]:
        return {"deviations": self.deviations, "decay": self.decay}
