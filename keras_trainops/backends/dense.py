"""What backends share whose gradients are plain tensors, and where no replicas meet in a step."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import keras

from keras_trainops.transforms.base import Chain, Gradient


def with_reduced(
    optimizer: keras.optimizers.Optimizer,
) -> contextlib.AbstractContextManager[None]:
    """Nothing: such an optimizer reduces nothing."""
    return contextlib.nullcontext()


def divisible(
    gradients: Sequence[Gradient], optimizer: keras.optimizers.Optimizer
) -> list[Gradient]:
    """The gradients, all of which can be divided and added up."""
    return list(gradients)


def reduce_and_transform(
    gradients: Sequence[Gradient], variables: Sequence[keras.Variable], chain: Chain
) -> list[Gradient]:
    """Runs the chain."""
    return list(chain(list(gradients), variables))


def runs_eagerly(model: Any) -> bool:
    """Whether Python runs the training step for every batch, and not once to trace it."""
    return bool(model.run_eagerly)


def refuse_processes() -> None:
    """Nothing: a distribution of Keras's has processes train one model."""


def assign_weights(variables: Sequence[keras.Variable], values: Sequence[Any]) -> None:
    """Assigns trained variables within the step."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def elements(gradient: Gradient) -> Any:
    """The gradient's elements: all of it."""
    return gradient


def on_any_replica(flags: Any) -> Any:
    """Which boolean flags are set on any replica: those of this one."""
    return flags


def mean_over_replicas(values: Sequence[Any]) -> Sequence[Any]:
    """The values: what layers assigned was computed from the whole batch."""
    return values


def settle(model: Any) -> None:
    """Nothing: the model holds its state at all times."""


def separate(variables: Sequence[keras.Variable]) -> None:
    """Nothing: what is assigned is copied."""
