"""What each replica holds for itself is resumed as such."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PROGRAM = Path(__file__).with_name("replicas.py")


@pytest.mark.backends("tensorflow")
def test_a_run_on_two_replicas_is_resumed() -> None:
    out = Path("weights.npz").absolute()
    subprocess.run([sys.executable, str(PROGRAM), str(out)], check=True)
    with np.load(out) as archive:
        found = dict(archive)

    def weights(run: str) -> dict[str, np.ndarray]:
        return {k.removeprefix(run): v for k, v in found.items() if k.startswith(f"{run}/")}

    for kind in ("summed", "clipped"):
        one, two = weights(f"{kind}/one"), weights(f"{kind}/two")
        assert len(one) == 4
        for key, value in one.items():
            np.testing.assert_allclose(two[key], value, atol=1e-6)
        again = weights(f"{kind}/2 then 2")
        assert again.keys() == two.keys()
        for key, value in two.items():  # killed within an accumulation: the same bits
            np.testing.assert_array_equal(again[key], value)
        for others in ("2 then 1", "1 then 2"):  # the sum of the gradients is kept
            for key, value in weights(f"{kind}/{others}").items():
                np.testing.assert_allclose(value, two[key], atol=1e-6)

    # In a plain Keras model each replica has batch-norm statistics of its own.
    two, again = weights("plain/two"), weights("plain/2 then 2")
    assert not np.array_equal(two["/norm/moving_mean/0"], two["/norm/moving_mean/1"])
    for key, value in two.items():
        np.testing.assert_array_equal(again[key], value)
    on_one = weights("plain/2 then 1")
    for name in ("moving_mean", "moving_variance"):
        mean = (two[f"/norm/{name}/0"] + two[f"/norm/{name}/1"]) / 2
        np.testing.assert_allclose(on_one[f"/norm/{name}/0"], mean, rtol=1e-6)
