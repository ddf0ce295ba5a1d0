"""Private Keras API of one step of an optimizer, and of what it keeps per variable.

`tests/test_keras_private.py` holds each use to the behaviour relied on here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import keras
from keras.src.utils import tracking


def trained_by(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """The variables that a built optimizer was built for."""
    return list(optimizer._trainable_variables)


@contextmanager
def replaced(
    optimizer: keras.optimizers.Optimizer, method: str, replacement: Callable[..., Any]
) -> Iterator[None]:
    """Within it, and on this thread, calls of an optimizer's method reach `replacement`.

    On the thread: the replicas of a strategy are traced in turns, each by a thread of its own.
    Outside of it the optimizer is as Keras made it, whoever uses it.
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
    """A method of one object, which threads have replaced for themselves for a while."""

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
    """Has `apply_batch(gradients, variables)` do what `optimizer` does with unscaled gradients.

    What is left to Keras's `apply` before it: to drop variables without a gradient, and unscaling;
    and after it: constraints, and counting.
    """
    return replaced(optimizer, "_backend_apply_gradients", apply_batch)


def batch_count(optimizer: keras.optimizers.Optimizer) -> keras.Variable:
    """The count of batches; with accumulation `iterations`, of weight updates, is a part of it."""
    return optimizer._iterations


def accumulators(
    optimizer: keras.optimizers.Optimizer, variables: Iterable[keras.Variable]
) -> list[keras.Variable]:
    """The sums of gradients of an optimizer that accumulates, for these of its variables."""
    return [optimizer._accumulated_gradients[optimizer._get_variable_index(v)] for v in variables]


def gradient_sums(optimizer: Any) -> list[keras.Variable]:
    """The sums of gradients that an optimizer, or one inside it, adds up over batches."""
    inside = [getattr(optimizer, "inner_optimizer", None), *getattr(optimizer, "optimizers", ())]
    sums = list(getattr(optimizer, "_accumulated_gradients", ()))
    return [*sums, *(v for part in inside if part is not None for v in gradient_sums(part))]


def accumulate(
    optimizer: keras.optimizers.Optimizer, gradients: list[Any], sums: list[keras.Variable]
) -> None:
    """Adds one batch's gradients to the sums."""
    optimizer._backend_increment_gradient_accumulators(gradients, sums)


def step(
    optimizer: keras.optimizers.Optimizer, gradients: list[Any], variables: list[keras.Variable]
) -> None:
    """One weight update as the optimizer makes it: its own clip, weight decay, the step."""
    clipped = optimizer._clip_gradients(gradients)
    optimizer._apply_weight_decay(variables)
    optimizer._backend_update_step(clipped, variables, optimizer.learning_rate)


def update_averages(optimizer: keras.optimizers.Optimizer) -> None:
    """What `use_ema` does in every batch."""
    optimizer._update_model_variables_moving_average(optimizer._trainable_variables)


def overwrite_with_averages(optimizer: keras.optimizers.Optimizer) -> None:
    """What `ema_overwrite_frequency` does every so many weight updates."""
    optimizer._overwrite_model_variables_with_average_value(optimizer._trainable_variables)


def slot_lists(optimizer: keras.optimizers.Optimizer) -> dict[str, list[Any]]:
    """What a built optimizer keeps per variable, by the name of the attribute."""
    count = len(trained_by(optimizer))
    return {
        name: list(value)
        for name, value in vars(optimizer).items()
        if name not in ("_variables", "_trainable_variables")
        and isinstance(value, list)
        and len(value) == count
        and all(slot is None or isinstance(slot, keras.Variable) for slot in value)
        and any(slot is not None for slot in value)
    }


def variable_tracker(variables: list[keras.Variable]) -> Any:
    """What adds to the list each variable that becomes an attribute of an optimizer."""
    is_variable = lambda value: isinstance(value, keras.Variable)  # noqa: E731
    return tracking.Tracker({"variables": (is_variable, variables)})


def untracked() -> AbstractContextManager[None]:
    """Within it Keras does not track what becomes an attribute."""
    return tracking.DotNotTrackScope()
