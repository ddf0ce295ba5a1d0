"""The factor between a loss and what an optimizer has differentiated, and back for gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_trainops.backends import Gradient, backend


class LossScale(NamedTuple):
    """The factor `scale / replicas` by which losses are multiplied for an optimizer.

    Attributes:
        optimizer: The optimizer, which may scale losses.
        replicas: The number of replicas, whose gradients are added up.
    """

    optimizer: Any
    replicas: int

    def scaled_loss(self, loss: Any) -> Any:
        """Return the loss to differentiate."""
        return self.optimizer.scale_loss(_scaled(loss, 1 / self.replicas, ops.multiply))

    def unscaled(self, gradient: Gradient, source: Any) -> Gradient:
        """Return the gradient of the loss itself by a variable or tensor."""
        if getattr(source, "overwrite_with_gradient", False):  # it is a new value, for float8
            return gradient
        # 1 / 2**127 would be flushed to zero, and 1 / 1000 is not exact.
        return _scaled(_scaled(gradient, self.replicas, ops.multiply), self._scale(), ops.divide)

    def scaled(self, gradient: Gradient, variable: keras.Variable) -> Gradient:
        """Return the gradient that the optimizer expects."""
        if getattr(variable, "overwrite_with_gradient", False):
            return gradient
        return _scaled(_scaled(gradient, self._scale(), ops.multiply), self.replicas, ops.divide)

    def _scale(self) -> Any:
        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            own = self.optimizer
            return ops.convert_to_tensor(own.dynamic_scale if own.built else own.initial_scale)
        return self.optimizer.loss_scale_factor or 1


def loss_scale_of(optimizer: Any) -> LossScale:
    """Return the loss scale of an optimizer in the current step."""
    return LossScale(optimizer, backend().replicas())


def _scaled(tensor: Any, factor: Any, how: Callable[[Any, Any], Any]) -> Any:
    if tensor is None or (isinstance(factor, (int, float)) and factor == 1):
        return tensor
    return how(tensor, ops.cast(factor, tensor.dtype))


def require_same_scaling(optimizers: Iterable[Any]) -> None:
    """Check that a loss can be scaled for several optimizers at once.

    Raises:
        ValueError: If some of them skip weight updates in which the scaled loss overflows, and
            others would make them.
    """
    scaled = [isinstance(each, keras.optimizers.LossScaleOptimizer) for each in optimizers]
    if any(scaled) and not all(scaled):
        raise ValueError(
            "`step.minimize` cannot train variables of optimizers with and without a "
            "`LossScaleOptimizer` at once: where the scaled loss overflows, only the former skip "
            "the update. Use one around each, or call `step.minimize` for each."
        )
