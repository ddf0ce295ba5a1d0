"""Averaged weights for validation, and at the end of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import keras

from keras_trainops.representation import CallRepr
from keras_trainops.scalars import check_whole
from keras_trainops.updates.averaging import WeightAverage
from keras_trainops.updates.recalibration import batch_statistics, recalibrate_batch_norm
from keras_trainops.updates.swap import Swap


class UseAverage(CallRepr, keras.callbacks.Callback):
    """Use averaged weights for validation, and show them to other callbacks as an epoch ends.

    The averages are in the model from the validation until all other callbacks have seen the end of
    the epoch, at any position in the list: `EarlyStopping` and `ModelCheckpoint` keep the weights
    that the validation measured. In an epoch without validation the averages are swapped in when
    the epoch ends. Then the model gets its own weights back, even after an error, and training
    continues bit for bit as without this callback. Weights that another callback assigned meanwhile
    are kept.

    Callbacks that resume a run, `TrainingSession` and `keras.callbacks.BackupAndRestore`, always
    save the model's own weights, and the averages separately. Callbacks that act after a batch see
    the model's own weights, but `evaluate` uses the averages wherever a callback calls it.

    After training the model has its own weights, or the averages if `finalize=True`. Weights that
    another callback assigns then, such as the best ones of `EarlyStopping`, take precedence. To
    evaluate outside of `fit` use `with average.swapped(): model.evaluate(...)`.

    Args:
        average: The `MovingAverage`, `StochasticWeightAverage` or `Lookahead` among the model's
            updates. None uses the only one.
        finalize: If True, write the averages to the weights when training ends, before other
            callbacks see `on_train_end`.
        recalibrate: Data, as for `fit`, to compute batch-norm statistics for the averaged weights
            whenever they are used. None keeps the statistics. See `RecalibrateBatchNorm`.
        steps: Number of batches of these data to use, None for all.
        only_validation: If True, the averages are used for validation only, and other callbacks
            see the model's own weights as an epoch ends.

    Raises:
        ValueError: If `average` is not a weight average, or `steps` not an integer >= 1; when
            training begins, if the model does not have exactly one such average, or there are two
            of these callbacks.

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
                "`average` must be a `MovingAverage`, a `StochasticWeightAverage` or a "
                f"`Lookahead`. Received: average={average!r}"
            )
        self.average, self.finalize = average, finalize
        self.only_validation = only_validation
        self._data = recalibrate
        self._steps = check_whole("steps", steps, 1, optional=True)
        self._swap = Swap()

    @contextmanager
    def wrap_fit(self, model: Any, callbacks: list[Any]) -> Iterator[list[Any]]:
        """Surround the `fit` of a model with the mixin with callbacks that swap the weights.

        Args:
            model: The model that `fit` trains.
            callbacks: The callbacks that `fit` was given.

        Returns:
            A context manager that returns the callbacks for `fit` to use.
        """
        arranged: list[Any] = [_BeforeOthers(self)]
        if self.only_validation:
            arranged += callbacks
        else:
            for needs_own_weights, group in groupby(callbacks, _resumes):
                swap = _SwapOut(self) if needs_own_weights else _SwapIn(self)
                arranged += [swap, *group]
        try:
            yield [*arranged, _SwapOut(self)]
        finally:
            self._swap.leave()

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        model: Any = self.model
        state = getattr(model, "train_ops", None)
        updates = state.policy.after_weights if state is not None else []
        averages = [u for u in updates if isinstance(u, WeightAverage)]
        if self.average is not None:
            averages = [u for u in averages if u is self.average]
        if len(averages) != 1:
            raise ValueError(
                f"`UseAverage` needs one average among the updates of {model.name!r}, but there "
                f"are {len(averages)}: pass one to `compile(updates=[LayerUpdates(), average])` or "
                "to `model.add_update`, and pass it as `average` here if there are several."
            )
        self._in_use = averages[0]
        model.train_ops.fit.evaluation = self._averaged

    def enter(self) -> None:
        """Put the averages into the model, unless they are there already."""
        if not self._swap.is_in:
            model = self.model  # on JAX this synchronizes the variables first
            changes = batch_statistics(model) if self._data is not None else []
            self._swap.enter(self._in_use.tensors(), lambda: self._recalibrate(model), changes)

    def leave(self) -> None:
        """Give the model its own weights back, except for those assigned meanwhile."""
        self._swap.leave(keep_assigned=True)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Surround an evaluation by another callback, which may see the averages already."""
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
        """End the use of averages in evaluations, and finalize them if the user asked for it."""
        model: Any = self.model
        model.train_ops.fit.evaluation = None
        if self.finalize:
            self._in_use.finalize()
            self._recalibrate(model)


def _resumes(callback: Any) -> bool:
    """Return True if a callback saves a run to resume, and so needs the model's own weights."""
    return isinstance(callback, keras.callbacks.BackupAndRestore)


class _BeforeOthers(keras.callbacks.Callback):
    """The part of `UseAverage` that acts before all other callbacks."""

    def __init__(self, use: UseAverage) -> None:
        super().__init__()
        self._use = use

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._use.enter()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._use.finish()


class _SwapIn(keras.callbacks.Callback):
    """Show the averages to the callbacks after it as an epoch ends."""

    def __init__(self, use: UseAverage) -> None:
        super().__init__()
        self._use = use

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._use.enter()


class _SwapOut(keras.callbacks.Callback):
    """Show the model's own weights to the callbacks after it as an epoch ends."""

    def __init__(self, use: UseAverage) -> None:
        super().__init__()
        self._use = use

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._use.only_validation:
            self._use.leave()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._use.leave()
