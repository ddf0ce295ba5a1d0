"""Private Keras API of an optimizer's step, and of its state per variable.

`tests/test_keras_private.py` tests the behaviour that each use relies on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import keras
from keras.src.utils import tracking


def trained_by(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Return the variables that a built optimizer was built for."""
    return list(optimizer._trainable_variables)


@contextmanager
def replaced(
    optimizer: keras.optimizers.Optimizer, method: str, replacement: Callable[..., Any]
) -> Iterator[None]:
    """Redirect calls of `optimizer.<method>` to `replacement`, on the current thread only.

    The replicas of a strategy are traced in turns, each by its own thread. Outside the context the
    optimizer is unchanged.

    Args:
        optimizer: The optimizer.
        method: Name of the method.
        replacement: Called with the same arguments.
    """
    stand_in = optimizer.__dict__.get(method)
    if stand_in is None:
        stand_in = optimizer.__dict__[method] = _StandIn(getattr(optimizer, method))
    mine = (threading.get_ident(), replacement)
    stand_in.replacements.append(mine)
    try:
        yield
    finally:
        stand_in.replacements.remove(mine)
        if not stand_in.replacements:
            optimizer.__dict__.pop(method, None)


class _StandIn:
    """A method of one object that each thread can replace for itself."""

    def __init__(self, own: Callable[..., Any]) -> None:
        self._own = own
        self.replacements: list[tuple[int, Callable[..., Any]]] = []

    def __call__(self, *args: Any) -> Any:
        this = threading.get_ident()
        mine = [function for thread, function in self.replacements if thread == this]
        return (mine[-1] if mine else self._own)(*args)


def applying(
    optimizer: keras.optimizers.Optimizer, apply_batch: Callable[..., None]
) -> AbstractContextManager[None]:
    """Make `optimizer` call `apply_batch(gradients, variables)` with its unscaled gradients.

    Keras's `apply` still drops variables without gradients and unscales first; it applies
    constraints and counts afterwards.
    """
    return replaced(optimizer, "_backend_apply_gradients", apply_batch)


def batch_count(optimizer: keras.optimizers.Optimizer) -> keras.Variable:
    """Return the count of batches; with accumulation, `iterations` counts weight updates."""
    return optimizer._iterations


def accumulators(
    optimizer: keras.optimizers.Optimizer, variables: Iterable[keras.Variable]
) -> list[keras.Variable]:
    """Return the sums of gradients of an accumulating optimizer, for these of its variables."""
    return [optimizer._accumulated_gradients[optimizer._get_variable_index(v)] for v in variables]


def accumulate(
    optimizer: keras.optimizers.Optimizer, gradients: list[Any], sums: list[keras.Variable]
) -> None:
    """Add the gradients of one batch to the sums.

    Args:
        optimizer: An optimizer that accumulates gradients.
        gradients: The unscaled gradients of the batch.
        sums: The `accumulators` of the same variables.
    """
    optimizer._backend_increment_gradient_accumulators(gradients, sums)


def step(
    optimizer: keras.optimizers.Optimizer, gradients: list[Any], variables: list[keras.Variable]
) -> None:
    """Update the weights as the optimizer does: its own clip, weight decay, the step.

    Args:
        optimizer: A built optimizer.
        gradients: The transformed gradients, one per variable.
        variables: The variables.
    """
    clipped = optimizer._clip_gradients(gradients)
    optimizer._apply_weight_decay(variables)
    optimizer._backend_update_step(clipped, variables, optimizer.learning_rate)


def update_averages(optimizer: keras.optimizers.Optimizer) -> None:
    """Update the averages, as `use_ema` does in every batch."""
    optimizer._update_model_variables_moving_average(optimizer._trainable_variables)


def overwrite_with_averages(optimizer: keras.optimizers.Optimizer) -> None:
    """Overwrite weights with averages, as `ema_overwrite_frequency` does periodically."""
    optimizer._overwrite_model_variables_with_average_value(optimizer._trainable_variables)


class Slot(NamedTuple):
    """A variable that an optimizer keeps for a weight, in one of its attributes."""

    attribute: str
    variable: keras.Variable
    weight: keras.Variable


def slots(optimizer: keras.optimizers.Optimizer) -> list[Slot]:
    """Return the slots of a built optimizer, attribute by attribute."""
    weights = trained_by(optimizer)
    found = []
    for name, value in vars(optimizer).items():
        if (
            name not in ("_variables", "_trainable_variables")
            and isinstance(value, list)
            and len(value) == len(weights)
            and all(slot is None or isinstance(slot, keras.Variable) for slot in value)
        ):
            pairs = zip(value, weights, strict=True)
            found += [Slot(name, slot, weight) for slot, weight in pairs if slot is not None]
    return found


def variable_tracker(variables: list[keras.Variable]) -> Any:
    """Return a tracker that adds each variable assigned to an optimizer's attribute to a list."""
    is_variable = lambda value: isinstance(value, keras.Variable)  # noqa: E731
    return tracking.Tracker({"variables": (is_variable, variables)})


def untracked() -> AbstractContextManager[None]:
    """Keep Keras from tracking attributes that are assigned."""
    return tracking.DotNotTrackScope()
