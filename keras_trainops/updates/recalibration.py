"""Batch-norm statistics of given weights, recomputed from data."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_trainops import keras_private
from keras_trainops.backends import backend
from keras_trainops.processes import Processes
from keras_trainops.scalars import check_whole
from keras_trainops.values import assign_copies, copies_of


def recalibrate_batch_norm(
    model: keras.Model,
    data: Any,
    steps: int | None = None,
    batch_size: int | None = None,
    layer_by_layer: bool = False,
    verbose: int = 0,
) -> None:
    """Set the statistics of every batch normalisation to the exact moments of its inputs.

    This is precise batch norm. Batches with `n_b` values of a channel, means `μ_b` and biased
    variances `v_b` are pooled: `μ = Σ n_b μ_b / N` and `v = Σ n_b (v_b + μ_b²) / N − μ²`.

    In a single pass each layer normalises with its batch's moments, as in training, so the inputs
    of deeper layers depend on the batches. With `layer_by_layer` there is one pass per layer, in
    which the previous layers already have their final moments. The result then equals that of one
    batch of all data, for every batch size.

    If several processes train the model, all of them call it, and their data are pooled: each
    passes its part, or all of them the same. On JAX, a model whose weights are sharded over
    processes takes its batches as `fit` does, as many on each process.

    Args:
        model: A built model. Its weights do not change.
        data: Data that `fit` accepts as `x`: arrays, a dataset, a `PyDataset`; of `(x, y)`, only
            `x` is used.
        steps: The number of batches; None uses all.
        batch_size: Examples in a batch of arrays; None means 32.
        layer_by_layer: If True, make a separate pass for each layer.
        verbose: 1 shows progress and the time taken.

    Raises:
        ValueError: If `steps` is not an integer >= 1, if the model has no trainable
            `BatchNormalization`, if there is no data, or if the data is a generator and several
            passes are needed. After any error the statistics keep their values.

    Example:
        >>> import keras, numpy as np, keras_trainops as kt
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization()])
        >>> kt.updates.recalibrate_batch_norm(model, np.ones((8, 4)), batch_size=4)

    References: Wu and Johnson 2021, 'Rethinking "Batch" in BatchNorm'; `update_bn_stats` of fvcore.
    """
    started = time.perf_counter()
    steps = check_whole("steps", steps, 1, optional=True)
    layers = [layer for layer in _batch_norms(model) if layer.trainable]
    _require_layers(model, layers)
    forward = _Forward(model)
    before = [(v, copies_of(v)) for v in batch_statistics(model)]
    try:
        with _recording(layers) as recorders:
            passes = [recorders]
            if layer_by_layer:
                with forward.agreed():
                    _require_repeatable(data)
                    forward(_first_batch(data, batch_size))
                passes = _in_call_order(recorders)
            for i, group in enumerate(passes, start=1):
                batches = _batches(data, steps, batch_size)
                if verbose and forward.processes.is_first:
                    batches = _with_progress(batches, steps, f"batch norm {i}/{len(passes)}")
                _recalibrate(forward, group, batches)
    except BaseException:
        for variable, copies in before:
            assign_copies(variable, copies)
        raise
    if verbose and forward.processes.is_first:
        seconds = time.perf_counter() - started
        print(f"Recalibrated {len(layers)} batch normalizations in {seconds:.1f} s", flush=True)


def _require_layers(model: keras.Model, layers: list[keras.layers.BatchNormalization]) -> None:
    if not layers:
        raise ValueError(
            f"{model.name!r} has no `keras.layers.BatchNormalization` that is not frozen, so there "
            "is nothing to recalibrate."
        )


def _require_repeatable(data: Any) -> None:
    if isinstance(data, Iterator):
        raise ValueError(
            "`layer_by_layer=True` goes through the data several times, but `data` is a generator: "
            "pass arrays, a dataset or a `PyDataset`."
        )


def _first_batch(data: Any, batch_size: int | None) -> Any:
    for x in keras_private.batches(data, batch_size):
        return x
    raise ValueError("`data` is empty, so there is nothing to recalibrate from.")


class _MomentsRecorder:
    """Replaces a batch normalisation's `call`, and accumulates the moments of its inputs.

    Attributes:
        position: The layer's place in the order of first calls, from 1; 0 before its first call.
        settled: If True, the layer has its final moments, and uses them.
    """

    def __init__(self, layer: keras.layers.BatchNormalization, positions: Iterator[int]) -> None:
        self.layer, self._call, self._positions = layer, layer.call, positions
        self.position = 0
        self.settled = False
        self.clear()

    def clear(self) -> None:
        """Reset the accumulated moments."""
        self.count: Any = 0.0
        self.first: Any = 0.0
        self.second: Any = 0.0

    def __call__(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        if training and not self.settled:
            self.position = self.position or next(self._positions)
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
        # Squares about the batch's mean are exact enough in float32.
        square = ops.sum(weights * ops.square(inputs - mean), axes)
        count, mean, square = map(_float64_vector, (count, mean, square))
        self.count = self.count + count
        self.first = self.first + count * mean
        self.second = self.second + square + count * mean**2

    def pool(self, sums: Iterable[Sequence[Sequence[float]]]) -> None:
        """Replace the accumulated moments by the sums of those that several processes have."""
        of_all = [np.asarray(each, "float64") for each in sums]
        self.count, self.first, self.second = np.sum(of_all, axis=0)

    def sums(self) -> list[list[float]]:
        """Return the accumulated moments: three vectors with an element for each channel."""
        shape = (int(np.prod(self.layer.moving_mean.shape)),)
        sums = (self.count, self.first, self.second)
        return [np.broadcast_to(each, shape).tolist() for each in sums]

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean and the biased variance of all inputs since `clear`.

        Raises:
            ValueError: If there were none.
        """
        if not np.all(self.count):
            raise ValueError(
                f"`data` contains nothing that reaches {self.layer.name!r}, so there is nothing to "
                "recalibrate it from."
            )
        mean = self.first / self.count
        return mean, np.maximum(self.second / self.count - mean**2, 0.0)


