"""Stopping at a loss that is not finite, with the weights of the last good step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_trainops.training.steps import backend_steps

_NONE_YET = -1


class NonFiniteLossError(ArithmeticError):
    """The loss became NaN or infinite; the weights are those of the last good step."""


class NumericsGuard:
    """Holds the first bad step in a variable: inside a compiled step nothing can be raised.

    From that step on no step changes anything, so that the steps that run before the host looks
    (`steps_per_execution`) cannot spoil the weights.
    """

    def __init__(self) -> None:
        self._first_bad = keras.Variable(
            _NONE_YET,
            trainable=False,
            dtype="int32",
            aggregation="only_first_replica",
            name="first_bad_step",
        )

    def guard(self, loss: Any, iterations: Any, change_state: Callable[[], None]) -> None:
        """Runs `change_state` unless this loss, or one before it, is not finite."""
        fine_so_far = ops.equal(self._first_bad, _NONE_YET)
        finite = ops.isfinite(loss)
        step = ops.cast(iterations, "int32")
        is_first = ops.logical_and(fine_so_far, ops.logical_not(finite))
        self._first_bad.assign(ops.where(is_first, step, self._first_bad))
        backend_steps().conditionally(ops.logical_and(fine_so_far, finite), change_state)

    def raise_if_bad(self) -> None:
        """Raises where a step was bad, once.

        Raises:
            NonFiniteLossError: It names the weight update that was not made.
        """
        step = int(ops.convert_to_numpy(ops.convert_to_tensor(self._first_bad)))
        if step == _NONE_YET:
            return
        self._first_bad.assign(_NONE_YET)
        raise NonFiniteLossError(
            f"The loss became NaN or infinite at step {step} (weight updates before it: {step}). "
            "The weights are those of the last good step. Look at that step's data, lower the "
            "learning rate, or clip gradients."
        )
