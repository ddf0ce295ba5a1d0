"""TensorFlow: replicas, sparse gradients, and every private use of Keras that only it needs.

`tests/test_keras_private.py` tests the behaviour that each of those uses relies on.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_trainops import keras_private
from keras_trainops.backends import tensorflow_processes, tensorflow_replicas
from keras_trainops.backends.base import Backend
from keras_trainops.backends.finite import finite_on_all_replicas
from keras_trainops.backends.tensorflow_memory import TensorFlowMemory
from keras_trainops.backends.tensorflow_rows import dense, sum_duplicate_rows, with_values
from keras_trainops.backends.types import (
    Assignment,
    Differentiable,
    Gradient,
    GradientChain,
    GroupFunction,
    NumericsCheck,
    OfExample,
    T,
    split_sources,
)


class TensorFlow(TensorFlowMemory, Backend):
    """TensorFlow, eagerly or compiled, on one device or under a `tf.distribute` strategy."""

    trains = True
    assigns_in_forward = True
    shuffles_arrays = True
    draws_order_at_once = True

    def needs_our_step(self, model: Any) -> bool:
        """Return True with several replicas and non-trainable weights.

        Keras would let the values that layers assign to them differ between replicas.
        """
        several = model.distribute_strategy.num_replicas_in_sync > 1
        return several and bool(model.non_trainable_weights)

    def writes_at_once(self, model: Any) -> bool:
        """Return False where replicas have to agree on what layers assign."""
        return not self.needs_our_step(model)

    def train_function(
        self, function: Callable[..., Any], model: Any, numerics: NumericsCheck | None
    ) -> Callable[..., Any]:
        """Take the batch before the step runs, and raise afterwards if a value is not finite.

        Keras takes the batch inside the compiled step. With data of unknown length, the call that
        finds no more data would still run everything that does not depend on data: one weight
        decay, iteration and seed too many.
        """
        several = model.distribute_strategy.num_replicas_in_sync > 1
        of_batch: Callable[[Any], Any] = function
        spec: Any = None

        @functools.wraps(function)
        def run(iterator: Any) -> Any:
            with finite_on_all_replicas(self, model) if several else contextlib.nullcontext():
                logs = run_step(iterator)
            if numerics is not None:
                numerics.raise_if_bad(lambda v: ops.convert_to_numpy(ops.convert_to_tensor(v)))
            return logs

        def run_step(iterator: Any) -> Any:
            nonlocal of_batch, spec
            takes_all = isinstance(iterator, (tf.data.Iterator, tf.distribute.DistributedIterator))
            if takes_all and model.steps_per_execution == 1:
                now = iterator.element_spec
                if now is not spec:  # in most steps it is: comparing specs takes microseconds
                    if spec is None or now != spec:
                        of_batch = _step_of(now, function, model)
                    spec = now
                return of_batch(next(iterator))
            return function(iterator)

        return run

    def logs_of_replicas(self, model: Any, method: str) -> contextlib.AbstractContextManager[None]:
        if not tensorflow_processes.is_multi_worker(model.distribute_strategy):
            return contextlib.nullcontext()
        step = tensorflow_processes.reducible(getattr(model, method))
        return keras_private.shadowed(model, method, step)

    def trace(self, function: Callable[[], None]) -> None:
        def run() -> None:
            strategy = tf.distribute.get_strategy()
            strategy.run(function) if strategy.num_replicas_in_sync > 1 else function()

        tf.function(run, autograph=False).get_concrete_function()  # as Keras does it

    def conditionally(
        self,
        predicate: Any,
        then: Callable[..., Any],
        otherwise: Callable[..., Any],
        args: Sequence[Any],
        *,
        changes: Sequence[keras.Variable],
    ) -> None:
        replica = tensorflow_replicas.context()
        if replica is None:
            tf.cond(predicate, lambda: _then_zero(then, args), lambda: _then_zero(otherwise, args))
            return

        # Replicas synchronise inside the branches, and TensorFlow rejects that inside a condition
        # of a single replica. So put one condition around all replicas, as LossScaleOptimizer does.
        def run(strategy: tf.distribute.Strategy, predicate: Any, *args: Any) -> None:
            def each(branch: Callable[..., Any]) -> tf.Tensor:
                zeros = strategy.extended.call_for_each_replica(_then_zero, args=(branch, args))
                return strategy.experimental_local_results(zeros)[0]

            first = strategy.experimental_local_results(predicate)[0]
            tf.cond(first, lambda: each(then), lambda: each(otherwise))

        replica.merge_call(run, args=(predicate, *args))

    def differentiate(
        self, function: Differentiable[T], sources: Sequence[Any], *, nested: bool, several: bool
    ) -> tuple[Sequence[Gradient], T]:
        """Differentiate with a tape, which watches a variable itself: its rows stay sparse.

        A variable that has another value in a scope is watched as that tensor.
        """
        watched = [s.value if isinstance(s, keras.Variable) else tf.identity(s) for s in sources]
        _, tensors = split_sources(sources, watched)
        with tf.GradientTape(persistent=several) as tape:
            tape.watch(watched)
            value, rest = function([], tensors)
            scalars = tf.unstack(value) if several else [value]
        rows = [tape.gradient(scalar, watched) for scalar in scalars]
        return rows if several else rows[0], rest

    def differentiate_each(
        self,
        function: OfExample[T],
        variables: Sequence[keras.Variable],
        batch: Sequence[Any],
    ) -> tuple[Any, Sequence[Gradient], T, Any]:
        values = [v.value for v in variables]

        def of_example(example: Any) -> Any:
            copies = [tf.identity(value) for value in values]
            with tf.GradientTape() as tape:
                tape.watch(copies)
                loss, (own, shared) = function(list(zip(variables, copies, strict=True)), example)
            gradients = tape.gradient(
                loss, copies, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
            return loss, [dense(g) for g in gradients], own, shared

        losses, gradients, own, shared = tf.vectorized_map(of_example, list(batch))
        return losses, gradients, own, tf.nest.map_structure(lambda each: each[0], shared)

    def loop(self, function: GroupFunction[T], carry: T, groups: Any) -> tuple[T, Any]:
        if tf.executing_eagerly():
            return super().loop(function, carry, groups)
        at = lambda i: keras.tree.map_structure(lambda t: t[i], groups)  # noqa: E731
        count = tf.shape(keras.tree.flatten(groups)[0])[0]
        specs = keras.tree.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), (carry, at(0)))
        body = tf.function(function, autograph=False).get_concrete_function(*specs)  # once

        def step(i: Any, carry: Any, arrays: Any) -> tuple[Any, Any, Any]:
            carry, row = body(carry, at(i))
            return i + 1, carry, keras.tree.map_structure(lambda a, r: a.write(i, r), arrays, row)

        array = lambda s: tf.TensorArray(s.dtype, count, element_shape=s.shape)  # noqa: E731
        arrays = keras.tree.map_structure(array, body.structured_outputs[1])
        _, carry, arrays = tf.while_loop(lambda i, *_: i < count, step, (0, carry, arrays))
        return carry, keras.tree.map_structure(lambda array: array.stack(), arrays)

    def require_collectable(self, assignments: Iterable[Assignment]) -> None:
        """Raise if a layer assigns inside a `while` loop: the tensor does not exist outside it."""
        graph = tf.compat.v1.get_default_graph()
        inside = [v.path for v, value in assignments if getattr(value, "graph", graph) is not graph]
        if inside:
            raise ValueError(
                f"A layer assigns {', '.join(inside)} inside a loop, such as the time steps of a "
                "recurrent layer. Such an update cannot be collected. Create the layer with "
                "`unroll=True`, or train on one device with `updates=None` and without "
                "`check_numerics`."
            )

    def must_transform(self, optimizer: keras.optimizers.Optimizer) -> bool:
        """Return whether the optimizer accumulates gradients on several replicas.

        Keras's own accumulation cannot: replicas must not synchronise within the condition of one.
        """
        return self.replicas() > 1 and bool(optimizer.gradient_accumulation_steps)

    def prepare_gradients(
        self,
        gradients: Sequence[Gradient],
        variables: Sequence[keras.Variable],
        optimizer: keras.optimizers.Optimizer,
    ) -> list[Gradient]:
        """Make sparse gradients dense if the optimizer divides gradients or adds them up."""
        if optimizer.loss_scale_factor or optimizer.gradient_accumulation_steps:
            return [dense(g) for g in gradients]
        return list(gradients)

    def reduce_and_transform(
        self,
        gradients: Sequence[Gradient],
        variables: Sequence[keras.Variable],
        chain: GradientChain,
    ) -> list[Gradient]:
        """Reduce the gradients, then pass the chain one tensor per variable.

        A sparse gradient is passed as its rows if `chain.row_sparse`, otherwise as a dense one.
        """
        rows = sum_duplicate_rows if chain.row_sparse else dense
        reduced = [rows(g) for g in tensorflow_replicas.sums(gradients)]
        for gradient, variable in zip(reduced, variables, strict=True):
            if isinstance(gradient, tf.Tensor):  # a sparse one that became dense lost its shape
                gradient.set_shape(variable.shape)
        transformed = chain([self.elements(g) for g in reduced], variables)
        return [with_values(old, new) for old, new in zip(reduced, transformed, strict=True)]

    def without_reduction(
        self, optimizer: keras.optimizers.Optimizer
    ) -> contextlib.AbstractContextManager[None]:
        return keras_private.replaced(optimizer, "_all_reduce_sum_gradients", list)

    def dense(self, gradient: Gradient) -> Gradient:
        return dense(gradient)

    def elements(self, gradient: Gradient) -> Any:
        return gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient

    def assign_weights(self, variables: Sequence[keras.Variable], values: Sequence[Any]) -> None:
        def assign(strategy: tf.distribute.Strategy, variables: Any, values: Any) -> None:
            for variable, value in zip(variables, values, strict=True):
                strategy.extended.update(
                    variable, lambda v, new: v.assign(new), args=(value,), group=False
                )

        if variables:
            tf.__internal__.distribute.interim.maybe_merge_call(
                assign, tf.distribute.get_strategy(), [v.value for v in variables], list(values)
            )

    def replicas(self) -> int:
        return tf.distribute.get_strategy().num_replicas_in_sync

    def any_over_replicas(self, flags: Any) -> Any:
        return tensorflow_replicas.any_of(flags)

    def mean_over_replicas(self, values: Sequence[Any]) -> Sequence[Any]:
        return tensorflow_replicas.means(values)

    def parts_of(self, variable: keras.Variable) -> list[Any]:
        parts = getattr(variable.value, "values", None)
        return list(parts) if isinstance(parts, tuple) else [variable]

    def require_supported_engine(self, model: Any) -> None:
        tensorflow_processes.require_supported(_strategy_of(model))

    def require_same_strategy(self, model: Any, variables: Sequence[keras.Variable]) -> None:
        tensorflow_replicas.require_created_under(_strategy_of(model), variables)

    def divides(self, dataset: Any, model: Any) -> bool:
        policy = dataset.options().experimental_distribute.auto_shard_policy
        return policy != tf.data.experimental.AutoShardPolicy.OFF

    def place_among_processes(self, model: Any) -> tuple[int, int]:
        return tensorflow_processes.place(_strategy_of(model))

    def gather(self, frame: np.ndarray, model: Any) -> np.ndarray:
        return tensorflow_processes.gather(frame, _strategy_of(model))

    def broadcast(self, frame: np.ndarray, model: Any) -> np.ndarray:
        return tensorflow_processes.broadcast(frame, _strategy_of(model))

    def scope_of(self, model: Any) -> contextlib.AbstractContextManager[Any]:
        if model._distribute_strategy is None:
            return contextlib.nullcontext()
        return model.distribute_strategy.scope()

    def builds_models_itself(self, model: Any) -> bool:
        """Under a strategy Keras builds the model early; otherwise the first traced step does."""
        return model._distribute_strategy is not None

    def data_to_build_from(self, model: Any, iterator: Any, data_batch: Any) -> tuple[Any, Any]:
        """Give Keras the shapes of a batch of this worker: it cannot take a batch of several."""
        if iterator is None or not tensorflow_processes.is_multi_worker(model.distribute_strategy):
            return iterator, data_batch
        return None, _batch_spec(iterator)

    def build_model(
        self, model: Any, iterator: Any, data_batch: Any, *, required: bool = False
    ) -> str:
        """Build the model from the shapes of a batch, so that a warm start finds its variables.

        A model that cannot be built from shapes alone is built in the first step, as in Keras.
        """
        if all(layer.built for layer in model._flatten_layers()) and not required:
            return ""
        try:
            batch = data_batch if iterator is None else _batch_spec(iterator)
            with self.scope_of(model):
                model._symbolic_build(data_batch=batch)
        except Exception as error:  # the first step raises it again, if it is an error there too
            if required:
                raise
            return str(error)
        return ""

    def build_metrics(self, model: Any, iterator: Any, data_batch: Any, *, always: bool) -> None:
        batch = data_batch if iterator is None else _batch_spec(iterator)
        if always or keras.tree.is_nested(keras.utils.unpack_x_y_sample_weight(batch)[1]):
            with self.scope_of(model):
                keras_private.build_metrics(model, batch)


def _strategy_of(model: Any) -> tf.distribute.Strategy:
    return getattr(model, "distribute_strategy", None) or tf.distribute.get_strategy()


def _step_of(spec: Any, function: Callable[..., Any], model: Any) -> Callable[[Any], Any]:
    """Return the train function for batches of these shapes.

    The batch dimension stays unknown, as in Keras. With a fixed size, a smaller last batch would be
    traced again, and the graph would differ from plain Keras's, which changes the last bits of its
    sums.

    Args:
        spec: The shapes and dtypes of a batch.
        function: Keras's train function, which takes an iterator.
        model: The model.
    """
    if model.run_eagerly or model.train_ops.why_unbuilt:
        return lambda batch: function((batch,))
    return tf.function(lambda batch: function((batch,)), input_signature=[spec], autograph=False)


def _batch_spec(iterator: Any) -> Any:
    """Return the shapes and dtypes of one batch on one replica."""
    spec = iterator._distributed_dataset.element_spec

    def local(leaf: Any) -> Any:
        return leaf._value_specs[0] if hasattr(leaf, "_value_specs") else leaf

    return keras.tree.map_structure(local, spec)


def _then_zero(branch: Callable[..., Any], args: Sequence[Any]) -> tf.Tensor:
    branch(*args)
    return tf.constant(0)