def _float64_vector(tensor: Any) -> np.ndarray:
    return np.asarray(backend().gathered(tensor), "float64").reshape(-1)


@contextlib.contextmanager
def _recording(
    layers: Iterable[keras.layers.BatchNormalization],
) -> Iterator[list[_MomentsRecorder]]:
    positions = itertools.count(1)
    recorders = [_MomentsRecorder(layer, positions) for layer in layers]
    try:
        for recorder in recorders:
            recorder.layer.__dict__["call"] = recorder  # bypasses Keras's attribute tracking
        yield recorders
    finally:
        for recorder in recorders:
            recorder.layer.__dict__.pop("call", None)


def _in_call_order(recorders: list[_MomentsRecorder]) -> list[list[_MomentsRecorder]]:
    """Return one group for each recorder that was called, in the order of first calls."""
    ordered = sorted(recorders, key=lambda recorder: recorder.position)
    return [[recorder] for recorder in ordered if recorder.position]


def _recalibrate(
    forward: _Forward, recorders: list[_MomentsRecorder], batches: Iterable[Any]
) -> None:
    """Assign the moments of one pass over `batches` to the layers of `recorders`."""
    for recorder in recorders:
        recorder.clear()
    with forward.agreed():
        for x in batches:
            forward(x)
    forward.pool(recorders)
    # Layers that no process has called keep their values. If none was, `moments` raises.
    for recorder in [r for r in recorders if np.any(r.count)] or recorders[:1]:
        for variable, value in zip(_statistics(recorder.layer), recorder.moments(), strict=True):
            variable.assign(value.astype(variable.dtype))
    for recorder in recorders:
        recorder.settled = True


class _Forward:
    """Forward passes in training mode that assign no variable.

    Each process computes with its own data, unless it has only a part of the weights.

    Args:
        model: The model.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model, self.processes = model, Processes(model)
        self._alone = backend().of_this_process(model.variables) is not None

    def __call__(self, x: Any) -> None:
        values = backend().of_this_process(self._model.variables)
        if not self._alone:
            x = backend().distributed(x)
        with backend().no_gradients(), keras_private.ValueScope(values or ()):
            keras_private.call_model(self._model, x, training=True)

    def agreed(self) -> contextlib.AbstractContextManager[None]:
        """Surround forward passes: if one process fails, all of them raise."""
        if self._alone:
            return self.processes.agreed("to recalibrate batch norms")
        return contextlib.nullcontext()  # they communicate, and the engine stops all

    def pool(self, recorders: Sequence[_MomentsRecorder]) -> None:
        """Add up what the recorders of all processes have accumulated."""
        if not self._alone or not self.processes.several:
            return
        sums = [recorder.sums() for recorder in recorders]
        of_all = self.processes.gather(sums, "to recalibrate batch norms")
        for i, recorder in enumerate(recorders):
            recorder.pool(each[i] for each in of_all)


def batch_statistics(model: keras.Model) -> list[keras.Variable]:
    """Return the moving means and variances of a model's batch normalisations."""
    found: list[keras.Variable] = []
    for layer in _batch_norms(model):
        found += _statistics(layer)
    return found


def _batch_norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    layers = keras_private.all_layers(model)
    return [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]


def _statistics(layer: keras.layers.BatchNormalization) -> list[keras.Variable]:
    return [layer.moving_mean, layer.moving_variance]


def _batches(data: Any, steps: int | None, batch_size: int | None) -> Iterator[Any]:
    return itertools.islice(keras_private.batches(data, batch_size), steps)


def _with_progress(batches: Iterable[Any], steps: int | None, label: str) -> Iterator[Any]:
    """Show Keras's progress bar while `batches` are consumed."""
    bar = keras.utils.Progbar(steps, unit_name=label)
    for i, x in enumerate(batches, start=1):
        yield x
        bar.update(i)
