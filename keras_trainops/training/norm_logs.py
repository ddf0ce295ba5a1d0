"""Averages of the gradient norms that `Monitor`s watch, for the logs of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_trainops.transforms.monitoring import Monitor, norm_metrics


class NormLogs:
    """The norms of a model's monitors, averaged over an epoch.

    They are not among the model's `metrics`, which users update with predictions and targets.

    Args:
        monitors: The monitors of the model's chain of transforms.

    Attributes:
        updates: How often `update` was called or, in compiled steps, traced.

    Raises:
        ValueError: If two monitors share a label.
    """

    def __init__(self, monitors: Sequence[Monitor] = ()) -> None:
        self.monitors = list(monitors)
        self.updates = 0
        self._metrics = norm_metrics(self.monitors)

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables of the averages."""
        found: list[keras.Variable] = []
        for metric in self._metrics:
            found += metric.variables
        return found

    @property
    def names(self) -> set[str]:
        """The labels of the norms."""
        return {metric.name for metric in self._metrics}

    def update(self) -> None:
        """Add the norms of the weight update that just happened, if there was one."""
        self.updates += 1
        metrics = iter(self._metrics)
        for monitor in self.monitors:
            norms, weights = monitor.take()
            for i in range(len(monitor.labels)):
                next(metrics).update_state(norms[i], sample_weight=weights[i])

    def updated(self) -> dict[str, Any]:
        """Add the norms of the weight update that just happened, and return the averages."""
        self.update()
        return self.result()

    def result(self) -> dict[str, Any]:
        """Return the averages by label."""
        return {metric.name: metric.result() for metric in self._metrics}

    def reset(self) -> None:
        """Start new averages."""
        for metric in self._metrics:
            metric.reset_state()
