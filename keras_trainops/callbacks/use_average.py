"""Evaluating with averaged weights, and ending with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras

from keras_trainops.updates.averaging import WeightAverage
from keras_trainops.updates.recalibration import recalibrate_batch_norm, statistics_kept


class UseAverage(keras.callbacks.Callback):
    """Has validation within `fit` use averaged weights and, by option, training end with them.

    The model has its own weights back after each validation, also where that fails. To evaluate
    outside of `fit` use `with average.swapped(): model.evaluate(...)`.

    Args:
        average: The `MovingAverage` or `StochasticWeightAverage`, which is among the model's
            updates; None: the one that is.
        finalize: Whether the averages are written into the weights when training ends.
        recalibrate: Data, as `fit` takes them, from which batch-norm statistics are computed for
            the averaged weights, where they are used; None: the statistics stay as they are. See
            `RecalibrateBatchNorm`.
        steps: How many batches of these data; None: all.

    Raises:
        ValueError: When training begins, if the model has no such average, or several.

    Example:
        >>> import keras_trainops as kt
        >>> use = kt.UseAverage(finalize=True)

    References: `swap_weights` and `assign_average_vars` of tfa.optimizers.MovingAverage.
    """

    def __init__(
        self,
        average: WeightAverage | None = None,
        *,
        finalize: bool = False,
        recalibrate: Any = None,
        steps: int | None = None,
    ) -> None:
        super().__init__()
        if average is not None and not isinstance(average, WeightAverage):
            raise ValueError(
                "`average` must be a `MovingAverage` or a `StochasticWeightAverage`. Received: "
                f"average={average!r}"
            )
        self.average, self.finalize = average, finalize
        self._data, self._steps = recalibrate, steps

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

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        model = self.model
        with statistics_kept(model), self._in_use.swapped():
            self._recalibrate(model)
            yield

    def _recalibrate(self, model: keras.Model) -> None:
        if self._data is not None:
            recalibrate_batch_norm(model, self._data, self._steps)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self.finalize:
            model = self.model  # on JAX it brings the variables up to date first
            self._in_use.finalize()
            self._recalibrate(model)
