"""JAX, and every private use of Keras that only it needs."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import keras
import numpy as np

from keras_trainops import keras_private
from keras_trainops.backends import jax_memory, jax_parts, jax_processes, jax_scan
from keras_trainops.backends.base import Backend
from keras_trainops.backends.memory import Index
from keras_trainops.backends.types import (
    Differentiable,
    Gradient,
    GroupFunction,
    NumericsCheck,
    OfExample,
    StepFunction,
    T,
    split_sources,
)


class Jax(Backend):
    """JAX: a step is a pure function of the training state, which Keras's trainer passes along."""

    trains = True
    needs_a_batch = True
    operations_cost = False
    processes_share_arrays = True
    frame_bytes = 256  # process 0 sends those of all to each

    def needs_our_step(self, model: Any) -> bool:
        """Return True if the model has monitors.

        They keep norms in optimizer variables, which Keras's step hides from metrics.
        """
        return bool(model.train_ops.norms.monitors)

    def run_step(self, step: StepFunction, model: Any, *args: Any) -> Any:
        """Run a stateless step: the values that it assigns become the state that it returns."""
        state, data = args
        groups = _groups(model) if len(state) == _TRAINING_GROUPS else _groups_to_evaluate(model)
        with keras.StatelessScope(_mapping(groups, state)) as scope:
            logs = step(model, data)
        return logs, tuple([scope.get_current_value(v) for v in group] for group in groups)

    def with_logs(self, model: Any, result: Any, logs: Callable[[], dict[str, Any]]) -> Any:
        """Add logs, and what they assign to the state."""
        own, state = result
        new, state = self.run_step(lambda *_: logs(), model, state, None)
        return {**own, **new}, state

    def train_function(
        self, function: Callable[..., Any], model: Any, numerics: NumericsCheck | None
    ) -> Callable[..., Any]:
        """Run the steps of an execution in one call, and raise if a value is not finite.

        `fit` sets the state as an attribute after every step, and Keras looks through the lists of
        an attribute for variables: a third of a step of a small model. So the lists are hidden.
        """
        steps = jax_scan.in_one_call(function, model)

        @functools.wraps(function)
        def run(given: Any, iterator: Any) -> Any:
            parts = [p.values if isinstance(p, _Untracked) else p for p in given]
            logs, state = steps(tuple(parts), iterator)
            if numerics is not None:
                check(numerics, state)
            return logs, tuple(map(_Untracked, state))

        def check(numerics: NumericsCheck, state: Any) -> None:
            values = {id(v): value for v, value in _mapping(_groups(model), state)}

            def give_state_to_model() -> None:
                names = ("trainable", "non_trainable", "optimizer", "metrics")
                model._jax_state = {
                    f"{name}_variables": values for name, values in zip(names, state, strict=True)
                }
                model._jax_state_synced = False
                model.jax_state_sync()

            numerics.raise_if_bad(lambda v: values[id(v)], give_state_to_model)

        return run

    def trace(self, function: Callable[[], None]) -> None:
        """Run the function on shapes alone."""
        jax.eval_shape(function)

    def conditionally(
        self,
        predicate: Any,
        then: Callable[..., Any],
        otherwise: Callable[..., Any],
        args: Sequence[Any],
        *,
        changes: Sequence[keras.Variable],
    ) -> None:
        """Run both functions, and select the values of `changes`.

        A traced step cannot assign variables under a condition, and XLA merges the selection into
        the arithmetic.
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

    def differentiate(
        self, function: Differentiable[T], sources: Sequence[Any], *, nested: bool, several: bool
    ) -> tuple[Sequence[Gradient], T]:
        def of_values(values: Any) -> tuple[Any, T]:
            return function(*split_sources(sources, values))

        values = [s.value if isinstance(s, keras.Variable) else s for s in sources]
        if several:
            vector, backwards, rest = jax.vjp(of_values, values, has_aux=True)
            rows = jax.numpy.eye(vector.shape[0], dtype=vector.dtype)
            return [backwards(row)[0] for row in rows], rest
        (_, rest), gradients = jax.value_and_grad(of_values, has_aux=True)(values)
        return gradients, rest

    def differentiate_each(
        self,
        function: OfExample[T],
        variables: Sequence[keras.Variable],
        batch: Sequence[Any],
    ) -> tuple[Any, Sequence[Gradient], T, Any]:
        def of_values(values: Any, example: Any) -> Any:
            return function(list(zip(variables, values, strict=True)), example)

        def of_example(example: Any) -> Any:
            values = [v.value for v in variables]
            (loss, (own, shared)), gradients = jax.value_and_grad(of_values, has_aux=True)(
                values, example
            )
            return loss, gradients, own, shared

        return jax.vmap(of_example, out_axes=(0, 0, 0, None))(list(batch))

    def loop(self, function: GroupFunction[T], carry: T, groups: Any) -> tuple[T, Any]:
        return jax.lax.scan(function, carry, groups)

    def forward(self, model: Any, x: Any, *, training: bool) -> Any:
        """Call the model statelessly, which clears a layer's losses each time the layer is called.

        Values that a layer assigns to a trainable weight are lost. Both are as in Keras on JAX.
        """
        if not model.built:  # a probe builds it
            return super().forward(model, x, training=training)
        others = model.non_trainable_variables
        before = [v.value for v in others]
        options = {"training": training} if model._call_has_training_arg else {}
        y_pred, after, losses = model.stateless_call(
            [v.value for v in model.trainable_variables], before, x, return_losses=True, **options
        )
        for variable, old, new in zip(others, before, after, strict=True):
            if new is not old:
                keras_private.assign(keras_private.Assigned(variable, new, by_layer=True))
        model._losses_override = losses
        return y_pred

    def apply_gradients(
        self, optimizer: Any, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]
    ) -> None:
        """Apply statelessly: the conditions of a stateful optimizer must not assign anything."""
        state = optimizer.variables
        new_weights, new_state = optimizer.stateless_apply(
            [v.value for v in state], list(gradients), [v.value for v in variables]
        )
        for variable, value in zip([*variables, *state], [*new_weights, *new_state], strict=True):
            variable.assign(value)

    def require_distribution(self) -> None:
        if keras.distribution.distribution() is None:
            raise ValueError(
                f"`jax.distributed` runs {jax.process_count()} processes, but no distribution is "
                "set, so each would train a model of its own. Before the model is made, call "
                "`keras.distribution.set_distribution(keras.distribution.DataParallel())`."
            )

    def divides(self, dataset: Any, model: Any) -> bool:
        distribution: Any = keras.distribution.distribution()
        return distribution is not None and distribution.auto_shard_dataset

    def samples_of_all(self, count: int) -> int:
        return jax_memory.samples_of_all(count)

    def place_among_processes(self, model: Any) -> tuple[int, int]:
        return jax.process_index(), jax.process_count()

    def gather(self, frame: np.ndarray, model: Any) -> np.ndarray:
        return jax_processes.gather(frame)

    def broadcast(self, frame: np.ndarray, model: Any) -> np.ndarray:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.broadcast_one_to_all(frame))

    def write_back_state(self, model: Any) -> None:
        """Write the state back now.

        After a failed evaluation Keras would write it later, over newer values.
        """
        model.jax_state_sync()
        model._jax_state = None

    def unshare_values(self, variables: Sequence[keras.Variable]) -> None:
        """Copy an array that two variables share, because a step donates the arrays of both."""
        seen: set[int] = set()
        for variable in variables:
            if id(variable.value) in seen:
                variable.assign(jax.numpy.copy(variable.value))
            seen.add(id(variable.value))

    def on_host(self, tensor: Any) -> np.ndarray:
        return jax_memory.on_host(tensor)

    def is_whole(self, tensor: Any) -> bool:
        return jax_memory.is_whole(tensor)

    def gathered(self, tensor: Any) -> np.ndarray:
        return jax_memory.gathered(tensor)

    def of_this_process(
        self, variables: Sequence[keras.Variable]
    ) -> Sequence[tuple[keras.Variable, Any]] | None:
        return jax_memory.of_this_process(variables)

    def distributed(self, batch: Any) -> Any:
        return jax_memory.distributed(batch)

    def kept(self, variable: Any) -> Any:
        """Return an array; of a value that several processes share, `Shards`.

        JAX would compare an array that is assigned to them over all processes.
        """
        value = variable.value
        return np.array(value) if value.is_fully_addressable else jax_memory.Shards.of(value)

    def assignable(self, kept: Any) -> Any:
        return kept.tensor() if isinstance(kept, jax_memory.Shards) else kept

    def parts_here(self, variable: keras.Variable) -> list[Index] | None:
        return jax_parts.parts_here(variable.value)

    def from_parts(self, variable: keras.Variable, parts: Sequence[np.ndarray]) -> Any:
        return jax_parts.from_parts(variable.value.shape, variable.value.sharding, parts)

    def is_in_host_memory(self, variable: keras.Variable) -> bool:
        return all(device.platform == "cpu" for device in variable.value.devices())

    def snapshot(self, variable: keras.Variable) -> Any:
        return variable.value  # which is immutable

    def host_part(self, variable: Any, index: Index) -> np.ndarray:
        value = variable.value if isinstance(variable, keras.Variable) else variable
        return jax_parts.host_part(value, index)


class _Untracked:
    """The values of one part of the training state, which Keras does not look through.

    Attributes:
        values: The arrays.
    """

    def __init__(self, values: Sequence[Any]) -> None:
        self.values = values

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)

    def __len__(self) -> int:
        return len(self.values)


_TRAINING_GROUPS = 4  # of the parts of Keras's training state; evaluation has no optimizer's


def _groups(model: Any) -> tuple[list[keras.Variable], ...]:
    """Return the variables in the four parts of Keras's training state."""
    return (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )


def _groups_to_evaluate(model: Any) -> tuple[list[keras.Variable], ...]:
    """Return the variables in the three parts of Keras's state of an evaluation."""
    return (model.trainable_variables, model.non_trainable_variables, model.metrics_variables)


def _mapping(groups: Sequence[Any], values: Sequence[Any]) -> list[tuple[keras.Variable, Any]]:
    variables = itertools.chain.from_iterable(groups)
    return list(zip(variables, itertools.chain.from_iterable(values), strict=True))
