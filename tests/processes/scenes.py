"""What the processes of `test_processes.py` do."""

from __future__ import annotations

import os
import time
from typing import Any

import keras
import numpy as np

from keras_trainops.errors import RestoreError
from keras_trainops.processes import Processes
from tests.processes.member import Place


def talk(place: Place) -> dict[str, Any]:
    """Gather, broadcast and disagree."""
    with place.scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    processes = Processes(model)
    short = processes.gather({"me": processes.index}, "to talk")
    long = processes.gather("x" * 10_000 * processes.index, "to talk")
    first = processes.broadcast(f"from {processes.index}", "to talk")
    arrays = [np.full(2, place.index, "int16"), np.array(7.0)]
    found = processes.gather_arrays(arrays, "to talk")
    with processes.agreed("to agree"):
        pass
    apart = _failure(lambda: processes.barrier("to save" if place.index else "to restore"))
    coded = _failure(lambda: _decode(processes, place.index == 1))
    number = processes.gather(np.int64(3), "to talk")
    message = _failure(lambda: _fail(processes, place.index == 1))
    both = _failure(lambda: _fail(processes, True))
    same = _failure(
        lambda: processes.require_same({"a": 1, "b": place.index}, "to compare", "Use one b.")
    )
    return {
        "index": processes.index,
        "count": processes.count,
        "short": [each["me"] for each in short],
        "long": [len(each) for each in long],
        "first": first,
        "apart": apart,
        "coded": coded,
        "number": number,
        "arrays": np.array([[[*pair, scalar]] for pair, scalar in found]),
        "message": message,
        "both": both,
        "same": same,
        "at_end": np.array(processes.gather("end", "to end")),
    }


def _fail(processes: Processes, here: bool, seconds: float = 0.0) -> None:
    with processes.agreed("to restore"):
        time.sleep(seconds)
        if here:
            raise RestoreError("no such file")


def _decode(processes: Processes, here: bool) -> None:
    with processes.agreed("to decode"):
        if here:
            b"\xff".decode()


def _failure(function: Any) -> str:
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error} {getattr(error, '__notes__', '')}"
    return "none"


def wait_in_vain(place: Place) -> dict[str, Any]:
    """Process 0 waits for process 1, which works for long, and then does something else."""
    with place.scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    processes = Processes(model)
    processes.barrier("to begin")
    late = _failure(lambda: _fail(processes, place.index == 1, seconds=4 * place.index))
    if place.index == 0:
        print(late, _failure(lambda: processes.barrier("to end")), flush=True)
        (place.directory / "over").touch()
    while not (place.directory / "over").exists():
        time.sleep(0.05)
    os._exit(0)  # a regular end would wait for the thread that waits for the other process
