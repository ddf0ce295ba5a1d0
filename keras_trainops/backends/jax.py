"""The training step on JAX, and every use of Keras's private API that it needs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import keras
import numpy as np

from keras_trainops import keras_private
from keras_trainops.backends.dense import (
    assign_weights,
    divisible,
    elements,
    mean_over_replicas,
    on_any_replica,
    reduce_and_transform,
    refuse_processes,
    runs_eagerly,
    with_reduced,
)
from keras_trainops.training.step import Batch, Outcome, finish

if TYPE_CHECKING:
    from keras_trainops.training.numerics import NumericsGuard

__all__ = [
    "apply_gradients",
    "assign_weights",
    "conditionally",
    "divisible",
    "elements",
    "host_view",
    "mean_over_replicas",
    "needs_own_step",
    "on_any_replica",
    "reduce_and_transform",
    "refuse_processes",
    "runs_eagerly",
    "separate",
    "settle",
    "trace",
    "train_function",
    "train_step",
    "with_reduced",
]


def needs_own_step(model: Any) -> bool:
    """Keras's step hides the optimizer's variables from metrics, where monitors keep norms."""
    return bool(model.train_ops.monitors)


def train_step(model: Any, state: Any, data: Any) -> tuple[dict[str, Any], Any]:
    """One stateless step: what it assigns is the state that it returns."""
    groups = _groups(model)
    batch = Batch(*keras.utils.unpack_x_y_sample_weight(data))
    collected: list[bool] = []

    def passes(trainable: Any, non_trainable: Any, metrics: Any) -> Any:
        scaled, (loss, y_pred, new, metrics) = model.compute_loss_and_updates(
            trainable, non_trainable, metrics, *batch, training=True, optimizer_variables=state[2]
        )
        collected[:] = [
            after is not before for after, before in zip(new, non_trainable, strict=True)
        ]
        return scaled, (loss, y_pred, new, metrics)

    keras_private.forget_losses(model)  # run eagerly, each step has new ones
    differentiate = jax.value_and_grad(passes, has_aux=True)
    (_, (loss, y_pred, new, metrics)), gradients = differentiate(state[0], state[1], state[3])
    assigned = [
        (v, value) for v, value, is_new in zip(groups[1], new, collected, strict=True) if is_new
    ]
    with keras.StatelessScope(_mapping(groups, (state[0], state[1], state[2], metrics))) as scope:
        logs = finish(model, batch, Outcome(y_pred, loss, gradients, assigned))
    return logs, tuple([scope.get_current_value(v) for v in group] for group in groups)


def _groups(model: Any) -> tuple[list[keras.Variable], ...]:
    """The variables in the four parts of Keras's training state."""
    return (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )


def _mapping(groups: Sequence[Any], values: Sequence[Any]) -> list[tuple[keras.Variable, Any]]:
    return [
        pair
        for variables, tensors in zip(groups, values, strict=True)
        for pair in zip(variables, tensors, strict=True)
    ]


def apply_gradients(
    optimizer: Any, gradients: Sequence[Any], variables: Sequence[keras.Variable]
) -> None:
    """One batch's gradients through the optimizer, whose conditions must not assign anything."""
    state = optimizer.variables
    new_weights, new_state = optimizer.stateless_apply(
        [v.value for v in state], list(gradients), [v.value for v in variables]
    )
    for variable, value in zip([*variables, *state], [*new_weights, *new_state], strict=True):
        variable.assign(value)


def conditionally(
    predicate: Any,
    then: Callable[..., Any],
    otherwise: Callable[..., Any],
    args: Sequence[Any],
    *,
    changes: Sequence[keras.Variable],
) -> None:
    """Gives `changes` the values they have after `then(*args)` where `predicate` holds.

    And else those after `otherwise(*args)`. Both run: within a traced step nothing can be assigned
    under a condition, and XLA merges the selection into the arithmetic.
    """
    variables = list({id(v): v for v in changes}.values())
    before = [v.value for v in variables]
    then(*args)
    after_then = [v.value for v in variables]
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)
    otherwise(*args)
    for variable, value in zip(variables, after_then, strict=True):
        if value is not variable.value:
            variable.assign(jax.numpy.where(predicate, value, variable.value))


def trace(function: Callable[[], None]) -> None:
    """Runs a function on shapes alone, as tracing the step would."""
    jax.eval_shape(function)


def separate(variables: Sequence[keras.Variable]) -> None:
    """Gives each variable a value of its own.

    One that was assigned another variable shares its value, and a step that is given both fails.
    """
    seen: set[int] = set()
    for variable in variables:
        if id(variable.value) in seen:
            variable.assign(jax.numpy.copy(variable.value))
        seen.add(id(variable.value))


def settle(model: Any) -> None:
    """Writes the state of the running `fit` or `evaluate` to the model, for good.

    Where an evaluation fails, Keras does so later, over what was assigned meanwhile.
    """
    model.jax_state_sync()
    model._jax_state = None


def train_function(
    function: Callable[..., Any], model: Any, numerics: NumericsGuard | None
) -> Callable[..., Any]:
    """Keras's train function, which raises where the step found something that is not finite."""
    if numerics is None:
        return function

    @functools.wraps(function)
    def checked(state: Any, iterator: Any) -> Any:
        logs, state = function(state, iterator)
        values = {id(v): value for v, value in _mapping(_groups(model), state)}

        def give_state_to_model() -> None:
            names = ("trainable", "non_trainable", "optimizer", "metrics")
            model._jax_state = {
                f"{name}_variables": values for name, values in zip(names, state, strict=True)
            }
            model._jax_state_synced = False
            model.jax_state_sync()

        numerics.raise_if_bad(lambda v: values[id(v)], give_state_to_model)
        return logs, state

    return checked


def host_view(variable: keras.Variable) -> np.ndarray:
    """A variable's value on the host, good until it is assigned: without a copy where possible."""
    return np.asarray(variable.value)
