"""The replicas of a `tf.distribute` strategy: reductions within a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_trainops.backends.types import Gradient


def context() -> Any:
    """Return TensorFlow's replica context; None outside of one, and with a single replica."""
    replica = tf.distribute.get_replica_context()
    return None if replica is None or replica.num_replicas_in_sync == 1 else replica


def require_created_under(
    strategy: tf.distribute.Strategy, variables: Sequence[keras.Variable]
) -> None:
    """Raise a `ValueError` if a variable was created in the scope of another strategy, or none."""
    for variable in variables:
        value = variable.value
        created = strategy.extended.variable_created_in_scope
        if isinstance(value, tf.Variable) and not created(value):
            raise ValueError(
                f"{variable.path!r} was not created in the scope of the model's strategy, "
                f"{type(strategy).__name__}. Create the model and its optimizer in the same "
                "`with strategy.scope():`."
            )


def sums(gradients: Sequence[Gradient]) -> Sequence[Gradient]:
    """Return the sums of gradients over replicas; None stays None."""
    replica = context()
    present = [g for g in gradients if g is not None]
    if replica is None or not present:
        return gradients
    summed = iter(replica.all_reduce(tf.distribute.ReduceOp.SUM, present))
    return [None if g is None else next(summed) for g in gradients]


def means(values: Sequence[Any]) -> Sequence[Any]:
    """Return the means of the values that layers assigned, the same on all replicas.

    Plain Keras lets each replica keep its own batch-norm statistics, and saves those of the first.
    Integers are counters or seeds, which are the same on all replicas anyway.
    """
    replica = context()
    floats = [value for value in values if value.dtype.is_floating]
    if replica is None or not floats:
        return values
    averaged = iter(replica.all_reduce(tf.distribute.ReduceOp.MEAN, floats))
    return [next(averaged) if value.dtype.is_floating else value for value in values]


def any_of(flags: Any) -> Any:
    """Return which flags are set on any replica."""
    replica = context()
    if replica is None:
        return flags
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, tf.cast(flags, tf.float32)) > 0.5
