"""One number everywhere: the same run by other routes gives the same weights."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from tests.training import routes
from tests.training.routes import Route

ROOT = Path(__file__).parents[2]
OTHER_BACKENDS = ("jax", "torch")


@functools.cache
def run(**options: Any) -> dict[str, Any]:
    """Each route is taken once: several tests compare with the same one."""
    return routes.take(Route(**options))


def start(route: Route, backend: str = keras.backend.backend()) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        route.as_program(),
        env={**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], end: str) -> dict[str, Any]:
    _, error = process.communicate()
    assert process.returncode == 0, error
    with np.load(end) as archive:
        return dict(archive)


def apart(first: dict[str, Any], second: dict[str, Any]) -> float:
    names = [name for name in first if name.startswith("w")]
    assert names == [name for name in second if name.startswith("w")]
    assert len(names) == 11
    assert first["iterations"] == second["iterations"]
    np.testing.assert_allclose(first["norms"], second["norms"], rtol=1e-4)
    return max(float(np.abs(first[name] - second[name]).max()) for name in names)


@pytest.mark.backends("tensorflow")  # it starts the others
def test_the_backends_agree_after_20_steps() -> None:
    start_weights = routes.initial_weights()
    np.savez("start.npz", **start_weights)
    routes_of = {b: Route(start="start.npz", end=f"{b}.npz") for b in OTHER_BACKENDS}
    others = {backend: start(route, backend) for backend, route in routes_of.items()}
    one = routes.take(Route(start="start.npz"))
    assert one["iterations"] == 20
    for backend, process in others.items():
        assert apart(one, finish(process, f"{backend}.npz")) <= 1e-5, backend
    assert max(np.abs(start_weights[name] - one[name]).max() for name in start_weights) > 1e-2


def test_accumulation_equals_the_large_batch() -> None:
    assert apart(run(accumulate=4), run()) <= 1e-5


@pytest.mark.backends("tensorflow")
@pytest.mark.parametrize("accumulate", [None, 2], ids=["plain", "accumulation"])
def test_two_replicas_equal_one_device(accumulate: int | None) -> None:
    two, one = (run(accumulate=accumulate, devices=kind) for kind in ("mirrored", "one"))
    assert apart(two, one) <= 1e-6


@pytest.mark.backends("tensorflow")
def test_data_of_unknown_length_on_two_replicas() -> None:
    """Stock Keras counts one update more in each epoch."""
    known = run(devices="mirrored", seeded=True)
    assert apart(run(devices="mirrored", seeded=True, unknown=True), known) == 0


@pytest.mark.backends("jax")
def test_four_devices_equal_one() -> None:
    assert apart(run(devices="data"), run()) <= 1e-6


def test_a_saved_run_continues_in_a_new_process() -> None:
    """With noise, dropout and the state of transforms; bit for bit."""
    routes.take(Route(seeded=True, epochs=2, save="middle.keras"))
    process = start(Route(seeded=True, epochs=2, load="middle.keras", end="continued.npz"))
    whole = run(seeded=True, epochs=4)
    continued = finish(process, "continued.npz")
    continued["norms"] = np.concatenate([whole["norms"][:2], continued["norms"]])
    assert apart(continued, whole) == 0


DEVICES = [
    pytest.param("one", id="one"),
    pytest.param("mirrored", id="mirrored", marks=pytest.mark.backends("tensorflow")),
    pytest.param("data", id="data", marks=pytest.mark.backends("jax")),
]


@pytest.mark.parametrize("devices", DEVICES)
def test_a_bad_batch_on_one_replica_skips_everywhere(devices: str) -> None:
    out = run(devices=devices, bad="skip", epochs=2)
    assert out["iterations"] == 6  # of 8: one in each epoch
    assert np.isfinite(out["w0"]).all()
    if devices != "one":
        assert apart(out, run(devices="one", bad="skip", epochs=2)) <= 1e-6


@pytest.mark.parametrize("devices", DEVICES)
def test_a_bad_loss_on_one_replica_stops_training(devices: str) -> None:
    out = run(devices=devices, bad="loss")
    assert "The loss became NaN or infinite at step 1 " in str(out["error"])
    assert out["iterations"] == 1
    assert np.isfinite(out["w0"]).all()


@pytest.mark.backends("tensorflow")
def test_an_overflow_on_one_replica_skips_on_both() -> None:
    """In stock Keras the loss scale optimizer looks at the first replica's gradients only."""
    options = {"policy": "mixed_float16", "bad": "skip", "epochs": 2}
    one, two = run(**options), run(**options, devices="mirrored")
    assert all(np.isfinite(two[name]).all() for name in two if name.startswith("w"))
    assert apart(two, one) <= 2e-3  # float16 sums in another order
    assert one["iterations"] < 8


QUIET = """
import sys
import keras, numpy as np, keras_trainops as kt
inputs = keras.Input((4,))
model = kt.TrainOpsModel(inputs, keras.layers.Dense(2, name="head")(inputs))
chain = [kt.transforms.Monitor(), kt.transforms.AdaptiveClip(), kt.transforms.ClipByNorm(1.0)]
model.compile("adam", "mse", gradient_transforms=chain, check_numerics=True,
              updates=[kt.updates.LayerUpdates()])
start = kt.WarmStart({"head/bias": np.ones(2)}, verbose=0)
model.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0, callbacks=[start])
print("tensorflow" in sys.modules)
"""


@pytest.mark.backends("jax", "torch")
def test_tensorflow_is_not_imported() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", QUIET], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "False"
