"""Exact batch-norm statistics at the end of training."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainops.representation import CallRepr
from keras_trainops.scalars import check_whole
from keras_trainops.updates.recalibration import recalibrate_batch_norm


class RecalibrateBatchNorm(CallRepr, keras.callbacks.Callback):
    """Replace batch-norm statistics by exact moments over data at the end of training (precise BN).

    `μ = Σ n_b μ_b / N` and `v = Σ n_b (v_b + μ_b²) / N − μ²`, with the means `μ_b` and biased
    variances `v_b` of the batches, replace moving averages that belong to earlier weights. The
    weights do not change. Outside of `fit`, use `keras_trainops.updates.recalibrate_batch_norm`.

    Args:
        data: The same as `x` of `fit`: arrays, a dataset or a `PyDataset`; of `(x, y)`, only `x` is
            used.
        steps: Number of batches to use, None for all.
        batch_size: Number of samples per batch of arrays, None for 32.
        layer_by_layer: If True, each layer gets its own pass over the data, and its statistics are
            those of one batch of all data. If False, deeper layers see the outputs of earlier ones
            normalised batch by batch.
        verbose: 1 shows a progress bar and the time taken.

    Raises:
        ValueError: If `steps` is not an integer >= 1; when training ends, if there are no layers to
            recalibrate, or no data.

    Example:
        >>> import numpy as np, keras_trainops as kt
        >>> precise = kt.RecalibrateBatchNorm(np.zeros((8, 4)), batch_size=4)

    References: Wu and Johnson 2021, 'Rethinking "Batch" in BatchNorm'; `update_bn_stats` of fvcore.
    """

    def __init__(
        self,
        data: Any,
        steps: int | None = None,
        *,
        batch_size: int | None = None,
        layer_by_layer: bool = False,
        verbose: int = 0,
    ) -> None:
        super().__init__()
        steps = check_whole("steps", steps, 1, optional=True)
        self._arguments = (data, steps, batch_size, layer_by_layer, verbose)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        recalibrate_batch_norm(self.model, *self._arguments)
