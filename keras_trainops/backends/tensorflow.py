"""The training step on TensorFlow, and every use of Keras's private API that it needs.

`tests/test_keras_private.py` holds each of those uses to the behaviour relied on here.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_trainops import keras_private
from keras_trainops.training.step import Batch, Outcome, finish
from keras_trainops.transforms.base import Chain, Gradient
from keras_trainops.updates.layer_updates import LayerUpdateScope

if TYPE_CHECKING:
    from keras_trainops.training.numerics import NumericsGuard


def with_reduced(
    optimizer: keras.optimizers.Optimizer,
) -> contextlib.AbstractContextManager[None]:
    """Within it `optimizer` takes gradients as reduced: `reduce_and_transform` did it."""
    return keras_private.replaced(optimizer, "_all_reduce_sum_gradients", list)


def divisible(
    gradients: Sequence[Gradient], optimizer: keras.optimizers.Optimizer
) -> list[Gradient]:
    """Gradients as `optimizer` can handle them: it cannot divide or add up sparse ones."""
    if optimizer.loss_scale_factor or optimizer.gradient_accumulation_steps:
        return [_dense(g) for g in gradients]
    return list(gradients)


def reduce_and_transform(
    gradients: Sequence[Gradient], variables: Sequence[keras.Variable], chain: Chain
) -> list[Gradient]:
    """Sums gradients over replicas and over duplicate rows, then runs the chain.

    The chain gets one tensor per variable, of a sparse gradient its rows where it can use them.
    """
    rows = _sum_duplicate_rows if chain.row_sparse else _dense
    reduced = [rows(g) for g in _sum_over_replicas(gradients)]
    for gradient, variable in zip(reduced, variables, strict=True):
        if isinstance(gradient, tf.Tensor):  # a sparse one that became dense lost its shape
            gradient.set_shape(variable.shape)
    transformed = chain([_values(g) for g in reduced], variables)
    return [_with_values(old, new) for old, new in zip(reduced, transformed, strict=True)]


def _sum_over_replicas(gradients: Sequence[Gradient]) -> Sequence[Gradient]:
    replica = tf.distribute.get_replica_context()
    present = [g for g in gradients if g is not None]
    if replica is None or replica.num_replicas_in_sync == 1 or not present:
        return gradients
    summed = iter(replica.all_reduce(tf.distribute.ReduceOp.SUM, present))
    return [None if g is None else next(summed) for g in gradients]


def _dense(gradient: Gradient) -> Gradient:
    return tf.convert_to_tensor(gradient) if isinstance(gradient, tf.IndexedSlices) else gradient


def _values(gradient: Gradient) -> Gradient:
    return gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient


def _with_values(gradient: Gradient, values: Gradient) -> Gradient:
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    return values


def _sum_duplicate_rows(gradient: Gradient) -> Gradient:
    """A sparse gradient with each row's sum once, in as many rows as before.

    What is left over are rows of zeros, at an index that occurs: they add nothing to norms or to
    updates. So all shapes stay static, which XLA needs and `tf.unique` cannot give.
    """
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    order = tf.argsort(gradient.indices)
    indices = tf.gather(gradient.indices, order)
    is_new = tf.concat([[0], tf.cast(indices[1:] != indices[:-1], tf.int32)], axis=0)
    segment = tf.cumsum(is_new[: tf.size(indices)])
    count = tf.size(indices)
    summed = tf.math.unsorted_segment_sum(tf.gather(gradient.values, order), segment, count)
    rows = tf.math.unsorted_segment_max(indices, segment, count)
    rows = tf.where(tf.range(count) <= segment[-1], rows, indices[0])
    return tf.IndexedSlices(summed, rows, gradient.dense_shape)


def runs_eagerly(model: Any) -> bool:
    """Whether Python runs the training step for every batch, and not once to trace it."""
    return bool(model.run_eagerly)


def refuse_processes() -> None:
    """Nothing: a strategy has processes train one model."""


def needs_own_step(model: Any) -> bool:
    """Keras lets what layers assign differ from replica to replica."""
    several = model.distribute_strategy.num_replicas_in_sync > 1
    return several and bool(model.non_trainable_weights)


def train_step(model: Any, data: Any) -> dict[str, Any]:
    """One step with an update policy or a numeric check; Keras's own step serves the rest."""
    batch = Batch(*keras.utils.unpack_x_y_sample_weight(data))
    assigned: list[tuple[keras.Variable, Any]] = []
    with tf.GradientTape() as tape:
        # The loss belongs in the scope: it may read what layers assigned, and the metrics of a
        # loss are kept per replica.
        with _collecting(model, assigned):
            y_pred = keras_private.call_in_training(model, batch.x)
            loss = model._compute_loss(
                x=batch.x,
                y=batch.y,
                y_pred=y_pred,
                sample_weight=batch.sample_weight,
                training=True,
            )
        unscaled = _per_replica_mean(loss)
        scaled = model.optimizer.scale_loss(loss)
    gradients = tape.gradient(scaled, model.trainable_variables)
    return finish(model, batch, Outcome(y_pred, unscaled, gradients, assigned))


