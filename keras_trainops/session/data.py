"""Where a run stands in its data, and how a resumed one gets there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from keras_trainops import keras_private
from keras_trainops.backends import backend
from keras_trainops.session import randomness
from keras_trainops.session.record import DataState, Position


class DataPosition:
    """Follows the data of a `fit`.

    The order of data that `fit` shuffles comes from global random generators, or from how often a
    dataset was iterated over. So their states at three moments are kept: when `fit` began, when
    the pass over the data that is under way was made, and when its first batch was about to be
    taken.

    Args:
        iterator: Keras's iterator over the epochs.
        resumed: What `state` gave in the run that is resumed; None where none is.
    """

    def __init__(self, iterator: Any, resumed: DataState | None) -> None:
        self._resumed = resumed
        self._pending = False
        self._skipping = False
        self._before_batch: dict[str, Any] | None = None
        if resumed is not None:
            randomness.restore(resumed.random["fit"])
        self._at_fit = self._made = self._used = randomness.state()
        self.epochs = keras_private.EpochData(iterator, self, backend())

    def resume(self) -> None:
        """Has the epoch that begins next go on where the resumed run stood."""
        self._pending = self._resumed is not None

    def pass_made(self) -> None:
        """Called by `EpochData`."""
        self._made = randomness.state()

    def pass_used(self) -> None:
        """Called by `EpochData`."""
        if self._skipping and self._resumed is not None:
            randomness.restore(self._resumed.random["used"])
        self._used = randomness.state()

    def epoch_begins(self) -> None:
        """Called by `EpochData`."""
        if not self._pending or self._resumed is None:
            return
        self._pending = False
        at, states, epochs = self._resumed.position, self._resumed.random, self.epochs
        if at.batch % epochs.steps_per_execution:
            raise ValueError(
                f"The run that is resumed stood at batch {at.batch} of its epoch, which is no "
                f"multiple of steps_per_execution={epochs.steps_per_execution}: compile the model "
                "with the `steps_per_execution` it had."
            )
        epochs.repeat(at.passes, at.epoch)
        epochs.skip(at.batch)
        if at.goes_on:
            self._skipping = True
            randomness.restore(states["made"])
            if at.taken != at.batch or not at.batch:
                epochs.go_on_with_a_pass(at.taken - at.batch)
        else:
            randomness.restore(states["now"])

    def skipped(self) -> None:
        """Called by `EpochData`."""
        if self._skipping and self._resumed is not None:
            self._skipping = False
            randomness.restore(self._resumed.random["now"])

    def batch_taken(self) -> None:
        """Called by `EpochData`."""
        self._before_batch = randomness.state()

    def state(self, epoch: int, batch: int, announced: bool) -> DataState:
        """What is to be saved.

        Args:
            epoch: The epoch that goes on, or the one that comes next.
            batch: How many batches of it were trained on.
            announced: Whether Keras has announced the batches that come next.
        """
        within = batch > 0
        position = Position(
            epoch,
            batch,
            self.epochs.goes_on(within),
            self.epochs.passes_before(within),
            self.epochs.taken(within, announced),
        )
        states = {"fit": self._at_fit, "made": self._made, "used": self._used}
        before = self._before_batch if announced else None
        states["now"] = before or randomness.state()
        documents = {name: randomness.to_document(s) for name, s in states.items()}
        return DataState(position, documents, self.epochs.batch_size)

    def doubt(self) -> str | None:
        """Why the order of the data may not be the same again; None where it is."""
        kind, source = self.epochs.kind, self.epochs.source
        if kind == "ArrayDataAdapter":
            on_tensorflow = backend().shuffles_arrays
            if self.epochs.shuffled and on_tensorflow and keras_private.random_seed() is None:
                return (
                    "arrays are shuffled without a seed: call `keras.utils.set_random_seed`, or "
                    "use `shuffle=False`"
                )
            return None
        if kind == "TFDatasetAdapter":
            return "the dataset is shuffled without a seed" if _has_no_seed(source) else None
        if kind == "TorchDataLoaderAdapter":
            if getattr(source, "generator", None) is not None:
                return "the data loader shuffles with a generator of its own"
            return "workers of the data loader may draw numbers" if source.num_workers else None
        if kind == "PyDatasetAdapter":
            return None
        return "a generator is taken to give the same batches again"


def _has_no_seed(dataset: Any) -> bool:
    """Whether some shuffle in a TensorFlow dataset has no seed: its two seeds are then 0."""

    def sources(dataset: Any) -> Iterator[Any]:
        yield dataset
        for source in getattr(dataset, "_inputs", list)():
            yield from sources(source)

    return any(
        int(part._seed) == 0 and int(part._seed2) == 0
        for part in sources(dataset)
        if hasattr(part, "_seed") and hasattr(part, "_seed2")
    )
