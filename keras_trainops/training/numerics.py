"""Stop at the first loss or gradient that is not finite, with the last good weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_trainops.backends import backend
from keras_trainops.transforms.base import Gradient, GradientTransform
from keras_trainops.transforms.scope import skip_update_if, updates_before

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
        names = ["loss" for _ in losses] + _names(variables)
        tensors = [*losses, *map(backend().elements, gradients)]
        backend().conditionally(
            self.check(tensors, names, checked, model.optimizer.iterations),
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

    def check(
        self, tensors: Sequence[Any], names: Sequence[str], checked: list[str], step: Any
    ) -> Any:
        """Return whether all values so far are finite, these included; record the first bad one.

        Args:
            tensors: The values on this replica; None counts as finite.
            names: Their names, for the message.
            checked: What this step has checked before; the names are added.
            step: The number of weight updates before this one.
        """
        before = len(checked)
        checked += names
        self._checked = checked
        flags = ops.stack([_not_finite(tensor) for tensor in tensors] or [False])
        bad = backend().any_over_replicas(flags)
        fine_so_far = ops.equal(self._first_bad, _NONE_YET)
        is_first = ops.logical_and(fine_so_far, ops.any(bad))
        for variable, value in (
            (self._first_bad, step),
            (self._culprit, before + ops.argmax(ops.cast(bad, "int32"))),
        ):
            variable.assign(ops.where(is_first, ops.cast(value, "int32"), variable.value))
        return ops.logical_and(fine_so_far, ops.logical_not(ops.any(bad)))

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
            f"before it: {step}). Nothing was updated from there on. Look at that step's "
            "data, lower the learning rate, or clip gradients."
        )


class GradientGuard(GradientTransform):
    """Skips all weight updates from the first gradient on that is not finite.

    It comes before the transforms of the optimizer, if the model has a Keras training step of its
    own.

    Args:
        guard: Records what was not finite.
    """

    row_sparse = True
    is_saved = False

    def __init__(self, guard: NumericsGuard) -> None:
        self._guard = guard
        self.use_as_state(guard.variables, held=False)

    def __call__(
        self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]
    ) -> Sequence[Gradient]:
        step = updates_before("The check of gradients")
        skip_update_if(ops.logical_not(self._guard.check(gradients, _names(variables), [], step)))
        return gradients


def _names(variables: Sequence[keras.Variable]) -> list[str]:
    return [f"gradient of {variable.path!r}" for variable in variables]


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
