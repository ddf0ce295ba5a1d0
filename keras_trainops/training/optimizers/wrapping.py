"""Put a `TransformedOptimizer` into an optimizer, without changing the given one."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainops import keras_private
from keras_trainops.training.optimizers.group import OptimizerGroup, transforms_of
from keras_trainops.training.optimizers.transformed import TransformedOptimizer, transformed_in
from keras_trainops.transforms.base import GradientTransform


def ensure_transformed(optimizer: Any) -> keras.optimizers.Optimizer:
    """Return `optimizer` with a `TransformedOptimizer` inside; add an empty one if it has none.

    An `OptimizerGroup` needs none to keep the state of updates.
    """
    keeps_state = isinstance(optimizer, OptimizerGroup) or transformed_in(optimizer) is not None
    return optimizer if keeps_state else with_transforms(optimizer, [])


def guarded(optimizer: Any, guard: GradientTransform | None) -> Any:
    """Return `optimizer` with a transform before all others that files leave out, or with none.

    Args:
        optimizer: An optimizer, which is not changed.
        guard: The transform; None leaves one out that is there from an earlier call.
    """
    transformed = transformed_in(optimizer)
    before = [] if transformed is None else transformed.chain.transforms
    transforms = [transform for transform in before if transform.is_saved]
    if guard is None and len(transforms) == len(before):
        return optimizer
    return with_transforms(optimizer, [*([] if guard is None else [guard]), *transforms])


def owned_by(optimizer: Any) -> list[Any]:
    """Return the objects that users own: an optimizer, the ones inside it and its transforms."""
    everyone = [] if optimizer is None else keras_private.all_of(optimizer)
    return [*everyone, *transforms_of(optimizer)]


def with_transforms(optimizer: Any, transforms: Any) -> keras.optimizers.Optimizer:
    """Return `optimizer` with `transforms` at the right place inside it.

    The new transforms replace those of a `TransformedOptimizer`; inside a `LossScaleOptimizer` the
    wrapped optimizer is transformed. `optimizer` itself is not changed.

    Raises:
        ValueError: If there is no optimizer.
    """
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        inner = with_transforms(optimizer.inner_optimizer, transforms)
        return keras_private.with_another_inside(optimizer, inner)
    if optimizer is None:
        raise ValueError("`gradient_transforms` need an optimizer. Received: optimizer=None")
    if isinstance(optimizer, TransformedOptimizer):
        optimizer = optimizer.inner_optimizer
    return TransformedOptimizer(optimizer, transforms)
