"""Batch-norm statistics of given weights, from data."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_trainops import keras_private
from keras_trainops.backends import backend
from keras_trainops.updates.layer_updates import LayerUpdateScope
from keras_trainops.values import copy_of


def recalibrate_batch_norm(
    model: keras.Model,
    data: Any,
    steps: int | None = None,
    batch_size: int | None = None,
    layer_by_layer: bool = False,
    verbose: int = 0,
) -> None:
    """Gives every batch normalisation the exact moments of its inputs (precise batch norm).

    Of batches with `n_b` values of a channel, their means `μ_b` and biased variances `v_b`, in one
    pass: `μ = Σ n_b μ_b / N` and `v = Σ n_b (v_b + μ_b²) / N − μ²`.

    In that pass each layer normalises with its batch's moments, as in training, so that what
    deeper layers see depends on the batches. With `layer_by_layer` there is a pass per layer, in
    which those before it have their final moments: what comes out is what one batch of all data
    gives, whatever the batches.

    Args:
        model: A built model. Its weights are left as they are.
        data: What `fit` takes as `x`: arrays, a dataset, a `PyDataset`; of `(x, y)` the `x` is
            used.
        steps: How many batches; None: all there are.
        batch_size: Examples in a batch of arrays; None: 32.
        layer_by_layer: Whether each layer gets a pass of its own.
        verbose: 1 shows the progress, and says how long it took.

    Raises:
        ValueError: If the model has no `BatchNormalization` that is trained, or there is no data,
            or a generator where there are several passes. The statistics are as they were then, and
            after any other error.
    """
    started = time.perf_counter()
    layers = [layer for layer in _batch_norms(model) if layer.trainable]
    if not layers:
        raise ValueError(
            f"{model.name!r} has no `keras.layers.BatchNormalization` that is not frozen, so there "
            "is nothing to recalibrate."
        )
    if layer_by_layer and isinstance(data, Iterator):
        raise ValueError(
            "`layer_by_layer=True` goes through the data several times, and `data` is a generator: "
            "pass arrays, a dataset or a `PyDataset`."
        )
    before = [(v, copy_of(v)) for v in batch_statistics(model)]
    try:
        with _watched(layers) as watches:
            todo = [watches]
            if layer_by_layer:
                _forward(model, next(keras_private.batches(data, batch_size)))
                todo = [[watch] for watch in sorted(watches, key=lambda w: w.turn) if watch.turn]
            for i, now in enumerate(todo):
                label = f"batch norm {i + 1}/{len(todo)}"
                _recalibrate(model, now, _shown(data, steps, batch_size, verbose, label))
                for watch in now:
                    watch.settled = True
    except BaseException:
        _assign(before)
        raise
    if verbose:
        seconds = time.perf_counter() - started
        print(f"Recalibrated {len(layers)} batch normalizations in {seconds:.1f} s", flush=True)


class _Watch:
    """Takes the place of a batch normalisation's `call`, and adds up what it is given."""

    def __init__(self, layer: keras.layers.BatchNormalization, turns: Iterator[int]) -> None:
        self.layer, self._call, self._turns = layer, layer.call, turns
        self.turn = 0  # in which turn it is called first, from 1; 0: never
        self.settled = False
        self.clear()

    def clear(self) -> None:
        """Forgets what was added up."""
        self.count: Any = 0.0
        self.first: Any = 0.0
        self.second: Any = 0.0

    def __call__(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        if training and not self.settled:
            self.turn = self.turn or next(self._turns)
            self._add(ops.cast(inputs, "float32"), mask)
        return self._call(inputs, training=training and not self.settled, mask=mask)

    def _add(self, inputs: Any, mask: Any) -> None:
        rank = len(inputs.shape)
        axes = [i for i in range(rank) if i != self.layer.axis % rank]
        if mask is None:
            weights = ops.ones_like(inputs)
        else:
            weights = ops.broadcast_to(ops.cast(mask, "float32")[..., None], ops.shape(inputs))
        count = ops.sum(weights, axes, keepdims=True)
        mean = ops.sum(weights * inputs, axes, keepdims=True) / ops.maximum(count, 1.0)
        square = ops.sum(weights * ops.square(inputs - mean), axes)  # about the mean: exact enough
        count, mean, square = (
            np.asarray(ops.convert_to_numpy(part), "float64").reshape(-1)
            for part in (count, mean, square)
        )
        self.count = self.count + count
        self.first = self.first + count * mean
        self.second = self.second + square + count * mean**2

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and biased variance of all that was added up.

        Raises:
            ValueError: If there was nothing.
        """
        if not np.all(self.count):
            raise ValueError(
                f"`data` holds nothing that reaches {self.layer.name!r}, so that there is nothing "
                "to recalibrate it from."
            )
        mean = self.first / self.count
        return mean, np.maximum(self.second / self.count - mean**2, 0.0)


@contextlib.contextmanager
def _watched(layers: Iterable[keras.layers.BatchNormalization]) -> Iterator[list[_Watch]]:
    turns = itertools.count(1)
    watches = [_Watch(layer, turns) for layer in layers]
    try:
        for watch in watches:
            watch.layer.__dict__["call"] = watch  # on the instance, beside Keras's tracking
        yield watches
    finally:
        for watch in watches:
            watch.layer.__dict__.pop("call", None)


def _recalibrate(model: keras.Model, watches: list[_Watch], batches: Iterable[Any]) -> None:
    for watch in watches:
        watch.clear()
    for x in batches:
        _forward(model, x)
    # Layers that this model does not call keep what they have, unless none was called at all.
    for watch in [w for w in watches if w.turn] or watches[:1]:
        for variable, value in zip(_statistics(watch.layer), watch.moments(), strict=True):
            variable.assign(value.astype(variable.dtype))


def _forward(model: keras.Model, x: Any) -> None:
    """A forward pass as in training, which changes nothing."""
    with backend().no_gradients(), LayerUpdateScope(model.variables):
        keras_private.call_in_training(model, x)


def batch_statistics(model: keras.Model) -> list[keras.Variable]:
    """The moving means and variances of a model's batch normalisations."""
    return [v for layer in _batch_norms(model) for v in _statistics(layer)]


def _assign(values: Iterable[tuple[keras.Variable, np.ndarray]]) -> None:
    for variable, value in values:
        variable.assign(value)


def _batch_norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    layers = keras_private.all_layers(model)
    return [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]


def _statistics(layer: keras.layers.BatchNormalization) -> list[keras.Variable]:
    return [layer.moving_mean, layer.moving_variance]


def _shown(
    data: Any, steps: int | None, batch_size: int | None, verbose: int, label: str
) -> Iterable[Any]:
    """The inputs of the batches, with Keras's progress bar where it is wanted."""
    bar = keras.utils.Progbar(steps, unit_name=label) if verbose else None
    for i, x in enumerate(keras_private.batches(data, batch_size)):
        if steps is not None and i >= steps:
            break
        yield x
        if bar is not None:
            bar.update(i + 1)
