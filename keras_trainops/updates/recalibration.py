"""Batch-norm statistics of given weights, from data."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np

from keras_trainops import _keras
from keras_trainops.state import copy_of
from keras_trainops.updates.layer_updates import LayerUpdateScope


def recalibrate_batch_norm(
    model: keras.Model,
    data: Any,
    steps: int | None = None,
    batch_size: int | None = None,
    layer_by_layer: bool = False,
    verbose: int = 0,
) -> None:
    """Gives every batch normalisation the exact moments of its inputs (precise batch norm).

    Of batches of `n_b` examples with the means `μ_b` and biased variances `v_b`, in one pass:
    `μ = Σ n_b μ_b / N` and `v = Σ n_b (v_b + μ_b²) / N − μ²`.

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
        ValueError: If the model has no `BatchNormalization` that is trained, or there is no data.
            The statistics are as they were then, and after any other error.
    """
    started = time.perf_counter()
    layers = [layer for layer in _batch_norms(model) if layer.trainable]
    if not layers:
        raise ValueError(
            f"{model.name!r} has no `keras.layers.BatchNormalization` that is not frozen, so there "
            "is nothing to recalibrate."
        )
    momenta = [layer.momentum for layer in layers]
    before = _values_of_statistics(model)
    try:
        for layer in layers:
            layer.momentum = 0.0  # so that it assigns the moments of the batch themselves
        todo = _in_call_order(model, layers, data, batch_size) if layer_by_layer else [layers]
        for i, now in enumerate(todo):
            batches = _shown(data, steps, batch_size, verbose, f"batch norm {i + 1}/{len(todo)}")
            _assign_moments(model, now, batches)
            for layer in now if layer_by_layer else ():
                layer.trainable = False  # it normalises with its statistics from here on
    except BaseException:
        _assign(before)
        raise
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum, layer.trainable = momentum, True
    if verbose:
        seconds = time.perf_counter() - started
        print(f"Recalibrated {len(layers)} batch normalizations in {seconds:.1f} s", flush=True)


@contextlib.contextmanager
def statistics_kept(model: keras.Model) -> Iterator[None]:
    """Afterwards the batch normalisations of `model` have the statistics they have now."""
    before = _values_of_statistics(model)
    try:
        yield
    finally:
        _assign(before)


def _values_of_statistics(model: keras.Model) -> list[tuple[keras.Variable, np.ndarray]]:
    return [(v, copy_of(v)) for layer in _batch_norms(model) for v in _statistics(layer)]


def _assign(values: Iterable[tuple[keras.Variable, np.ndarray]]) -> None:
    for variable, value in values:
        variable.assign(value)


def _batch_norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    layers = _keras.all_layers(model)
    return [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]


def _statistics(layer: keras.layers.BatchNormalization) -> list[keras.Variable]:
    return [layer.moving_mean, layer.moving_variance]


def _forward(model: keras.Model, x: Any) -> dict[int, np.ndarray]:
    """What layers would assign to their variables in a training step on `x`."""
    with _no_gradients(), LayerUpdateScope(model.variables) as scope:
        _keras.call_in_training(model, x)
    return {id(v): np.array(keras.ops.convert_to_numpy(value)) for v, value in scope.assigned}


def _no_gradients() -> contextlib.AbstractContextManager[Any]:
    """On PyTorch, which keeps what gradients need unless it is told; elsewhere nothing."""
    if keras.backend.backend() != "torch":
        return contextlib.nullcontext()
    import torch

    return torch.no_grad()


def _in_call_order(
    model: keras.Model, layers: list[Any], data: Any, batch_size: int | None
) -> list[list[Any]]:
    """The layers that a forward pass comes to, each by itself, in its order."""
    first = next(iter(_keras.batches(data, batch_size)), None)
    order = {} if first is None else {v: i for i, v in enumerate(_forward(model, first))}
    called = [layer for layer in layers if id(layer.moving_mean) in order]
    return [[layer] for layer in sorted(called, key=lambda la: order[id(la.moving_mean)])]


def _assign_moments(model: keras.Model, layers: list[Any], batches: Iterable[Any]) -> None:
    total = 0
    sums: dict[int, tuple[Any, Any]] = {}
    for x in batches:
        count = len(keras.tree.flatten(x)[0])
        assigned = _forward(model, x)
        total += count
        for layer in layers:
            mean, variance = (
                assigned.get(id(v), copy_of(v)).astype("float64") for v in _statistics(layer)
            )
            first, second = sums.get(id(layer), (0.0, 0.0))
            sums[id(layer)] = (
                first + count * mean,
                second + count * (variance + mean**2),
            )
    if not total:
        raise ValueError("`data` holds no batch, so that there is nothing to recalibrate from.")
    for layer in layers:
        mean, square = (part / total for part in sums[id(layer)])
        variance = np.maximum(square - mean**2, 0.0)
        for variable, value in zip(_statistics(layer), (mean, variance), strict=True):
            variable.assign(value.astype(variable.dtype))


def _shown(
    data: Any, steps: int | None, batch_size: int | None, verbose: int, label: str
) -> Iterable[Any]:
    """The inputs of the batches, with Keras's progress bar where it is wanted."""
    bar = keras.utils.Progbar(steps, unit_name=label) if verbose else None
    for i, x in enumerate(_keras.batches(data, batch_size)):
        if steps is not None and i >= steps:
            break
        yield x
        if bar is not None:
            bar.update(i + 1)
