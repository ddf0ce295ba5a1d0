"""The length of a `fit`, and its progress."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from keras_trainops.session.settings import Settings


@dataclass(frozen=True)
class FitLength:
    """The number of steps that a `fit` trains.

    Attributes:
        epochs: Number of epochs.
        batches: Number of batches per epoch, None if unknown.
        block: Number of batches that are trained between two calls of callbacks.
        stop_at_step: The step after which training stops, None for no limit.
    """

    epochs: int
    batches: int | None
    block: int
    stop_at_step: int | None

    @classmethod
    def of(cls, model: Any, params: Mapping[str, Any], settings: Settings) -> FitLength:
        """Return the length of the current `fit`.

        Args:
            model: The model that it trains.
            params: The parameters that Keras gives to callbacks.
            settings: The settings of the session.
        """
        block = model.steps_per_execution
        return cls(params["epochs"], params["steps"], block, settings.stop_at_step)

    def batches_until(self, batch: int) -> int:
        """Return `batch`, but not more than an epoch has."""
        return batch if self.batches is None else min(batch, self.batches)

    def reaches_limit(self, step: int) -> bool:
        """Return True if training stops at `step` or before."""
        return self.stop_at_step is not None and step >= self.stop_at_step

    @property
    def limit_reached(self) -> str:
        """The reason why training ends at `stop_at_step`, for the log."""
        return f"stop_at_step={self.stop_at_step} is reached"


@dataclass
class Progress:
    """The position of a run.

    Attributes:
        step: Number of batches trained by all runs on the directory.
        epoch: The current epoch.
        batch: The first batch of the block that is being trained.
        epoch_start: The step at which the epoch began.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    epoch_start: int = 0

    def begin_batch(self, batch: int) -> None:
        """Move to a batch of the current epoch."""
        self.batch = batch
        self.step = self.epoch_start + batch

    def end_epoch(self) -> None:
        """Let the next epoch begin at the current step."""
        self.epoch_start = self.step


@dataclass
class Ending:
    """The end of a run.

    Attributes:
        reason: The reason why the run does not continue when it is started again; empty if it
            does.
        at_limit: If True, the block that is being trained reaches `stop_at_step`.
        is_final: If True, nothing is left to train, and the last checkpoint is saved.
    """

    reason: str = ""
    at_limit: bool = False
    is_final: bool = False
