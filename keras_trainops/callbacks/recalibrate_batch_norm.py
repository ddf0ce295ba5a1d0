"""Exact batch-norm statistics when training ends."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainops.representation import CallRepr
from keras_trainops.updates.recalibration import recalibrate_batch_norm


class RecalibrateBatchNorm(CallRepr, keras.callbacks.Callback):
    """Gives batch normalisations, when training ends, the exact moments over data (precise BN).

    `μ = Σ n_b μ_b / N` and `v = Σ n_b (v_b + μ_b²) / N − μ²` of the batches' means and biased
    variances, in place of moving averages over weights that have changed meanwhile. The weights
    stay as they are. `keras_trainops.updates.recalibrate_batch_norm` does it without `fit`.

    Args:
        data: What `fit` takes as `x`: arrays, a dataset, a `PyDataset`; of `(x, y)` the `x` is
            used.
        steps: How many batches; None: all there are.
        batch_size: Examples in a batch of arrays; None: 32.
        layer_by_layer: Whether each layer gets a pass of its own, so that the statistics are those
            of one batch of all data; else deeper layers see what earlier ones normalise batch by
            batch.
        verbose: 1 shows the progress, and says how long it took.

    Raises:
        ValueError: When training ends, if there is nothing to recalibrate, or no data.

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
        if steps is not None and steps < 1:
            raise ValueError(f"`steps` must be >= 1, or None. Received: steps={steps!r}")
        self._arguments = (data, steps, batch_size, layer_by_layer, verbose)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        recalibrate_batch_norm(self.model, *self._arguments)
