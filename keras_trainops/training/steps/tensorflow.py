"""The training step on TensorFlow, and every use of Keras's private API that it needs.

`tests/test_keras_private.py` holds each of those uses to the behaviour relied on here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from keras_trainops.transforms.base import Gradient
from keras_trainops.updates.layer_updates import LayerUpdateScope

if TYPE_CHECKING:
    from keras_trainops.training.mixin import TrainOps

RunChain = Callable[[Sequence[Gradient], Sequence[keras.Variable]], Sequence[Gradient]]


def install_chain(
    optimizer: keras.optimizers.Optimizer, run: RunChain, *, row_sparse: bool
) -> None:
    """Makes `optimizer` run the chain between the all-reduce and its update.

    That is the only place behind unscaling, accumulation and the all-reduce. The method is replaced
    on the instance, always around the class's own: installing again replaces, and never stacks.

    Args:
        optimizer: The optimizer whose updates use the gradients.
        run: The chain, on one tensor per variable.
        row_sparse: Whether it may get a sparse gradient's rows instead of the dense gradient.
    """
    all_reduce = type(optimizer)._all_reduce_sum_gradients

    def all_reduce_and_transform(grads_and_vars: Any) -> list[tuple[Gradient, tf.Variable]]:
        reduced = list(all_reduce(optimizer, list(grads_and_vars)))
        variables = [
            optimizer._trainable_variables[optimizer._get_variable_index(v)] for _, v in reduced
        ]
        summed = [_sum_duplicate_rows(g) if row_sparse else _dense(g) for g, _ in reduced]
        transformed = run([_values(g) for g in summed], variables)
        return [
            (_with_values(old, new), v)
            for old, new, (_, v) in zip(summed, transformed, reduced, strict=True)
        ]

    optimizer._all_reduce_sum_gradients = all_reduce_and_transform


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


def train_step(model: Any, data: Any) -> dict[str, Any]:
    """One step with an update policy or a numeric check; Keras's own step serves the rest.

    The layers' updates are collected during the forward pass, chosen by the policy, and applied
    before the weight update, as `create_train_op` and stock Keras do.
    """
    options: TrainOps = model.train_ops
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    with tf.GradientTape() as tape:
        # The loss belongs in the scope: it may read what layers assigned, and the metrics of a
        # loss are kept per replica.
        with LayerUpdateScope(_all_variables(model)) as scope:
            y_pred = model(x, training=True) if model._call_has_training_arg else model(x)
            loss = model._compute_loss(
                x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True
            )
        unscaled = _per_replica_mean(loss)
        scaled = model.optimizer.scale_loss(loss)
    model._loss_tracker.update_state(unscaled, sample_weight=_batch_size(x))
    trainable = model.trainable_variables
    gradients = tape.gradient(scaled, trainable)

    def change_state() -> None:
        for variable, value in options.policy.chosen(scope.assigned):
            variable.assign(value)
        if trainable:
            model.optimizer.apply_gradients(zip(gradients, trainable, strict=True))
        for update in options.policy.after_weights:
            update(model, unscaled)

    if options.numerics is None:
        change_state()
    else:
        options.numerics.guard(unscaled, model.optimizer.iterations, change_state)
    return model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)


def _all_variables(model: Any) -> list[keras.Variable]:
    return [*model.variables, *model.metrics_variables]


def _batch_size(x: Any) -> tf.Tensor:
    return tf.shape(next(leaf for leaf in keras.tree.flatten(x) if leaf is not None))[0]


def _per_replica_mean(loss: tf.Tensor) -> tf.Tensor:
    """The loss as it is reported: Keras divides it by the number of replicas for the sum."""
    return loss * tf.cast(tf.distribute.get_strategy().num_replicas_in_sync, loss.dtype)


def conditionally(predicate: Any, then: Callable[[], None]) -> None:
    """Runs `then` only where `predicate` holds, in the step as it executes.

    Raises:
        ValueError: Under a strategy whose replicas meet inside `then`, where TensorFlow has no way
            to do it.
    """
    strategy = tf.distribute.get_strategy()
    if strategy.num_replicas_in_sync > 1:
        raise ValueError(
            "`check_numerics=True` is not supported with more than one replica of "
            f"{type(strategy).__name__}. Use `keras.callbacks.TerminateOnNaN`."
        )

    def run() -> tf.Tensor:
        then()
        return tf.constant(0)

    tf.cond(predicate, run, lambda: tf.constant(0))


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
