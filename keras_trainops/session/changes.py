"""Differences between a `fit` and the run that it resumes: raise, or describe them for the log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from keras_trainops.session.state.record import Record
from keras_trainops.session.storage.store import ARRAYS, SavedStep


def check_enough_batches(checkpoint: SavedStep, batches: int | None) -> None:
    """Raise if the epoch ends before the batch at which the run resumes.

    Args:
        checkpoint: A checkpoint within an epoch.
        batches: The current number of batches per epoch, None if unknown.

    Raises:
        ValueError: If the epoch has no such batch; the message says what to do.
    """
    record = checkpoint.record
    if batches is None or record.batch < batches:
        return
    if record.batch == batches and record.batches is None:  # an unknown number: the epoch ends here
        return
    total = "" if record.batches is None else f" of {record.batches}"
    raise ValueError(
        f"Cannot resume from '{checkpoint.path}': {record.batch} batches{total} of epoch "
        f"{record.epoch + 1} were trained, but an epoch now has {batches}. Call `fit` with the "
        "original data and batch size, or start a run in another log directory from these weights: "
        f"`WarmStart('{checkpoint.path / ARRAYS}')`."
    )


def data_changes(record: Record, batch_size: int | None, batches: int | None) -> Iterator[str]:
    """Yield a line for the log if the batch size or the number of batches has changed.

    Args:
        record: The record of the resumed checkpoint.
        batch_size: The current batch size, None if unknown.
        batches: The current number of batches per epoch, None if unknown.
    """
    saved_size = None if record.data is None else record.data.batch_size
    values = [
        (batch_size, saved_size, "samples per batch"),
        (batches, record.batches, "batches per epoch"),
    ]
    differences = [
        f"{now} {unit} instead of {then}"
        for now, then, unit in values
        if now is not None and then is not None and now != then
    ]
    if differences:
        yield f"the data differ from the resumed run's: {', '.join(differences)}"


def learning_rate_changes(
    compiled: Sequence[float], initial: Sequence[float], resumed: Sequence[float]
) -> Iterator[str]:
    """Yield a line for the log if the checkpoint overrides a newly chosen learning rate.

    Args:
        compiled: The optimizer's learning rates before it was restored.
        initial: Its learning rates when the run began. Callbacks may have changed them since.
        resumed: The learning rates of the checkpoint.
    """
    if compiled not in (initial, resumed):
        yield (
            f"the optimizer was compiled with learning rate {_joined(compiled)}, and with "
            f"{_joined(initial)} when the run began: the checkpoint's, {_joined(resumed)}, is "
            "used. To change it, set it in a callback"
        )


def _joined(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:.6g}" for number in numbers)
