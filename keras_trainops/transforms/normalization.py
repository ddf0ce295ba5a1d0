"""Transforms that centre gradients, or scale them to a norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

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
from keras_trainops.transforms.base import Gradient
from keras_trainops.transforms.layouts import Axes, Overrides, unit_axes
from keras_trainops.transforms.pending import Pending, global_norm, joint_norm, upcast
from keras_trainops.transforms.rescaling import Elementwise, Rescaling
from keras_trainops.transforms.scope import value_of


@keras.saving.register_keras_serializable(package="keras_trainops")
class Centralize(Elementwise):
    """Subtracts the mean from each output unit's gradient (gradient centralisation).

    `g' = g - mean(g)` over the axes that lead to one output unit, according to the layer's own
    layout (see `AdaptiveClip`). Biases, scales and other tensors that count as a whole are
    unchanged.

    Args:
        axes: Mapping from pattern to the axes that lead to one unit, as in `AdaptiveClip`.

    Returns:
        Gradients with the shapes and dtypes they came with; `None` stays `None`.

    Raises:
        ValueError: At the first build, if the layer of a variable with more than one axis is
            unknown.

    Example:
        >>> import keras_trainops as kt
        >>> centralize = kt.transforms.Centralize()

    References: Yong et al. 2020, "Gradient Centralization: A New Optimization Technique for Deep
    Neural Networks"; `optax.centralize`, which guesses the layout from the rank.
    """

    def __init__(self, axes: Overrides = None) -> None:
        self.axes = paths.as_rules(axes)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        self._axes_of = unit_axes(variables, self.axes)

    def kind(self, variable: keras.Variable) -> Axes:
        return self._axes_of[id(variable)]

    def elements(self, gradient: Pending) -> Gradient:
        values, axes = gradient.value(), self._axes_of[id(gradient.variables[0])]
        if not axes:
            return values
        axes = tuple(axis + 1 for axis in axes) if gradient.is_stack else axes
        return values - ops.cast(ops.mean(upcast(values), axis=axes, keepdims=True), values.dtype)

    def get_config(self) -> dict[str, Any]:
        return {"axes": paths.serializable_rules(self.axes)}


@keras.saving.register_keras_serializable(package="keras_trainops")
class Normalize(Rescaling):
    """Scales gradients to a fixed L2 norm, so that only their direction matters.

    `g' = c · g / (‖g‖₂ + ε)`, where `‖g‖₂` is the joint norm of all gradients or, with
    `scope="variable"`, the norm of each one.

    Args:
        norm: The target norm `c`, > 0; a number or a schedule over the weight updates.
        scope: `"global"` or `"variable"`.
        epsilon: The constant `ε`, > 0, added to the norm.

    Returns:
        Gradients with the shapes and dtypes they came with; `None` stays `None`.

    Raises:
        ValueError: If an argument is not valid.

    Example:
        >>> import keras_trainops as kt
        >>> normalize = kt.transforms.Normalize(1.0)

    References: `optax.normalize_by_update_norm`; Hazan et al. 2015, "Beyond Convexity: Stochastic
    Quasi-Convex Optimization".
    """

    def __init__(
        self,
        norm: Number = 1.0,
        scope: Literal["global", "variable"] = "global",
        epsilon: float = 1e-6,
    ) -> None:
        self.norm = check_positive("norm", deserialize_number(norm), scheduled=True)
        self.epsilon = check_positive("epsilon", epsilon)
        if scope not in ("global", "variable"):
            raise ValueError(f'`scope` must be "global" or "variable". Received: scope={scope!r}')
        self.scope = scope

    def multipliers(self, gradients: Sequence[Pending]) -> Sequence[Any]:
        target = value_of(self.norm)
        if self.scope == "variable":
            return [ops.divide(target, g.norm() + self.epsilon) for g in gradients]
        return [ops.divide(target, joint_norm(gradients) + self.epsilon)] * len(gradients)

    def get_config(self) -> dict[str, Any]:
        return {"norm": serialize_number(self.norm), "scope": self.scope, "epsilon": self.epsilon}


@keras.saving.register_keras_serializable(package="keras_trainops")
class Trust(Rescaling):
    """Scales each gradient to a fraction of the norm of its variable's weights (LARS).

    `g' = g · c · max(‖w‖₂, m) / (max(‖g‖₂, m) + ε)` for the weights `w`, for each variable on its
    own; `g' = g` if one of the two norms is 0, as that of new biases is.

    Before `keras.optimizers.SGD(momentum=0.9)` this is LARS; its weight decay is an L2 regularizer
    of the layers. The paper excludes biases and scales: `Only("kernel", Trust(0.001))`.

    It is not LAMB, where the ratio is that of the step which Adam has computed: a transform changes
    the gradient, and Adam cancels a factor on it. Use `keras.optimizers.Lamb`.

    Args:
        coefficient: The trust coefficient `c`, > 0; a number or a schedule over the weight updates.
        min_norm: The lower bound `m` of both norms, >= 0.
        epsilon: The constant `ε`, >= 0, added to the norm of the gradient.

    Returns:
        Gradients with the shapes and dtypes they came with; `None` stays `None`.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> import keras, keras_trainops as kt
        >>> lars = kt.TransformedOptimizer(
        ...     keras.optimizers.SGD(1.0, momentum=0.9), kt.transforms.Trust(0.001))

    References: You et al. 2017, "Large Batch Training of Convolutional Networks";
    `optax.scale_by_trust_ratio`.
    """

    def __init__(
        self, coefficient: Number = 1.0, min_norm: float = 0.0, epsilon: float = 0.0
    ) -> None:
        self.coefficient = check_positive(
            "coefficient", deserialize_number(coefficient), scheduled=True
        )
        self.min_norm = check_number("min_norm", min_norm, ">= 0", lambda x: x >= 0)
        self.epsilon = check_number("epsilon", epsilon, ">= 0", lambda x: x >= 0)

    def multipliers(self, gradients: Sequence[Pending]) -> Sequence[Any]:
        coefficient = value_of(self.coefficient)
        return [self._ratio(gradient, coefficient) for gradient in gradients]

    def _ratio(self, gradient: Pending, coefficient: Any) -> Any:
        norms = [global_norm([ops.convert_to_tensor(v)]) for v in gradient.variables]
        weights = ops.maximum(gradient.of_each(norms), self.min_norm)
        norm = ops.maximum(gradient.norm(), self.min_norm)
        ratio = ops.divide(ops.multiply(coefficient, weights), norm + self.epsilon)
        return ops.where(ops.logical_or(weights == 0, norm == 0), 1.0, ratio)

    def get_config(self) -> dict[str, Any]:
        return {
            "coefficient": serialize_number(self.coefficient),
            "min_norm": self.min_norm,
            "epsilon": self.epsilon,
        }
