"""Inject faults into runs, as a program.

    python faults.py KILLS

Each run trains in a process forked from this one, which has imported everything and started no
backend, so that a restart is cheap. The run is restarted until it ends, and must then leave bit for
bit the state of an undisturbed run. Prints a line for each fault.
"""

from __future__ import annotations

import os
import random
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[2]))

import keras
import numpy as np
import safetensors.numpy
import tensorboardX
import tensorflow  # which Keras's seeds import on every backend

from tests.session import runs
from tests.session.events import scalars

assert safetensors.numpy
assert tensorboardX
assert tensorflow
EPOCHS, SAVE_STEPS, STEPS = 8, 3, 80


class Beacon(keras.callbacks.Callback):
    """Signal that the first step is about to begin."""

    def __init__(self, pipe: int) -> None:
        super().__init__()
        self._pipe = pipe

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self._pipe:
            os.write(self._pipe, b".")
        self._pipe = 0


def forked(work: Callable[[int], None]) -> tuple[int, int]:
    """Run `work` in a child process; return its id, and the pipe of its `Beacon`."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    code = 1
    try:
        work(writer)
        code = 0
    except SystemExit as stop:
        code = int(str(stop.code))
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    finally:
        os._exit(code)


def train(
    logdir: str, *more: keras.callbacks.Callback, model: Any = None, **session: Any
) -> Callable[[int], None]:
    def work(pipe: int) -> None:
        options = {"save_steps": SAVE_STEPS, "keep": 2, "summary_steps": 5, **session}
        made = runs.net() if model is None else model()
        beacon = Beacon(pipe)
        made = runs.train(logdir, beacon, *more, model=made, session=options, epochs=EPOCHS)
        arrays = {f"v{i}": array for i, array in enumerate(runs.state(made))}
        np.savez(f"{logdir}.part.npz", **arrays)
        os.replace(f"{logdir}.part.npz", f"{logdir}.npz")  # a kill may come here too

    return work


def status(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(work: Callable[[int], None]) -> int:
    """Run `work` in a child process, and return its exit status."""
    child, reader = forked(work)
    os.close(reader)
    return status(child)


def assert_ends_like_an_undisturbed_run(logdir: str) -> None:
    with np.load(f"{logdir}.npz") as archive, np.load("whole.npz") as whole:
        assert set(archive) == set(whole)
        for name in archive:
            np.testing.assert_array_equal(archive[name], whole[name], err_msg=name)


def steps_of(logdir: str) -> list[int]:
    return sorted(int(path.name[5:]) for path in Path(logdir, "checkpoints").glob("step-*"))


def killed(child: int, reader: int, logdir: str, during_save: bool, wait: float) -> bool:
    """Kill the process, and return True unless it ended before."""
    select.select([reader], [], [])  # wait until it trains or has ended
    os.close(reader)
    checkpoints = Path(logdir, "checkpoints")
    then = time.monotonic()
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        writing = during_save and checkpoints.is_dir() and any(checkpoints.glob(".writing-*"))
        if writing or (not during_save and time.monotonic() - then > wait):
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            return os.WIFSIGNALED(status)
        time.sleep(0)
    return False


def kills(wanted: int) -> None:
    rng = random.Random(0)
    count = in_saves = finished = 0
    while count < wanted:
        logdir = f"run{finished}"
        while not Path(f"{logdir}.npz").exists():
            child, reader = forked(train(logdir))
            if count >= wanted:
                os.close(reader)
                assert status(child) == 0
            elif killed(child, reader, logdir, count % 2 == 0, rng.uniform(0, 0.15)):
                count += 1
                in_saves += any(Path(logdir).glob("checkpoints/.writing-*"))
        assert_ends_like_an_undisturbed_run(logdir)
        assert scalars(logdir)["loss"] == scalars("whole")["loss"]
        finished += 1
    print(f"{count} kills, {in_saves} of them during a save: bit-equal")


def sigterm() -> None:
    """Send SIGTERM before the first save is due."""
    child, reader = forked(train("term", save_steps=None))
    select.select([reader], [], [])
    os.kill(child, signal.SIGTERM)
    code = status(child)
    (step,) = steps_of("term")
    assert 0 < step < STEPS
    log = Path("term/session.log").read_text(encoding="utf-8")
    assert f"interrupted by SIGTERM; saved a checkpoint at step {step}" in log
    assert run(train("term")) == 0
    assert_ends_like_an_undisturbed_run("term")
    print(f"SIGTERM: status {code}, bit-equal")


class Fill(keras.callbacks.Callback):
    """Keep files from growing, from step 15 on."""

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self.model.optimizer.iterations == 15:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))


def disk_full() -> None:
    """Training continues, but ends with an error; the last intact checkpoint stays."""
    assert run(train("full", Fill())) == 1
    log = Path("full/session.log").read_text(encoding="utf-8")
    assert "could not be written, but training continues" in log
    saved = steps_of("full")
    assert saved
    assert max(saved) <= 15
    assert not list(Path("full/checkpoints").glob(".*"))
    assert run(train("full")) == 0
    assert_ends_like_an_undisturbed_run("full")
    print("disk full: bit-equal after there was room")


class Wait(keras.callbacks.Callback):
    """Wait until another process has tried to start the same run."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        while not Path("tried").exists():
            time.sleep(0.01)


def two_at_once() -> None:
    class Ready(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            Path("has").touch()

    child, reader = forked(train("two", Ready(), Wait()))
    os.close(reader)
    while not Path("has").exists():
        time.sleep(0.01)
    before = sorted(Path("two").rglob("*"))
    print("holder", child, flush=True)
    assert run(train("two")) == 1
    assert sorted(Path("two").rglob("*")) == before
    Path("tried").touch()
    assert status(child) == 0
    assert_ends_like_an_undisturbed_run("two")


if __name__ == "__main__":
    assert run(train("whole")) == 0
    two_at_once()
    sigterm()
    disk_full()
    kills(int(sys.argv[1]))
