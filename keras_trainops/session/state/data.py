"""The position of a run in its data, and the way back to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras_trainops import keras_private
from keras_trainops.backends import backend
from keras_trainops.session.state import randomness
from keras_trainops.session.state.record import DataState, Position


class DataPosition:
    """Follow the data of a `fit`.

    Shuffled data take their order from global random generators, or from the number of previous
    iterations over a dataset. So the generators' states are kept at three moments: when `fit`
    began, when the current pass over the data was made, and when its first batch was about to be
    taken.

    Args:
        iterator: Keras's iterator over the epochs.
        resumed: The `state` saved by the resumed run, None for a new run.

    Attributes:
        epochs: The `keras_private.EpochData` of the iterator, which calls some of the methods
            below.
    """

    def __init__(self, iterator: Any, resumed: DataState | None) -> None:
        self._resumed = resumed
        self._pending: DataState | None = None
        # The saved generator states, while the batches before the saved position are skipped.
        self._skipping: Mapping[str, Any] | None = None
        self._before_batch: dict[str, Any] | None = None
        if resumed is not None:
            randomness.restore(resumed.random["fit"])
        self._at_fit = self._made = self._used = randomness.state()
        self.epochs = keras_private.EpochData(iterator, self, backend())

    def resume(self) -> None:
        """Let the next epoch start at the saved position."""
        self._pending = self._resumed

    def pass_made(self) -> None:
        """Called by `EpochData` before it makes a pass over the data."""
        self._made = randomness.state()

    def pass_used(self) -> None:
        """Called by `EpochData` before the first batch of a pass is taken."""
        if self._skipping is not None:
            randomness.restore(self._skipping["used"])
        self._used = randomness.state()

    def epoch_begins(self) -> None:
        """Called by `EpochData`.

        Raises:
            ValueError: If the saved batch is not at the end of a block of steps.
        """
        resumed, self._pending = self._pending, None
        if resumed is None:
            return
        at, states, epochs = resumed.position, resumed.random, self.epochs
        if at.batch % epochs.steps_per_execution:
            raise ValueError(
                f"The resumed run stopped at batch {at.batch} of its epoch, which is not a "
                f"multiple of steps_per_execution={epochs.steps_per_execution}: compile the model "
                "with the original `steps_per_execution`."
            )
        epochs.repeat(at.passes, at.epoch)
        epochs.skip(at.batch)
        if at.goes_on:
            self._skipping = states
            randomness.restore(states["made"])
            if at.taken != at.batch or not at.batch:
                epochs.continue_pass(at.taken - at.batch)
        else:
            randomness.restore(states["now"])

    def skipped(self) -> None:
        """Called by `EpochData` after the batches before the saved position were skipped."""
        if self._skipping is not None:
            randomness.restore(self._skipping["now"])
            self._skipping = None

    def batch_taken(self) -> None:
        """Called by `EpochData` if taking a batch may draw random numbers before callbacks run."""
        self._before_batch = randomness.state()

    def state(self, epoch: int, batch: int, announced: bool) -> DataState:
        """Return the state to save.

        Args:
            epoch: The current epoch, or the next one between two epochs.
            batch: Number of batches of it that were trained.
            announced: If True, Keras has already announced the next batches to callbacks.
        """
        within = batch > 0
        position = Position(
            epoch,
            batch,
            self.epochs.continues_pass(within),
            self.epochs.passes_before(within),
            self.epochs.taken(within, announced),
        )
        states = {"fit": self._at_fit, "made": self._made, "used": self._used}
        before = self._before_batch if announced else None
        states["now"] = before or randomness.state()
        documents = {name: randomness.to_document(s) for name, s in states.items()}
        return DataState(position, documents, self.epochs.batch_size)
