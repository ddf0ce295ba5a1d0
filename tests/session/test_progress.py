from __future__ import annotations

import pytest

from keras_trainops.session.progress import FitLength, Progress


@pytest.mark.parametrize(("batches", "expected"), [(10, 10), (None, 12), (20, 12)])
def test_limits_batches_to_an_epoch(batches: int | None, expected: int) -> None:
    assert FitLength(1, batches, 4, None).batches_until(12) == expected


def test_reaches_a_limit_only_if_there_is_one() -> None:
    limited = FitLength(1, 10, 1, 7)
    assert [limited.reaches_limit(step) for step in (6, 7, 8)] == [False, True, True]
    assert not FitLength(1, 10, 1, None).reaches_limit(10**9)


def test_counts_steps_from_the_start_of_the_epoch() -> None:
    progress = Progress(step=23, epoch_start=20)
    progress.begin_batch(5)
    assert progress.step == 25
    progress.end_epoch()
    progress.begin_batch(2)
    assert progress.step == 27
