"""Callbacks of a `fit`, which cost nothing in a batch that none of them listens to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras


class BatchCallbacks(keras.callbacks.CallbackList):
    """The list of callbacks that `fit` calls.

    Keras passes every batch to a thread, which waits for the logs and then calls all callbacks,
    though most listen to epochs alone. Here that happens only if one listens to batches.

    Args:
        callbacks: The callbacks that `fit` was given.
        model: The model that is trained. They see it when Keras has built it.
        verbose: As in `fit`.
        epochs: As in `fit`.
    """

    def __init__(self, callbacks: Sequence[Any], model: Any, verbose: Any, epochs: int) -> None:
        super().__init__(list(callbacks), add_history=True, add_progbar=verbose != 0)
        limit: Callable[[], int | None] = getattr(keras.config, "max_epochs", lambda: None)
        self._trained = model
        self._of_fit = {"verbose": verbose, "epochs": min(epochs, limit() or epochs)}

    def on_train_begin(self, logs: Any = None) -> None:
        """Begin, after showing the callbacks what Keras knows about the data by now."""
        steps = getattr(self._trained.train_ops.fit.iterator, "num_batches", None)
        self.set_model(self._trained)
        self.set_params({**self._of_fit, "steps": steps})
        super().on_train_begin(logs)

    def _hear(self, *hooks: str) -> bool:
        """Return whether a callback overrides one of these methods."""
        defaults = [(hook, getattr(keras.callbacks.Callback, hook)) for hook in hooks]
        return any(
            getattr(getattr(callback, hook), "__func__", None) is not default
            for callback in self.callbacks
            for hook, default in defaults
        )

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self._hear("on_train_batch_begin", "on_batch_begin"):
            super().on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._hear("on_train_batch_end", "on_batch_end"):
            super().on_train_batch_end(batch, logs)

    def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self._hear("on_test_batch_begin"):
            super().on_test_batch_begin(batch, logs)

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._hear("on_test_batch_end"):
            super().on_test_batch_end(batch, logs)
