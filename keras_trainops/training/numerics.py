"""Stop at the first loss or gradient that is not finite, with the last good weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_trainops.backends import backend
from keras_trainops.transforms.base import Gradient

_NONE_YET = -1


class NonFiniteLossError(ArithmeticError):
    """A loss or gradient became NaN or infinite; the weights are those of the last good step."""


class NumericsGuard:
    """Records the first bad step in a variable, because a compiled step cannot raise.

    From that step on, steps change nothing. So the steps that still run before the host checks
    (`steps_per_execution`) cannot spoil the weights.
    """

    def __init__(self) -> None:
        self._first_bad = _counter("first_bad_step")
        self._culprit = _counter("first_bad_tensor")
        self._checked: list[str] = []  # the names of everything that a step checks, in order

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables that a step passes on to the next."""
        return [self._first_bad, self._culprit]

    def guard(
        self,
        model: Any,
        checked: list[str],
        losses: Sequence[Any],
        gradients: Sequence[Gradient],
        variables: Sequence[keras.Variable],
        change_state: Callable[..., None],
        args: Sequence[Any],
    ) -> None:
        """Run `change_state(*args)` unless a value of this or an earlier step is not finite.

        Args:
            model: The model in training.
            checked: What this step has checked before; the names of what it checks now are added.
            losses: The losses, scalars.
            gradients: The gradients to check, or None.
            variables: Their variables.
            change_state: Assigns variables.
            args: Tensors or None, passed to `change_state`.
        """
        here, before = backend(), len(checked)
        checked += ["loss" for _ in losses]
        checked += [f"gradient of {variable.path!r}" for variable in variables]
        self._checked = checked
        flags = [_not_finite(tensor) for tensor in (*losses, *map(here.elements, gradients))]
        bad = here.any_over_replicas(ops.stack(flags)) if flags else ops.zeros((1,), "bool")
        fine_so_far = ops.equal(self._first_bad, _NONE_YET)
        is_first = ops.logical_and(fine_so_far, ops.any(bad))
        for variable, value in (
            (self._first_bad, model.optimizer.iterations),
            (self._culprit, before + ops.argmax(ops.cast(bad, "int32"))),
        ):
            variable.assign(ops.where(is_first, ops.cast(value, "int32"), variable.value))
        here.conditionally(
            ops.logical_and(fine_so_far, ops.logical_not(ops.any(bad))),
            change_state,
            lambda *_: None,
            args,
            changes=[
                *model.trainable_variables,
                *model.non_trainable_variables,
                *model.optimizer.variables,
                *model.metrics_variables,
            ],
        )

    def raise_if_bad(
        self, read: Callable[[keras.Variable], Any], before: Callable[[], None] = lambda: None
    ) -> None:
        """Raise once if a step was bad.

        Args:
            read: Returns a variable's value after the step.
            before: Called first if a step was bad.

        Raises:
            NonFiniteLossError: If a step was bad; it names the weight update that was not made, and
                the loss or the variable whose gradient was not finite.
        """
        step = int(read(self._first_bad))
        if step == _NONE_YET:
            return
        culprit = int(read(self._culprit))
        before()
        self._first_bad.assign(_NONE_YET)
        raise NonFiniteLossError(
            f"The {self._checked[culprit]} became NaN or infinite at step {step} (weight updates "
            f"before it: {step}). The weights are those of the last good step. Look at that step's data, lower the "
            "learning rate, or clip gradients."
        )


def _counter(name: str) -> keras.Variable:
    return keras.Variable(
        _NONE_YET,
        trainable=False,
        dtype="int32",
        aggregation="only_first_replica",
        name=name,
    )


def _not_finite(tensor: Any) -> Any:
    if tensor is None:
        return ops.convert_to_tensor(False)
    return ops.logical_not(ops.all(ops.isfinite(tensor)))
