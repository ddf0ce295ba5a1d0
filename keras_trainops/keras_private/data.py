"""Private Keras API of the data that `fit` takes.

`tests/test_keras_private.py` tests the behaviour that each use relies on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Protocol

import keras
from keras.src.trainers import data_adapters


class _Ahead:
    """An iterator that can look ahead."""

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator = iterator
        self._next: list[Any] = []

    def __iter__(self) -> _Ahead:
        return self

    def __next__(self) -> Any:
        return self._next.pop() if self._next else next(self._iterator)

    def has_more(self) -> bool:
        if not self._next:
            self._next = list(itertools.islice(self._iterator, 1))
        return bool(self._next)


class Trainer(Protocol):
    """How Keras's trainer takes data on a backend; see `keras_trainops.backends.Backend`."""

    draws_order_at_once: bool
    needs_a_batch: bool
    takes_batches_early: bool

    def samples_of_all(self, count: int) -> int:
        """Return how many samples the batches of all processes have together."""
        ...


class EpochData:
    """The data of one `fit`, as Keras's loop over epochs takes it.

    A *pass* is one iteration over the data. Keras makes one for each epoch, and continues it in the
    next epoch with `steps_per_epoch`. Some passes are never used.

    Args:
        iterator: Keras's iterator over epochs, which is followed from now on.
        listener: Its methods are called: `pass_made()` before a pass is made, `pass_used()` before
            its first batch, `epoch_begins()`, `skipped()` before the first batch that is not
            skipped, and `batch_taken()` before a batch is taken that may draw random numbers
            earlier than callbacks are called.
        trainer: How the backend's trainer takes data.

    Attributes:
        kind: The name of Keras's adapter for the data.
        passes: The number of passes that have drawn an order of a dataset.
        trained: The number of batches of this epoch that were trained on.
    """

    def __init__(self, iterator: Any, listener: Any, trainer: Trainer) -> None:
        self._of, self._listener, self._trainer = iterator, listener, trainer
        self._epoch, self._pass = iterator._enumerate_iterator, iterator._get_iterator
        iterator._enumerate_iterator, iterator._get_iterator = self._enumerate, self._make
        self._adapter = iterator.data_adapter
        self.kind = type(self._adapter).__name__
        self.passes = self.trained = self._skip = 0
        self._current: Any = None
        self._ahead: _Ahead | None = None
        self._eager = trainer.draws_order_at_once
        # An epoch that is resumed at its end has no batch left. If the number of batches is unknown
        # (after one epoch Keras only thinks it knows), look ahead.
        self._looks_ahead = trainer.needs_a_batch and iterator.num_batches is None
        whole = self.kind == "ArrayDataAdapter" and self.shuffled != "batch"
        self._taken_early = trainer.takes_batches_early and not whole

    def _make(self) -> Any:
        self.passes += self._eager
        self._listener.pass_made()
        return self._pass()

    def _enumerate(self) -> Iterator[tuple[int, int, Any]]:
        self._listener.epoch_begins()
        skip, self._skip = self._skip, 0
        self.trained = skip
        for begin, end, iterator in self._epoch():
            self._see(iterator)
            if self._ahead is not None:
                iterator = self._ahead
            if begin < skip:
                self._take(iterator, end + 1 - begin)
                continue
            if skip and self._ahead is not None:
                # The resumed run had also looked ahead before its state was saved.
                self._ahead.has_more()
            self._listener.skipped()
            if self._taken_early:
                self._listener.batch_taken()
            yield begin, end, iterator
            self.trained = min(end + 1, self._of.num_batches or end + 1)
        self._listener.skipped()

    def _see(self, iterator: Any) -> None:
        if iterator is self._current:
            return
        self._current, self._ahead = iterator, None
        self.passes += not self._eager
        if self._looks_ahead:
            self._ahead = _Ahead(iterator)
        self._listener.pass_used()

    def _take(self, iterator: Iterator[Any], count: int) -> None:
        taken = sum(1 for _ in itertools.islice(iterator, count))
        if taken < count and not self._of.num_batches:
            raise ValueError(
                "The data have fewer batches than the resumed run had already seen. Pass the "
                "original data and batch size to `fit`."
            )

    def has_more(self) -> bool:
        """Return whether this epoch has another batch, as far as that is known."""
        return self._ahead is None or self._ahead.has_more()

    @property
    def shuffled(self) -> bool | str:
        """The `shuffle` argument of `fit`: True, False, or "batch" to shuffle within batches."""
        return getattr(self._adapter, "_shuffle", False)

    @property
    def source(self) -> Any:
        """The dataset or loader that the data come from; None if there is none."""
        for name in ("_dataset", "_dataloader", "py_dataset"):
            if hasattr(self._adapter, name):
                return getattr(self._adapter, name)
        return None

    @property
    def batch_size(self) -> int | None:
        """The number of samples in a batch, of all processes; None if Keras does not know."""
        size = _batch_size(self._adapter)
        return None if size is None else self._trainer.samples_of_all(size)

    @property
    def steps_per_execution(self) -> int:
        """The number of batches between calls of callbacks."""
        return self._of.steps_per_execution

    def continues_pass(self, within: bool) -> bool:
        """Return whether the next batch comes from the current pass.

        Args:
            within: Whether an epoch is running.
        """
        return within or bool(self._of.steps_per_epoch and self._of._current_iterator is not None)

    def passes_before(self, within: bool) -> int:
        """Return how many passes drew an order before the pass of the next batch."""
        has_drawn = self._eager or within or self._of._current_iterator is self._current
        return self.passes - int(self.continues_pass(within) and has_drawn)

    def taken(self, within: bool, announced: bool) -> int:
        """Return how many batches were taken from the pass of the next batch.

        Args:
            within: Whether an epoch is running.
            announced: Whether Keras has already announced the next batches to callbacks.
        """
        if not self.continues_pass(within):
            return 0
        return self._of._steps_seen - (self.steps_per_execution if announced else 0)

    def repeat(self, passes: int, epochs: int) -> None:
        """Replay passes and epochs so that stateful datasets reach the saved point."""
        if self.kind == "TFDatasetAdapter":
            for _ in range(passes - self.passes):
                iter(self._pass() if self._eager else self.source)
        self.passes = passes
        if self.kind == "PyDatasetAdapter":
            for _ in range(epochs):
                self.source.on_epoch_begin()
                self.source.on_epoch_end()

    def skip(self, batches: int) -> None:
        """Skip the first batches of the next epoch."""
        self._skip = batches

    def continue_pass(self, batches: int) -> None:
        """Recreate the pass that epochs with `steps_per_epoch` share, and skip batches of it."""
        iterator = iter(self._make())
        self._of._current_iterator = iterator
        self._see(iterator)
        self._take(iterator, batches)
        self._of._steps_seen = batches


