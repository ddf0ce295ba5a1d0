"""What a program asks for that is other than in the run it resumes: refused, or said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from keras_trainops.session.record import Record
from keras_trainops.session.store import ARRAYS, SavedStep


def refuse_fewer_batches(checkpoint: SavedStep, batches: int | None) -> None:
    """Raises if an epoch ends before the batch that the run goes on with.

    Args:
        checkpoint: It stands within an epoch.
        batches: How many batches an epoch has now, None where that is not known.

    Raises:
        ValueError: If there is no such batch; the message says what to do.
    """
    record = checkpoint.record
    if batches is None or record.batch < batches:
        return
    if record.batch == batches and record.batches is None:  # nobody knew that the epoch ends there
        return
    had = "" if record.batches is None else f" of {record.batches}"
    raise ValueError(
        f"Cannot resume from '{checkpoint.path}': {record.batch} batches{had} of epoch "
        f"{record.epoch + 1} were trained, and now an epoch has {batches}. Give `fit` the data and "
        "the batch size it had, or begin a run in another log directory from these weights: "
        f"`WarmStart('{checkpoint.path / ARRAYS}')`."
    )


def of_data(record: Record, batch_size: int | None, batches: int | None) -> Iterator[str]:
    """Says where batches have another size, or epochs another number of them.

    Args:
        record: Where the run stands that is resumed.
        batch_size: The size of a batch now, None where that is not known.
        batches: How many batches an epoch has now, None where that is not known.
    """
    had = None if record.data is None else record.data.batch_size
    pairs = [
        (batch_size, had, "samples a batch"),
        (batches, record.batches, "batches an epoch"),
    ]
    others = [
        f"{now} {what} where there were {then}"
        for now, then, what in pairs
        if now is not None and then is not None and now != then
    ]
    if others:
        yield f"the data are others than in the run that is resumed: {', '.join(others)}"


def of_learning_rates(
    asked: Sequence[float], began: Sequence[float], resumed: Sequence[float]
) -> Iterator[str]:
    """Says where the optimizer was given a learning rate that the checkpoint's takes the place of.

    Args:
        asked: Those the optimizer came with.
        began: Those it came with when the run began. Callbacks may have changed them since.
        resumed: Those of the checkpoint.
    """
    if asked not in (began, resumed):
        now, then, used = (
            ", ".join(f"{n:.6g}" for n in rates) for rates in (asked, began, resumed)
        )
        yield (
            f"the optimizer was given the learning rate {now}, and {then} when the run began: the "
            f"checkpoint's, {used}, is used. To change it, set it in a callback"
        )


def _joined(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:.6g}" for number in numbers)
