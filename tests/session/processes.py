"""Sessions of several processes; each function here runs in all of them."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_trainops as kt
from keras_trainops.processes import Processes
from keras_trainops.session.agreement import Agreement, Wishes
from keras_trainops.session.state import restoring
from tests.processes.member import Place

ROWS, BATCH, EPOCHS = 48, 8, 3
RANDOM = np.random.default_rng(3)
X = RANDOM.normal(size=(ROWS, 4)).astype("float32")
Y = RANDOM.normal(size=(ROWS, 2)).astype("float32")


@contextlib.contextmanager
def distributed(place: Place) -> Iterator[None]:
    """Distribute as the arguments say: "data", or "model", in which kernels have parts."""
    keras.backend.clear_session(free_memory=False)  # forgets a distribution, too
    layout = place.arguments.get("layout", "data")
    if keras.backend.backend() != "jax" or layout == "none":
        with place.scope():
            yield
        return
    devices = keras.distribution.list_devices()
    if layout == "data":
        distribution: Any = keras.distribution.DataParallel(
            devices=devices, auto_shard_dataset=False
        )
    else:
        mesh = keras.distribution.DeviceMesh((1, len(devices)), ["batch", "model"], devices)
        layouts = keras.distribution.LayoutMap(mesh)
        layouts["hidden/kernel"] = (None, "model")
        layouts["hidden/bias"] = ("model",)
        distribution = keras.distribution.ModelParallel(
            layout_map=layouts, batch_dim_name="batch", auto_shard_dataset=False
        )
    with distribution.scope():
        yield


def net(seed: int = 1) -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((4,))
    x = keras.layers.Dense(8, "tanh", name="hidden")(inputs)
    model = kt.TrainOpsModel(inputs, keras.layers.Dense(2, name="head")(x), name="net")
    model.compile(
        keras.optimizers.Adam(0.01, gradient_accumulation_steps=2),
        "mse",
        metrics=["mae"],
        gradient_transforms=kt.transforms.ClipByGlobalNorm(0.5),
        updates=[kt.updates.MovingAverage(0.9)],
    )
    return model


def data(place: Place, rows: int = ROWS) -> dict[str, Any]:
    """The arguments of `fit` for this process: each global batch has the same rows."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        dataset = tf.data.Dataset.from_tensor_slices((X[:rows], Y[:rows]))
        return {"x": dataset.batch(BATCH)}
    parts = 1 if place.arguments.get("layout") == "model" else place.count
    mine = slice(place.index % parts, rows, parts)
    return {"x": X[mine], "y": Y[mine], "batch_size": BATCH // parts, "shuffle": False}


def whole(variable: keras.Variable) -> np.ndarray:
    """The whole value of a variable, of which this process may have a part."""
    value = variable.value
    if keras.backend.backend() == "jax" and not value.is_fully_addressable:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(value, tiled=True))
    return np.array(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(variable)))


def state(model: keras.Model) -> dict[str, np.ndarray]:
    """All that training changes, apart from metrics."""
    updates = model.train_ops.policy.variables
    variables = [*model.variables, *model.optimizer.variables, *updates]
    return {f"{i}": whole(variable) for i, variable in enumerate(variables)}


def fit(place: Place, logdir: Path, **options: Any) -> keras.Model:
    """Train in a session, as one program of a user does."""
    with distributed(place):
        model = net()
        others = options.pop("callbacks", [])
        session = kt.TrainingSession(logdir, **{"verbose": 0, **options})
        model.fit(**data(place), epochs=EPOCHS, verbose=0, callbacks=[session, *others])
    return model


def set_clock_ahead(seconds: float) -> None:
    """Let this process have another time than the others, for what Python asks."""
    now, monotonic = time.time, time.monotonic
    time.time = lambda: now() + seconds
    time.monotonic = lambda: monotonic() + seconds


def cut_and_resumed(place: Place) -> dict[str, Any]:
    """Train without interruption; and to a step within an epoch, and on; with clocks apart."""
    set_clock_ahead(86_400.0 * place.index)
    stop = place.arguments["stop"]
    result = {f"whole/{k}": v for k, v in state(fit(place, place.directory / "whole")).items()}
    fit(place, place.directory / "cut", stop_at_step=stop)
    if place.index == 0:
        shutil.copytree(place.directory / "cut", place.directory / "copy")
    result |= failed_resume(place, place.directory / "cut")
    resumed = fit(place, place.directory / "cut")
    return result | {f"resumed/{k}": v for k, v in state(resumed).items()}


@contextlib.contextmanager
def last_assignment_failing(model: keras.Model, on: bool) -> Iterator[None]:
    """Let a resume run out of memory at the last variable of a model."""
    original = restoring._assign

    def assign(variable: keras.Variable, arrays: Sequence[np.ndarray]) -> None:
        if on and variable is model.weights[-1]:
            raise MemoryError("no room")
        original(variable, arrays)

    restoring._assign = assign
    try:
        yield
    finally:
        restoring._assign = original


def failed_resume(place: Place, logdir: Path) -> dict[str, Any]:
    """Resume with an assignment that fails on process 1."""
    with distributed(place):
        model = net(seed=2)
        before = [whole(variable) for variable in model.weights]
        session = kt.TrainingSession(logdir, verbose=0)
        with last_assignment_failing(model, on=place.index == 1):
            try:
                model.fit(**data(place), epochs=EPOCHS, verbose=0, callbacks=[session])
            except MemoryError as error:
                message = str(error)
    after = [whole(variable) for variable in model.weights]
    unchanged = all(map(np.array_equal, before, after))
    return {"failed": message, "unchanged": unchanged}


def resumed(place: Place) -> dict[str, Any]:
    """Resume what other processes have begun."""
    return state(fit(place, Path(place.arguments["logdir"]), verbose=1))


def slow(place: Place) -> dict[str, Any]:
    """Train so slowly that a signal meets it; the log directory may have a beginning."""

    class Slow(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            print("trained", flush=True)
            time.sleep(0.02)

    logdir = place.directory / "log"
    options = {"save_steps": 1, "keep": 2}
    return state(fit(place, logdir, callbacks=[Slow()], verbose=1, **options))


def of_its_own(place: Place) -> None:
    """Train, each process with a log directory of its own."""
    try:
        fit(place, place.directory / f"log-{place.index}")
    except OSError:
        traceback.print_exc()
        sys.stdout.flush()
        os._exit(1)


def wishes(place: Place) -> dict[str, Any]:
    """Agree on wishes of one process only, talk for a while, and then stand apart."""
    with place.scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    processes = Processes(model)

    def agreed(step: int, who: int, wish: Wishes) -> Wishes:
        agreement = Agreement(processes, lambda step: None)
        return agreement.between_steps(step, lambda: wish if place.index == who else Wishes())

    result: dict[str, Any] = {
        "0 saves": agreed(1, 0, Wishes(save=True)),
        "1 saves": agreed(1, 1, Wishes(save=True)),
        "1 interrupts": agreed(2, 1, Wishes(interrupt=True)),
        "1 stops": agreed(2, 1, Wishes(stop=True)),
    }
    agreement = Agreement(processes, lambda step: 250 - step if step < 250 else None)
    talked = []
    for step in range(1, 300):
        time.sleep(0.001)
        agreement.between_steps(step, lambda step=step: talked.append(step) or Wishes())
    result["talked"] = talked
    agreement = Agreement(processes, lambda step: None)
    try:
        if place.index:
            agreement.at_end_of_epoch(999, Wishes)
        else:
            agreement.between_steps(1000, Wishes)
    except RuntimeError as error:
        result["apart"] = str(error)
    return result
