"""Evaluating with averaged weights, and ending with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import keras

from keras_trainops.representation import CallRepr
from keras_trainops.updates.averaging import WeightAverage
from keras_trainops.updates.recalibration import batch_statistics, recalibrate_batch_norm
from keras_trainops.updates.swap import Swap


class UseAverage(CallRepr, keras.callbacks.Callback):
    """Shows averaged weights to validation and, as an epoch ends, to all other callbacks.

    The averages are in the model from the validation until every other callback has seen the end of
    the epoch, wherever this one stands in the list: `EarlyStopping` and `ModelCheckpoint` keep the
    weights that the validation measured. In an epoch without a validation they come in when the
    epoch ends. Then the model has its own weights back, and trains as it would have without this
    callback, bit for bit; they come back as well where anything fails. Weights that another
    callback assigned meanwhile stay as it assigned them.

    What resumes a run has the model's own weights at all times, and the averages beside them:
    `TrainingSession` and `keras.callbacks.BackupAndRestore`. Callbacks that act after a batch see
    the model's own weights, but `evaluate`, wherever a callback calls it, uses the averages.

    When training ends the model has its own weights, with `finalize=True` the averages, or what
    another callback gives it, such as the best of `EarlyStopping`, which counts for more. To
    evaluate outside of `fit` use `with average.swapped(): model.evaluate(...)`.

    Args:
        average: The `MovingAverage` or `StochasticWeightAverage`, which is among the model's
            updates; None: the one that is.
        finalize: Whether the averages are written into the weights when training ends, before
            other callbacks are told of that.
        recalibrate: Data, as `fit` takes them, from which batch-norm statistics are computed for
            the averaged weights, where they are used; None: the statistics stay as they are. See
            `RecalibrateBatchNorm`.
        steps: How many batches of these data; None: all.
        only_validation: Whether other callbacks see the model's own weights as an epoch ends, and
            the averages are there for the validation alone.

    Raises:
        ValueError: When training begins, if the model has no such average, or several, or there are
            two of these callbacks.

    Example:
        >>> import keras, keras_trainops as kt
        >>> stop = keras.callbacks.EarlyStopping(patience=5, restore_best_weights=True)
        >>> callbacks = [kt.UseAverage(), stop]  # ends with the averages of the best epoch

    References: `keras.callbacks.SwapEMAWeights(swap_on_epoch=True)`, whose place in the list
    matters; `swap_weights` and `assign_average_vars` of tfa.optimizers.MovingAverage.
    """

    def __init__(
        self,
        average: WeightAverage | None = None,
        *,
        finalize: bool = False,
        recalibrate: Any = None,
        steps: int | None = None,
        only_validation: bool = False,
    ) -> None:
        super().__init__()
        if average is not None and not isinstance(average, WeightAverage):
            raise ValueError(
                "`average` must be a `MovingAverage` or a `StochasticWeightAverage`. Received: "
                f"average={average!r}"
            )
        self.average, self.finalize = average, finalize
        self.only_validation = only_validation
        self._data, self._steps = recalibrate, steps
        self._swap = Swap()

    @contextmanager
    def accompany(self, model: keras.Model, callbacks: list[Any]) -> Iterator[list[Any]]:
        """Used by a model with the mixin: stands before and behind the others in its `fit`."""
        arranged: list[Any] = [_First(self)]
        if self.only_validation:
            arranged += callbacks
        else:
            for own, group in groupby(callbacks, _resumes):
                arranged += [_Out(self) if own else _In(self), *group]
        try:
            yield [*arranged, _Out(self)]
        finally:
            self._swap.leave()

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        model = self.model
        state: Any = getattr(model, "train_ops", None)
        updates = state.policy.after_weights if state is not None else []
        averages = [u for u in updates if isinstance(u, WeightAverage)]
        if self.average is not None:
            averages = [u for u in averages if u is self.average]
        if len(averages) != 1:
            raise ValueError(
                f"`UseAverage` needs one average among the updates of {model.name!r}, and there "
                f"are {len(averages)}: pass it to `compile(updates=[LayerUpdates(), average])` or "
                "to `model.add_update`, and name it here where there are several."
            )
        self._in_use = averages[0]
        state.evaluation = self._averaged

    def enter(self) -> None:
        """Puts the averages into the model, unless they are there."""
        if not self._swap.is_in:
            model = self.model  # on JAX it brings the variables up to date first
            changes = batch_statistics(model) if self._data is not None else []
            self._swap.enter(self._in_use.averages(), lambda: self._recalibrate(model), changes)

    def leave(self) -> None:
        """Gives the model its own weights back, but for those that somebody assigned meanwhile."""
        self._swap.leave(keep_assigned=True)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """An evaluation that a callback asks for: it may be at a time when averages are in."""
        if self._swap.is_in:
            yield
            return
        self.enter()
        try:
            yield
        finally:
            self._swap.leave()

    def _recalibrate(self, model: keras.Model) -> None:
        if self._data is not None:
            recalibrate_batch_norm(model, self._data, self._steps)

    def finish(self) -> None:
        """Writes the averages into the model for good, if it is to; evaluations are its own now."""
        model: Any = self.model
        model.train_ops.evaluation = None
        if self.finalize:
            self._in_use.finalize()
            self._recalibrate(model)


def _resumes(callback: Any) -> bool:
    """Whether a callback keeps what training goes on from, and so the model's own weights."""
    return isinstance(callback, keras.callbacks.BackupAndRestore)


class _First(keras.callbacks.Callback):
    """What a `UseAverage` does before all other callbacks, wherever it stands itself."""

    def __init__(self, use: UseAverage) -> None:
        super().__init__()
        self._use = use

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._use.enter()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._use.finish()


class _In(keras.callbacks.Callback):
    """Behind it callbacks see the averages as an epoch ends."""

    def __init__(self, use: UseAverage) -> None:
        super().__init__()
        self._use = use

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._use.enter()


class _Out(keras.callbacks.Callback):
    """Behind it callbacks see the model's own weights as an epoch ends."""

    def __init__(self, use: UseAverage) -> None:
        super().__init__()
        self._use = use

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._use.only_validation:
            self._use.leave()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._use.leave()
