"""The vote of a `LossScaleOptimizer` on overflow, over all replicas."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_trainops import keras_private
from keras_trainops.backends.base import Backend


def finite_on_all_replicas(backend: Backend, model: Any) -> contextlib.ExitStack:
    """Make a LossScaleOptimizer skip a step if any replica's gradient is not finite.

    Keras checks each replica's gradients separately. TensorFlow uses the first replica's result for
    all; on PyTorch each process would decide for itself.
    """
    shadows = contextlib.ExitStack()

    def checking_all(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return Keras's check, or a user-defined one, over all replicas."""
        return lambda gradients: ops.logical_not(
            backend.any_over_replicas(ops.logical_not(check(gradients)))
        )

    for optimizer in keras_private.named_optimizers(model.optimizer).values():
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            check = checking_all(optimizer.check_finite)
            shadows.enter_context(keras_private.shadowed(optimizer, "check_finite", check))
    return shadows
