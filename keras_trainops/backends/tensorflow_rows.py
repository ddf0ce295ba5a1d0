"""Sparse gradients of TensorFlow: the rows of an embedding that occur in a batch."""

from __future__ import annotations

import tensorflow as tf

from keras_trainops.backends.types import Gradient


def dense(gradient: Gradient) -> Gradient:
    """Return a gradient as one tensor, if it is sparse."""
    return tf.convert_to_tensor(gradient) if isinstance(gradient, tf.IndexedSlices) else gradient


def with_values(gradient: Gradient, values: Gradient) -> Gradient:
    """Return a gradient of the same rows with other values."""
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    return values


def sum_duplicate_rows(gradient: Gradient) -> Gradient:
    """Return a sparse gradient with each row's sum once, in as many rows as before.

    The rows left over are zero, at an index that occurs: they change neither norms nor updates. All
    shapes stay static, which XLA needs and `tf.unique` cannot give.
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
