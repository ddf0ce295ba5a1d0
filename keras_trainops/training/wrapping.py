"""Where in an optimizer the engine stands. The optimizer that is given stays as it is."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainops import keras_private
from keras_trainops.training.optimizer import TransformedOptimizer, engine_of


def with_engine(optimizer: Any) -> keras.optimizers.Optimizer:
    """`optimizer` with a `TransformedOptimizer` in it: one that transforms nothing, if need be."""
    return optimizer if engine_of(optimizer) is not None else with_transforms(optimizer, [])


def owned_by(optimizer: Any) -> list[Any]:
    """An optimizer, those inside it and its transforms: what belongs to whoever made them."""
    if optimizer is None:
        return []
    engine = engine_of(optimizer)
    return [*keras_private.all_of(optimizer), *(engine.chain.walk() if engine is not None else ())]


def with_transforms(optimizer: Any, transforms: Any) -> keras.optimizers.Optimizer:
    """`optimizer` with `transforms` in it, where the chain belongs.

    A `TransformedOptimizer` gets the new transforms in place of its own; inside a
    `LossScaleOptimizer` the optimizer that it wraps is transformed. `optimizer` stays as it is.
    """
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        inner = with_transforms(optimizer.inner_optimizer, transforms)
        return keras_private.with_another_inside(optimizer, inner)
    if optimizer is None:
        raise ValueError("`gradient_transforms` need an optimizer. Received: optimizer=None")
    if isinstance(optimizer, TransformedOptimizer):
        optimizer = optimizer.inner_optimizer
    return TransformedOptimizer(optimizer, transforms)
