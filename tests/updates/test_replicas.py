"""Updates on several replicas: the same values everywhere, and those of one device."""

from __future__ import annotations

import numpy as np
import pytest

from tests.updates.replicas import run


@pytest.mark.backends("tensorflow")
def test_two_replicas_equal_one_device() -> None:
    two, one = run(2), run(1)
    rng = np.random.default_rng(0)
    x = rng.normal(2.0, 3.0, size=(32, 6)).astype("float32")
    mean, variance = np.zeros(6), np.ones(6)
    for i in list(range(0, 32, 8)) * 2:
        halves = x[i : i + 8].reshape(2, 4, 6)
        mean = (mean + halves.mean(1).mean(0)) / 2
        variance = (variance + halves.var(1).mean(0)) / 2
    for policy in ("default", "chosen"):
        for replica in (0, 1):  # in plain Keras each replica has statistics of its own
            found = two[f"{policy}/moving_mean/{replica}"]
            np.testing.assert_allclose(found, mean, rtol=1e-4)
            found = two[f"{policy}/moving_variance/{replica}"]
            np.testing.assert_allclose(found, variance, rtol=1e-4)
    same = [name for name in one if name.startswith(("average", "weights", "total"))]
    assert len(same) == 5
    for name in same:
        np.testing.assert_allclose(two[name], one[name], atol=2e-6, rtol=1e-5)
    assert not np.allclose(one["average/0"], one["weights/head/kernel"], atol=1e-3)