@contextlib.contextmanager
def _collecting(model: Any, assigned: list[tuple[keras.Variable, Any]]) -> Iterator[None]:
    """Fills `assigned` with what layers assign; they assign it themselves if all of it is to be."""
    options = model.train_ops
    if options.policy.keeps_layer_updates and not options.numerics and not needs_own_step(model):
        yield
        return
    with LayerUpdateScope([*model.variables, *model.metrics_variables]) as scope:
        yield
        _refuse_loops(scope.assigned)
    assigned += scope.assigned


def _refuse_loops(assigned: Sequence[tuple[keras.Variable, Any]]) -> None:
    """A value out of the body of a loop cannot be used behind it."""
    graph = tf.compat.v1.get_default_graph()
    inside = [v.path for v, value in assigned if getattr(value, "graph", graph) is not graph]
    if inside:
        raise ValueError(
            f"A layer assigns {', '.join(inside)} within a loop, as a recurrent layer runs over "
            "time steps: such an update cannot be collected. Make the layer with `unroll=True`, "
            "or train on one device with `updates=None` and without `check_numerics`."
        )


def apply_gradients(
    optimizer: Any, gradients: Sequence[Any], variables: Sequence[keras.Variable]
) -> None:
    """One batch's gradients through the optimizer."""
    optimizer.apply(list(gradients), variables)


def elements(gradient: Gradient) -> Any:
    """The gradient's elements, of a sparse one those it has."""
    return _values(gradient)


def on_any_replica(flags: Any) -> Any:
    """Which boolean flags are set on any replica."""
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return flags
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, tf.cast(flags, tf.float32)) > 0.5


def _voting_together(model: Any) -> contextlib.AbstractContextManager[None]:
    """Within it a LossScaleOptimizer skips a step where any replica's gradient is not finite.

    It asks every replica for its own gradients and believes the first.
    """
    optimizer, several = model.optimizer, model.distribute_strategy.num_replicas_in_sync > 1
    if not several or not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return contextlib.nullcontext()
    check = optimizer.check_finite  # whoever's it is
    return keras_private.shadowed(
        optimizer,
        "check_finite",
        lambda gradients: tf.logical_not(on_any_replica(tf.logical_not(check(gradients)))),
    )


def mean_over_replicas(values: Sequence[Any]) -> Sequence[Any]:
    """The means of what layers assigned on each replica, so that all replicas hold the same.

    Plain Keras lets each keep its own batch-norm statistics, and saves those of the first. Integers
    and the like, which count or seed, are the same on all anyway.
    """
    replica = tf.distribute.get_replica_context()
    floats = [value for value in values if value.dtype.is_floating]
    if replica is None or replica.num_replicas_in_sync == 1 or not floats:
        return values
    means = iter(replica.all_reduce(tf.distribute.ReduceOp.MEAN, floats))
    return [next(means) if value.dtype.is_floating else value for value in values]


def trace(function: Callable[[], None]) -> None:
    """Traces a function as a replica's step is traced, and runs nothing."""

    @tf.function(autograph=False)  # as Keras does it
    def traced() -> None:
        strategy = tf.distribute.get_strategy()
        strategy.run(function) if strategy.num_replicas_in_sync > 1 else function()

    traced.get_concrete_function()


def train_function(
    function: Callable[..., Any], model: Any, numerics: NumericsGuard | None
) -> Callable[..., Any]:
    """The train function that `fit` calls, made of Keras's.

    It takes the batch before it runs the step. Keras takes it within, where the call that finds no
    more data still runs whatever does not depend on them: data of unknown length gave one more
    weight decay, iteration and seed than batches. And it raises, on the host, where the step found
    something that is not finite.
    """
    of_batch: Callable[[Any], Any] = function
    spec: Any = None

    @functools.wraps(function)
    def run(iterator: Any) -> Any:
        with _voting_together(model):
            logs = run_step(iterator)
        if numerics is not None:
            numerics.raise_if_bad(lambda v: ops.convert_to_numpy(ops.convert_to_tensor(v)))
        return logs

    def run_step(iterator: Any) -> Any:
        nonlocal of_batch, spec
        takes_all = isinstance(iterator, (tf.data.Iterator, tf.distribute.DistributedIterator))
        if takes_all and model.steps_per_execution == 1:
            now = iterator.element_spec
            if now is not spec:  # in most steps it is: to compare specs takes microseconds
                if spec is None or now != spec:
                    of_batch = _step_of(now, function, model)
                spec = now
            return of_batch(next(iterator))
        return function(iterator)

    return run


