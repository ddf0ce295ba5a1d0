"""Clips whose limit follows the weights, or the gradients seen so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_trainops import paths
from keras_trainops.scalars import (
    Number,
    check_number,
    check_positive,
    deserialize_number,
    serialize_number,
)
from keras_trainops.transforms.base import Gradient, GradientTransform, upcast
from keras_trainops.transforms.clipping import global_norm, scaled
from keras_trainops.transforms.layouts import Axes, Overrides, unit_axes
from keras_trainops.transforms.scope import value_of


@keras.saving.register_keras_serializable(package="keras_trainops")
class AdaptiveClip(GradientTransform):
    """Limits each unit's gradient to a fraction of the unit's weights (AGC).

    For the weights `w` and the gradient `g` of one output unit:
    `g' = g · m / max(‖g‖₂, 1e-6)` where `‖g‖₂ > m`, with `m = c · max(‖w‖₂, ε)`.

    A unit is what the layer's own layout says: a column of a `Dense` kernel, a filter of a
    convolution (also transposed, depthwise and separable), one head's dimension in
    `MultiHeadAttention`, an output of `EinsumDense`, a row of an `Embedding`. Biases and scales
    count as a whole.

    The paper leaves the last layer out: `Only("^(?!head).*", AdaptiveClip(0.01))`.

    Args:
        clipping: The factor `c`, > 0; a number or a schedule of the weight updates.
        epsilon: The least norm of weights, so that units that start at zero can move.
        axes: Mapping from pattern to the axes that lead to one unit, for variables of layers that
            do not tell, or None for a whole tensor; pairs where a pattern is a variable or a layer.

    Returns:
        Gradients with the shapes and dtypes they came with; `None` stays `None`.

    Raises:
        ValueError: If a number does not fit; at the first build, if it is not known which layer a
            variable of more than one axis belongs to.

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
        found = unit_axes(variables, self.axes)
        self._axes_of = {id(v): axes for v, axes in zip(variables, found, strict=True)}

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
        return ops.cast(ops.where(norm > limit, clipped, values), gradient.dtype)

    def get_config(self) -> dict[str, Any]:
        return {
            "clipping": serialize_number(self.clipping),
            "epsilon": self.epsilon,
            "axes": paths.serializable_rules(self.axes),
        }


def _norm(values: Any, axes: Axes) -> Any:
    return ops.sqrt(ops.sum(ops.square(values), axis=axes, keepdims=True))


@keras.saving.register_keras_serializable(package="keras_trainops")
class AdaptiveNormClip(GradientTransform):
    """Scales gradients down whose joint norm stands out among those of the steps before.

    Keeps running averages of `n = log(‖g‖₂ + 1e-8)` and `n²`, with `d_t = min(d, t / (t + 1))` in
    update `t`, this one's norm among them. With the mean `μ` and the deviation `σ` that follow:
    `g' = g · exp(μ) / ‖g‖₂` where `‖g‖₂ ≥ exp(μ + k σ)`.

    A norm that is not finite leaves the averages as they are.

    Args:
        deviations: How many standard deviations above the mean are too many, `k` > 0.
        decay: The decay of the averages, `0 <= d < 1`.

    Returns:
        Gradients with the shapes and dtypes they came with; `None` stays `None`.

    Raises:
        ValueError: If a number does not fit.

    Example:
        >>> import keras_trainops as kt
        >>> clip = kt.transforms.AdaptiveNormClip(deviations=2.0, decay=0.95)

    References: `adaptive_clipping_fn` of tf.contrib.layers.
    """

    clips = True
    row_sparse = True

    def __init__(self, deviations: float = 2.0, decay: float = 0.95) -> None:
        self.deviations = check_positive("deviations", deviations)
        self.decay = check_number("decay", decay, "at least 0 and below 1", lambda d: 0 <= d < 1)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        self._updates = self.add_variable("updates", dtype="int32")
        self._mean = self.add_variable("mean")
        self._square = self.add_variable("mean_square")

    def __call__(
        self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]
    ) -> Sequence[Gradient]:
        present = [g for g in gradients if g is not None]
        if not present:
            return gradients
        norm = ops.cast(global_norm(present), "float32")
        finite = ops.isfinite(norm)
        log_norm = ops.log(ops.where(finite, norm, 1.0) + 1e-8)
        updates = ops.cast(self._updates, "float32")
        decay = ops.minimum(self.decay, updates / (updates + 1))
        for average, value in ((self._mean, log_norm), (self._square, ops.square(log_norm))):
            moved = decay * average + (1 - decay) * value
            average.assign(ops.where(finite, moved, average.value))
        self._updates.assign(self._updates + ops.cast(finite, "int32"))
        mean = ops.convert_to_tensor(self._mean)
        variance = self._square - ops.square(mean)
        limit = ops.exp(mean + self.deviations * ops.sqrt(ops.maximum(1e-8, variance)))
        factor = ops.where(norm < limit, 1.0, ops.exp(mean) / norm)
        return [None if g is None else scaled(g, factor) for g in gradients]

    def get_config(self) -> dict[str, Any]:
        return {"deviations": self.deviations, "decay": self.decay}
