"""What each replica holds for itself is resumed as such."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import assert_same

PROGRAM = Path(__file__).with_name("replica_runs.py")


def trained(kind: str) -> dict[str, dict[str, np.ndarray]]:
    """The weights that each run left, by `path/replica`."""
    out = Path("weights.npz").absolute()
    subprocess.run([sys.executable, str(PROGRAM), str(out), kind], check=True)
    runs: dict[str, dict[str, np.ndarray]] = {}
    with np.load(out) as archive:
        for key, value in archive.items():
            run, _, path = key.partition("/")
            runs.setdefault(run, {})[path] = value
    return runs


@pytest.mark.backends("tensorflow")
@pytest.mark.parametrize("kind", ["summed", "clipped"])
def test_a_run_is_resumed_within_an_accumulation(kind: str) -> None:
    runs = trained(kind)
    one, two = runs["one"], runs["two"]
    assert (len(one), len(two)) == (4, 8)
    for key, value in one.items():
        np.testing.assert_allclose(two[key], value, atol=1e-6)
    assert_same(list(runs["2 then 2"].values()), list(two.values()))
    for others in ("2 then 1", "1 then 2"):  # the sum of the gradients is kept
        for key, value in runs[others].items():
            np.testing.assert_allclose(value, two[key], atol=1e-6)


@pytest.mark.backends("tensorflow")
def test_each_replica_of_a_plain_model_keeps_its_batch_statistics() -> None:
    runs = trained("plain")
    two = runs["two"]
    assert not np.array_equal(two["norm/moving_mean/0"], two["norm/moving_mean/1"])
    assert_same(list(runs["2 then 2"].values()), list(two.values()))
    for name in ("moving_mean", "moving_variance"):
        mean = (two[f"norm/{name}/0"] + two[f"norm/{name}/1"]) / 2
        np.testing.assert_allclose(runs["2 then 1"][f"norm/{name}/0"], mean, rtol=1e-6)