def batches(data: Any, batch_size: int | None = None) -> Iterator[Any]:
    """Yield the inputs of each batch of data that `fit` accepts; the `x` of `(x, y)`."""
    if isinstance(data, tuple):
        data, *_ = data
    adapter = data_adapters.get_data_adapter(data, batch_size=batch_size)
    for batch in adapter.get_numpy_iterator():
        yield keras.utils.unpack_x_y_sample_weight(batch)[0]


def has_unseeded_shuffle(dataset: Any) -> bool:
    """Return True if a `tf.data.Dataset` shuffles without a seed: both its seeds are then 0."""
    if _seeds_of(dataset) == [0, 0]:
        return True
    return any(map(has_unseeded_shuffle, getattr(dataset, "_inputs", list)()))


def facts_of_data(iterator: Any) -> dict[str, Any]:
    """Return the sizes of data, by their names for messages; None where Keras does not know.

    Args:
        iterator: Keras's iterator over epochs.
    """
    return {
        "the batch size": _batch_size(iterator.data_adapter),
        "the number of batches in an epoch": iterator.num_batches,
    }


def _batch_size(adapter: Any) -> int | None:
    try:
        size = adapter.batch_size
    except (AttributeError, IndexError, ValueError):  # a dataset distributed over replicas
        return None
    return None if size is None else int(size)


def dataset_of(iterator: Any) -> Any:
    """Return the `tf.data.Dataset` that an iterator over epochs takes its data from, or None."""
    dataset = getattr(iterator.data_adapter, "_dataset", None)
    return dataset if hasattr(dataset, "_inputs") else None


def order_of_dataset(dataset: Any) -> tuple[list[str], list[list[int]]]:
    """Return what decides the order of a dataset.

    Args:
        dataset: A `tf.data.Dataset`.

    Returns:
        The texts it is made of, such as names of files, and the seeds of its shuffles.
    """
    texts: list[str] = []
    own = _seeds_of(dataset)
    seeds = [own] if own else []
    names = getattr(dataset, "_filenames", None)
    inputs = list(dataset._inputs())
    if hasattr(names, "_inputs") and not inputs:
        inputs = [names]
    for tensor in [names, *getattr(dataset, "_tensors", ())]:
        is_known = hasattr(tensor, "numpy")
        if is_known and tensor.dtype.name == "string":
            texts += [text.decode(errors="replace") for text in tensor.numpy().reshape(-1)]
    for each in inputs:
        more_texts, more_seeds = order_of_dataset(each)
        texts, seeds = texts + more_texts, seeds + more_seeds
    return texts, seeds


def _seeds_of(dataset: Any) -> list[int]:
    """Return the two seeds of a dataset that shuffles; of another one, nothing."""
    if not hasattr(dataset, "_seed") or not hasattr(dataset, "_seed2"):
        return []
    return [int(dataset._seed), int(dataset._seed2)]
