"""Kill processes at every file operation of a save, as a program.

    python store_kills.py

Each save runs in a forked process, which dies before its first, second, … operation that opens a
file or changes a name, until a save gets through (Python raises an audit event for each operation).
After each kill a new store must find an intact checkpoint that is not older than the newest one
before. A foreign file in it must stay.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.numpy

from keras_trainops.session.state import randomness
from keras_trainops.session.state.record import DataState, Position, Record
from keras_trainops.session.storage.store import SavedStep, Store

assert safetensors.numpy
EVENTS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "open"}
DIRECTORY = Path("checkpoints")


def save(step: int, value: float, keep: int) -> None:
    states = dict.fromkeys(("fit", "made", "used", "now"), DOCUMENT)
    data = DataState(Position(0, step, True, 0, step), states, 4)
    record = Record(step, 0, step, "", 10, (0.1,), {}, ("w",), data)
    store = Store(DIRECTORY, keep)
    store.write(step, {"w": np.full(3, value)}, record)
    store.prune(step)


def newest() -> SavedStep | None:
    def never(message: str) -> None:
        raise AssertionError(message)

    store = Store(DIRECTORY, 1)
    store.recover()
    return store.newest(never)


def killed_at(operation: int, work: Callable[[], object]) -> bool:
    """Run `work` in a process that dies at this operation; return False if it ends before."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    left = operation

    def audit(event: str, args: tuple[object, ...]) -> None:
        nonlocal left
        if event in EVENTS and str(DIRECTORY) in str(args[0]):
            if left == 0:
                os._exit(9)
            left -= 1

    sys.addaudithook(audit)
    try:
        work()
        os._exit(0)
    finally:
        os._exit(1)


def kills(before: Callable[[], None], step: int, keep: int, *, twice: bool = False) -> int:
    """Kill a save at each operation and, if `twice`, also each operation of its recovery."""
    operation, recoveries, complete = 0, 0, False
    while not complete:
        shutil.rmtree(DIRECTORY, ignore_errors=True)
        before()
        found = newest()
        assert found is not None
        old = float(found.arrays["w"][0])
        foreign = found.path / ".DS_Store"
        foreign.write_bytes(b"Finder")
        complete = not killed_at(operation, lambda: save(step, 9.0, keep))
        at = 0
        left = any(DIRECTORY.glob(".*/SHA256SUMS"))  # a directory that may be complete
        while twice and left and killed_at(at, newest):
            at += 1
        recoveries += at
        found = newest()
        assert found is not None, operation
        value = float(found.arrays["w"][0])
        assert value in ((9.0,) if complete else (old, 9.0)), (operation, value)
        assert not [p.name for p in DIRECTORY.iterdir() if p.name.startswith(".")]
        assert foreign.exists(), operation
        operation += 1
    print(f"step {step}, keep {keep}: {operation - 1} kills, {recoveries} of recoveries")
    return operation - 1


def history(*steps: int) -> Callable[[], None]:
    def make() -> None:
        for step in steps:
            save(step, step / 10, 9)

    return make


if __name__ == "__main__":
    random.seed(1)
    np.random.seed(1)
    DOCUMENT = randomness.to_document(randomness.state())
    counts = [
        kills(history(3), 3, 1, twice=True),  # the same step again, and no other
        kills(history(2, 3), 4, 1),  # the next, and those before it are removed
    ]
    assert min(counts) > 12, counts
    print("every kill: a good checkpoint")
