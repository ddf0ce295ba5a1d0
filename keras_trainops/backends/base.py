"""The interface of a backend: everything that differs between TensorFlow, JAX and PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

import keras
from keras import ops

from keras_trainops import keras_private
from keras_trainops.backends.memory import Memory
from keras_trainops.backends.replicas import Replicas
from keras_trainops.backends.types import (
    Assignment,
    Differentiable,
    Gradient,
    GradientChain,
    GroupFunction,
    NumericsCheck,
    OfExample,
    StepFunction,
    T,
)


class Backend(Replicas, Memory):
    """A backend. The default methods assume eager execution on one replica.

    A subclass that trains sets `trains` and defines the methods that raise here.

    Attributes:
        name: Keras's name of the backend.
        trains: Whether the backend can train; every backend that Keras has can restore.
        assigns_in_forward: Whether layers may assign variables permanently during the forward pass.
        shuffles_arrays: Whether `fit` shuffles arrays by the backend's own random numbers instead
            of NumPy's.
        draws_order_at_once: Whether a dataset draws its order as soon as it is iterated over,
            instead of with its first batch.
        needs_a_batch: Whether Keras's trainer fails in an epoch without any batch.
        takes_batches_early: Whether Keras's trainer takes a batch before callbacks are called.
        operations_cost: Whether an operation costs time of its own in every step, so that one on a
            stack of tensors is better than many. On JAX XLA merges many into few, and stacks only
            take it longer to compile.
    """

    name: str
    trains: bool = False
    assigns_in_forward: bool = False
    shuffles_arrays: bool = False
    draws_order_at_once: bool = False
    needs_a_batch: bool = False
    takes_batches_early: bool = False
    operations_cost: bool = True

    def __init__(self, name: str) -> None:
        self.name = name

    # Training

    def require_training(self) -> None:
        """Check that the backend can train.

        Raises:
            NotImplementedError: If it cannot.
        """
        if not self.trains:
            self._refuse()

    def needs_our_step(self, model: Any) -> bool:
        """Return whether `model` needs our training step instead of Keras's on this backend."""
        return False

    def writes_at_once(self, model: Any) -> bool:
        """Return whether a step may assign variables permanently before it ends."""
        return False

    def runs_eagerly(self, model: Any) -> bool:
        """Return whether Python runs the training step for every batch, not once to trace it."""
        return bool(model.run_eagerly)

    def run_step(self, step: StepFunction, model: Any, *args: Any) -> Any:
        """Run a training step with the arguments that Keras's trainer passes.

        Args:
            step: Called with the model and the data; it assigns variables and returns the logs.
            model: The model.
            *args: The data; on JAX the state of training or evaluation, and the data.

        Returns:
            The logs; on JAX the logs and the new state.
        """
        return step(model, *args)

    def with_logs(self, model: Any, result: Any, logs: Callable[[], dict[str, Any]]) -> Any:
        """Add logs to the result of a training step that Keras's trainer called.

        Args:
            model: The model.
            result: The logs; on JAX the logs and the new state.
            logs: Returns the logs to add; it may assign metrics of the model.
        """
        return {**result, **logs()}

    def train_function(
        self, function: Callable[..., Any], model: Any, numerics: NumericsCheck | None
    ) -> Callable[..., Any]:
        """Wrap Keras's train function.

        Args:
            function: The compiled function that `fit` calls for every `steps_per_execution` steps.
            model: The model.
            numerics: Asked after every call; None without `check_numerics`.
        """
        return function

    def logs_of_replicas(self, model: Any, method: str) -> AbstractContextManager[None]:
        """Have the compiled step that is made meanwhile return logs as Keras can reduce them.

        Args:
            model: The model.
            method: The name of the method of the step: "train_step" or "test_step".
        """
        return nullcontext()

    def trace(self, function: Callable[[], None]) -> None:
        """Run a function the way a training step is traced, without any effect on variables."""
        self._refuse()

    def conditionally(
        self,
        predicate: Any,
        then: Callable[..., Any],
        otherwise: Callable[..., Any],
        args: Sequence[Any],
        *,
        changes: Sequence[keras.Variable],
    ) -> None:
        """Run `then(*args)` if `predicate` holds when the step executes, else `otherwise(*args)`.

        Args:
            predicate: A scalar boolean tensor, the same on all replicas.
            then: Assigns variables. Pass per-replica tensors through `args`; do not capture them.
            otherwise: The same.
            args: Tensors or None.
            changes: The variables that either function may assign.
        """
        self._refuse()

    # Gradients

    def differentiate(
        self, function: Differentiable[T], sources: Sequence[Any], *, nested: bool, several: bool
    ) -> tuple[Sequence[Gradient], T]:
        """Differentiate a scalar, or several, by variables and tensors.

        Args:
            function: Takes the values of variables that have others than before, and those sources
                that are tensors, in order. Returns the scalar and auxiliary tensors. It assigns
                variables at most where `assigns_in_forward`.
            sources: The variables and tensors.
            nested: Whether the results are differentiated in turn; otherwise they are constants.
            several: Whether `function` returns a vector of scalars in place of one.

        Returns:
            The gradients, None for sources the scalar does not depend on; of several scalars such
            a sequence for each. And the auxiliary tensors.
        """
        self._refuse()

    def differentiate_each(
        self,
        function: OfExample[T],
        variables: Sequence[keras.Variable],
        batch: Sequence[Any],
    ) -> tuple[Any, Sequence[Gradient], T, Any]:
        """Differentiate the loss of each example of a batch by variables.

        Args:
            function: Takes the values of the variables and the parts of one example, without the
                axis of the batch. Returns the loss, and auxiliary tensors: those of the example,
                and those that are the same for all.
            variables: The variables.
            batch: Tensors, whose first axis is that of the batch.

        Returns:
            The losses, the gradients and the auxiliary tensors of the examples, each with a first
            axis for the examples; and the other auxiliary tensors.
        """
        self._refuse()

    def loop(self, function: GroupFunction[T], carry: T, groups: Any) -> tuple[T, Any]:
        """Call a function for each group in turn, as `jax.lax.scan` does.

        Args:
            function: Takes the carry and a group; returns the next carry, of the same shapes, and
                tensors. It assigns no variables.
            carry: A tree of tensors.
            groups: A tree of tensors, whose first axis is that of the groups.

        Returns:
            The last carry, and the tensors of all groups, each with a first axis for the groups.
        """
        rows = []
        for i in range(keras.tree.flatten(groups)[0].shape[0]):
            carry, row = function(carry, keras.tree.map_structure(lambda t, i=i: t[i], groups))
            rows.append(row)
        return carry, keras.tree.map_structure(lambda *tensors: ops.stack(tensors), *rows)

    def forward(self, model: Any, x: Any, *, training: bool) -> Any:
        """Call the model on a batch as Keras's steps do on this backend.

        Args:
            model: The model.
            x: The inputs.
            training: Whether it is a training step.

        Returns:
            The predictions; the losses that layers added are among the model's `losses`.
        """
        return keras_private.call_model(model, x, training=training)

    def no_gradients(self) -> AbstractContextManager[Any]:
        """Disable gradient recording."""
        return nullcontext()

    def require_collectable(self, assignments: Iterable[Assignment]) -> None:
        """Check that values which layers assigned can be used after the forward pass.

        Raises:
            ValueError: If a layer assigned one inside a loop.
        """

    def prepare_gradients(
        self,
        gradients: Sequence[Gradient],
        variables: Sequence[keras.Variable],
        optimizer: keras.optimizers.Optimizer,
    ) -> list[Gradient]:
        """Make gradients ready for Keras's `optimizer.apply`, which leaves out those that are None.

        Args:
            gradients: The gradients of a batch on this replica, one per variable, or None.
            variables: The variables.
            optimizer: The optimizer.

        Returns:
            The gradients; on all replicas, or on none of them, a variable has one.
        """
        return list(gradients)

    def reduce_and_transform(
        self,
        gradients: Sequence[Gradient],
        variables: Sequence[keras.Variable],
        chain: GradientChain,
    ) -> list[Gradient]:
        """Reduce gradients over replicas, sum duplicate rows, then run the chain of transforms.

        Args:
            gradients: The unscaled gradients on this replica, one per variable, or None.
            variables: The variables.
            chain: The chain of transforms.

        Returns:
            The transformed gradients.
        """
        return list(chain(list(gradients), variables))

    def without_reduction(
        self, optimizer: keras.optimizers.Optimizer
    ) -> AbstractContextManager[None]:
        """Keep `optimizer` from summing gradients over replicas: that has been done."""
        return nullcontext()

    def dense(self, gradient: Gradient) -> Gradient:
        """Return a gradient as one dense tensor of its variable's shape."""
        return gradient

    def elements(self, gradient: Gradient) -> Any:
        """Return the elements of a gradient; of a sparse one, those of its rows."""
        return gradient

    def apply_gradients(
        self, optimizer: Any, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]
    ) -> None:
        """Pass the gradients of one batch to the optimizer.

        Args:
            optimizer: The model's optimizer.
            gradients: The gradients on this replica, still scaled; one per variable, or None.
            variables: The variables.
        """
        optimizer.apply(list(gradients), variables)

    def assign_weights(self, variables: Sequence[keras.Variable], values: Sequence[Any]) -> None:
        """Assign trained variables within the step, the same values on every replica."""
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)

    # The model before and after a step

    def scope_of(self, model: Any) -> AbstractContextManager[Any]:
        """Return the scope in which the model's variables are made, as that of its strategy."""
        return nullcontext()

    def builds_models_itself(self, model: Any) -> bool:
        """Return whether Keras builds a lazy model before callbacks see it."""
        return True

    def data_to_build_from(self, model: Any, iterator: Any, data_batch: Any) -> tuple[Any, Any]:
        """Return the iterator and the batch that Keras builds a model from.

        Args:
            model: The model.
            iterator: Keras's iterator over epochs, or None.
            data_batch: A batch, if there is no iterator.
        """
        return iterator, data_batch

    def build_model(
        self, model: Any, iterator: Any, data_batch: Any, *, required: bool = False
    ) -> str:
        """Build a lazy model before callbacks see it, without taking data from `iterator`.

        Args:
            model: The model.
            iterator: Keras's iterator over epochs, or None.
            data_batch: A batch, if there is no iterator.
            required: If True, it is built even if all layers are, and its error is raised.

        Returns:
            The reason why that failed; empty if the model is built.
        """
        return ""

    def build_metrics(self, model: Any, iterator: Any, data_batch: Any, *, always: bool) -> None:
        """Create the variables of metrics before the first step.

        Args:
            model: A built model.
            iterator: Keras's iterator over epochs, or None.
            data_batch: A batch, if there is no iterator.
            always: Whether to create them if there is only one target, too.
        """

    def write_back_state(self, model: Any) -> None:
        """Write the state of a running `fit` or `evaluate` back to the model permanently."""

    def unshare_values(self, variables: Sequence[keras.Variable]) -> None:
        """Copy values that several variables share."""

    def _refuse(self) -> NoReturn:
        raise NotImplementedError(
            f"Training steps run on TensorFlow, JAX and PyTorch; this is {self.name!r}. Restoring "
            "works on every backend."
        )
