"""Averages of the logs that a user's training step returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras


class StepLogs:
    """The logs of a step, averaged over an epoch.

    They are not among the model's `metrics`, which users update with predictions and targets. Keras
    averages the log "loss" itself.

    Args:
        names: The names of the other logs.
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        self._means = {name: keras.metrics.Mean(name=name) for name in names}

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables of the averages."""
        found: list[keras.Variable] = []
        for mean in self._means.values():
            found += mean.variables
        return found

    def update(self, name: str, value: Any, size: Any) -> None:
        """Add the value of one batch.

        Args:
            name: The name of the log.
            value: A scalar.
            size: The number of samples in the batch, which is the weight of the value.

        Raises:
            KeyError: If the step did not return this log before.
        """
        if name not in self._means:
            raise KeyError(
                f"The step returns a log {name!r} that it did not return before: it must return "
                f"the same ones every time. Before: {', '.join(self._means) or 'none'}"
            )
        self._means[name].update_state(value, sample_weight=size)

    def result(self) -> dict[str, Any]:
        """Return the averages by name."""
        return {name: mean.result() for name, mean in self._means.items()}

    def reset(self) -> None:
        """Start new averages."""
        for mean in self._means.values():
            mean.reset_state()
