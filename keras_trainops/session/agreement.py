"""Agree on when to save and stop, so that all processes do it after the same step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from keras_trainops.processes import Processes

_SHARE = 0.01  # of the time may go into talking
_LATENCY = 2.0  # seconds after which a process is heard, unless a step or talking takes longer
_WHAT = "to agree on what to do between two steps of the session"


class Wishes(NamedTuple):
    """Actions between two steps: those that one process requests, or those that all take.

    Attributes:
        save: Save a checkpoint; the wish of process 0 counts.
        interrupt: Save and stop, because a process has received SIGTERM.
        stop: Stop after this epoch, because a callback wants that.
    """

    save: bool = False
    interrupt: bool = False
    stop: bool = False


class Agreement:
    """Lets processes agree from time to time: talking in every step would slow training down.

    Process 0 measures how long steps and talking take, and says after which step all talk next. One
    process decides alone, in every step.

    Args:
        processes: The processes of the run.
        until_save: Returns the number of steps until a checkpoint is due, or None.
    """

    def __init__(self, processes: Processes, until_save: Callable[[int], int | None]) -> None:
        self._processes, self._until_save = processes, until_save
        self._next = 0
        self._before: tuple[int, float] | None = None  # a step, and the time after it
        self._cost = math.inf  # seconds

    def between_steps(self, step: int, wishes: Callable[[], Wishes]) -> Wishes:
        """Return what all processes do at this step; nothing if they do not talk now.

        Args:
            step: The number of steps so far.
            wishes: Returns what this process wants.

        Raises:
            RuntimeError: If the processes are at different steps.
        """
        if not self._processes.several:
            return wishes()
        if step < self._next:
            return Wishes()
        return self._talk(step, f"step {step}", wishes())

    def at_end_of_epoch(self, step: int, wishes: Callable[[], Wishes]) -> Wishes:
        """Return what all processes do at the end of an epoch. See `between_steps`."""
        if not self._processes.several:
            return wishes()
        return self._talk(step, f"the end of an epoch, at step {step}", wishes())

    def _talk(self, step: int, where: str, mine: Wishes) -> Wishes:
        began = time.monotonic()
        said = self._processes.gather([where, self._pause(step, began), *mine], _WHAT)
        self._cost = min(self._cost, time.monotonic() - began)
        self._before = (step, time.monotonic())
        self._require_same_place([each[0] for each in said])
        self._next = step + said[0][1]
        wishes = [Wishes(*each[2:]) for each in said]
        return Wishes(wishes[0].save, any(w.interrupt for w in wishes), any(w.stop for w in wishes))

    def _pause(self, step: int, now: float) -> int:
        """Return the number of steps until all talk again."""
        due = self._until_save(step)
        if self._before is None or step <= self._before[0]:
            return 1
        seconds = (now - self._before[1]) / (step - self._before[0])
        most = max(1, math.ceil(max(_LATENCY, 20 * self._cost) / max(seconds, 1e-6)))
        steps = math.ceil(self._cost / _SHARE / max(seconds, 1e-6))
        return max(1, min(steps, most, *([] if due is None else [due])))

    def _require_same_place(self, places: list[Any]) -> None:
        for index, place in enumerate(places):
            if place != places[0]:
                raise RuntimeError(
                    f"The processes are at different places of the data: process 0 is at "
                    f"{places[0]}, process {index} at {place}. Give all of them the same number of "
                    "batches and epochs, and the same `steps_per_execution`."
                )
