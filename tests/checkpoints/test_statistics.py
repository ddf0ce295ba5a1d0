from __future__ import annotations

import numpy as np
import pytest

from keras_trainops.checkpoints.statistics import Statistics, statistics

pytestmark = pytest.mark.once


@pytest.mark.parametrize("count", [1, 2, 7])
def test_pieces_give_the_statistics_of_the_whole(count: int) -> None:
    values = np.random.default_rng(0).normal(1e8, 3.0, 1000)
    found = statistics(np.array_split(values, count))
    assert (found.minimum, found.maximum) == (values.min(), values.max())
    assert found.mean == pytest.approx(values.mean(), rel=1e-12)
    assert found.std == pytest.approx(values.std(), rel=1e-6)


def test_counts_values_that_are_not_finite() -> None:
    pieces = [np.array([[np.nan, 2.0], [np.inf, -np.inf]]), np.array([np.nan])]
    assert statistics(pieces) == Statistics(2.0, 2.0, 2.0, 0.0, 2, 2)
    assert statistics(pieces[1:]) == Statistics(None, None, None, None, 1, 0)
    assert statistics([]) == Statistics(None, None, None, None, 0, 0)
