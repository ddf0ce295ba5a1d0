"""A run that is killed again and again, as a program.

    python killed.py KILLS

The run trains in a process forked from this one, which has imported everything and started nothing:
so a restart costs no import. It is killed with SIGKILL, in turn at a random moment and while a
checkpoint is being written, and started again on the same directory, until it ends; then its state
must be bit for bit that of a run that was left alone. Then the next run, until there were so many
kills. Prints what it did.
"""

from __future__ import annotations

import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import keras
import numpy as np
import runs

EPOCHS = 8
SAVE_STEPS = 3


class Beacon(keras.callbacks.Callback):
    """Says that the first step is about to be made."""

    def __init__(self, pipe: int) -> None:
        super().__init__()
        self._pipe = pipe

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self._pipe:
            os.write(self._pipe, b".")
        self._pipe = 0


def forked(work: Callable[[int], None]) -> tuple[int, int]:
    """A process that does `work`, and where it says that it trains."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    try:
        work(writer)
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)


def train(logdir: str) -> Callable[[int], None]:
    def work(pipe: int) -> None:
        session = {"save_steps": SAVE_STEPS, "keep": 2}
        model = runs.train(logdir, Beacon(pipe), session=session, epochs=EPOCHS)
        arrays = {f"v{i}": array for i, array in enumerate(runs.state(model))}
        np.savez(f"{logdir}.npz", **arrays)

    return work


def killed(child: int, reader: int, logdir: str, during_save: bool, wait: float) -> bool:
    """Kills the process, unless it ends before. Whether it was killed."""
    select.select([reader], [], [])  # it trains, or has ended
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


def main(kills: int) -> None:
    rng = random.Random(0)
    child, reader = forked(train("whole"))
    assert os.waitpid(child, 0)[1] == 0
    with np.load("whole.npz") as archive:
        whole = dict(archive)
    count = in_saves = finished = 0
    while count < kills:
        logdir = f"run{finished}"
        while not Path(f"{logdir}.npz").exists():
            child, reader = forked(train(logdir))
            if count >= kills:
                os.close(reader)
                assert os.waitpid(child, 0)[1] == 0
            elif killed(child, reader, logdir, count % 2 == 0, rng.uniform(0, 0.15)):
                count += 1
                in_saves += any(Path(logdir).glob("checkpoints/.writing-*"))
        with np.load(f"{logdir}.npz") as archive:
            assert set(archive) == set(whole)
            for name, value in whole.items():
                np.testing.assert_array_equal(archive[name], value, err_msg=name)
        finished += 1
    print(f"{count} kills, {in_saves} of them during a save; {finished} runs ended bit-equal")


if __name__ == "__main__":
    main(int(sys.argv[1]))