def _step_of(spec: Any, function: Callable[..., Any], model: Any) -> Callable[[Any], Any]:
    """The train function, for batches of these shapes.

    As within Keras's own, the size of a batch stays unknown: else a smaller last batch would be
    traced anew, and the graph be another than in plain Keras, and so the last bits of its sums.
    """
    if model.run_eagerly or model.train_ops.why_unbuilt:
        return lambda batch: function((batch,))
    return tf.function(lambda batch: function((batch,)), input_signature=[spec], autograph=False)


def _per_replica_mean(loss: tf.Tensor) -> tf.Tensor:
    """The loss as it is reported: Keras divides it by the number of replicas for the sum."""
    return loss * tf.cast(tf.distribute.get_strategy().num_replicas_in_sync, loss.dtype)


def conditionally(
    predicate: Any,
    then: Callable[..., Any],
    otherwise: Callable[..., Any],
    args: Sequence[Any],
    *,
    changes: Sequence[keras.Variable],
) -> None:
    """Runs `then(*args)` where `predicate` holds, else `otherwise(*args)`, as the step executes.

    Args:
        predicate: A scalar boolean tensor, the same on all replicas.
        then: Assigns variables. What it uses of the replica that calls it must be in `args`.
        otherwise: The same.
        args: Tensors or None.
        changes: The variables that either may assign. TensorFlow needs no such list.
    """
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        tf.cond(predicate, lambda: _then_zero(then, args), lambda: _then_zero(otherwise, args))
        return

    # Replicas meet inside the branches, and TensorFlow refuses that within a condition that each
    # replica has for itself: so one goes around all replicas, as in LossScaleOptimizer.
    def run(strategy: tf.distribute.Strategy, predicate: Any, *args: Any) -> None:
        def each(branch: Callable[..., Any]) -> tf.Tensor:
            zeros = strategy.extended.call_for_each_replica(_then_zero, args=(branch, args))
            return strategy.experimental_local_results(zeros)[0]

        first = strategy.experimental_local_results(predicate)[0]
        tf.cond(first, lambda: each(then), lambda: each(otherwise))

    replica.merge_call(run, args=(predicate, *args))


def _then_zero(branch: Callable[..., Any], args: Sequence[Any]) -> tf.Tensor:
    branch(*args)
    return tf.constant(0)


def assign_weights(variables: Sequence[keras.Variable], values: Sequence[Any]) -> None:
    """Assigns trained variables within the step, the same values on every replica."""

    def assign(strategy: tf.distribute.Strategy, variables: Any, values: Any) -> None:
        for variable, value in zip(variables, values, strict=True):
            strategy.extended.update(
                variable, lambda v, new: v.assign(new), args=(value,), group=False
            )

    if variables:
        tf.__internal__.distribute.interim.maybe_merge_call(
            assign, tf.distribute.get_strategy(), [v.value for v in variables], list(values)
        )


def build_model(model: Any, iterator: Any, data_batch: Any) -> None:
    """Builds a lazily built model before callbacks see it, without taking data from `iterator`.

    On TensorFlow, Keras leaves building to the first traced step, so that in `on_train_begin` there
    is nothing to warm-start. A model that cannot be built from shapes alone is left to it still.
    """
    model.train_ops.why_unbuilt = ""
    if all(layer.built for layer in model._flatten_layers()):
        return
    try:
        batch = data_batch if iterator is None else _batch_spec(iterator)
        with model.distribute_strategy.scope():
            model._symbolic_build(data_batch=batch)
    except Exception as error:  # the first step will say what is wrong, if anything is
        model.train_ops.why_unbuilt = str(error)


def _batch_spec(iterator: Any) -> Any:
    """The shapes and dtypes of one batch on one replica."""
    spec = iterator._distributed_dataset.element_spec

    def local(leaf: Any) -> Any:
        return leaf._value_specs[0] if hasattr(leaf, "_value_specs") else leaf

    return keras.tree.map_structure(local, spec)


def symbolic_build_by_keras(model: Any) -> bool:
    """Whether Keras builds the model before callbacks by itself, as it does under a strategy."""
    return model._distribute_strategy is not None


def settle(model: Any) -> None:
    """Nothing: the model holds its state at all times."""


def separate(variables: Sequence[keras.Variable]) -> None:
    """Nothing: what is assigned is copied."""


def host_view(variable: keras.Variable) -> np.ndarray:
    """A variable's value on the host, good until it is assigned: without a copy where possible."""
    tensor = tf.convert_to_tensor(variable.value)
    try:
        return np.asarray(memoryview(tensor))
    except (BufferError, TypeError, ValueError):  # a dtype that buffers do not have, or a device
        return ops.convert_to_numpy(tensor)


def build_metrics(model: Any, iterator: Any) -> None:
    """Creates the variables of metrics, which Keras leaves to the first traced step."""
    if iterator is not None and not model.train_ops.why_unbuilt:
        with model.distribute_strategy.scope():
            keras_private.build_metrics(model, _batch_spec(iterator))
