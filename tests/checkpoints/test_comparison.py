from __future__ import annotations

import numpy as np
import pytest

from keras_trainops.checkpoints.comparison import Unlike, compare
from keras_trainops.checkpoints.formats.arrays import ArraysCheckpoint

pytestmark = pytest.mark.once


def test_reports_each_kind_of_difference() -> None:
    first = {"same": [1.0], "shape": np.ones(2), "dtype": np.ones(2), "value": [1.0, 2.0], "a": [0]}
    second = {"same": [1.0], "shape": np.ones(3), "dtype": np.ones(2, "f4"), "value": [1.0, 4.0]}
    found = compare(ArraysCheckpoint(first), ArraysCheckpoint({**second, "b": [0]}))
    assert (found.only_first, found.only_second) == (["a"], ["b"])
    assert found.shapes == [Unlike("shape", (2,), (3,))]
    assert found.dtypes == [Unlike("dtype", "float64", "float32")]
    assert [tuple(value) for value in found.values] == [("value", 1, 2, 2.0, 0.5, 0)]
    assert found.equal == 1
    assert not found.same


def test_ignores_keys_and_reports_progress() -> None:
    first, second = {"w": np.ones(600_000), "step": [1]}, {"w": np.ones(600_000), "step": [2]}
    counts: list[int] = []
    found = compare(
        ArraysCheckpoint(first),
        ArraysCheckpoint(second),
        leave_out=["step"],
        progress=counts.append,
    )
    assert found.same
    assert found.equal == 1
    assert len(counts) > 1
    assert sum(counts) == 600_000 * 8


def test_tolerance_is_relative_to_the_second() -> None:
    small, large = ArraysCheckpoint({"x": [1.0]}), ArraysCheckpoint({"x": [2.0]})
    assert compare(small, large, relative=0.5).same
    assert not compare(large, small, relative=0.5).same
    assert compare(large, small, absolute=0.5, relative=0.5).same
