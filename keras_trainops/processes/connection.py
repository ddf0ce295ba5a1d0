"""The connection of the processes of a run: who they are, and that they are at the same point."""

from __future__ import annotations

import json
import os
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

import numpy as np

from keras_trainops.backends import backend
from keras_trainops.errors import RestoreError
from keras_trainops.processes.framing import gathered

E = TypeVar("E", bound=BaseException)

PATIENCE = "KERAS_TRAINOPS_PROCESS_TIMEOUT"  # environment variable

# Raise the error of another process as its class, or as its first base class among these.
_KINDS: Mapping[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (RestoreError, ValueError, TypeError, KeyError, OSError, MemoryError, ImportError)
}
_LOST: list[str] = []  # the message, once others have not come in time
_SETTLED = "_keras_trainops_settled"  # attribute of errors


class ProcessTimeoutError(RuntimeError):
    """Not all processes of the run reached the same point in time."""


class Connection:
    """Connect the processes of a run. `Processes` describes the arguments and attributes."""

    def __init__(self, model: Any = None, alone: bool = False) -> None:
        self._model = model
        self.index, self.count = (0, 1) if alone else backend().place_among_processes(model)

    @property
    def is_first(self) -> bool:
        """If True, this process writes files and prints for all."""
        return self.index == 0

    @property
    def several(self) -> bool:
        """If True, there are other processes."""
        return self.count > 1

    def gathered_bytes(self, data: bytes, what: str) -> list[bytes]:
        """Return the bytes of all processes, in their order, if all of them do the same."""
        tag = what.encode() + b"\0"
        found = self._exchanged(tag + data, what)
        for index, each in enumerate(found):
            self._require_same_place(what, index, each.partition(b"\0")[0].decode())
        return [each.removeprefix(tag) for each in found]

    def gathered_documents(self, document: Any, what: str) -> list[Any]:
        """Return the documents of all processes, like `gathered_bytes`."""
        return [json.loads(each) for each in self.gathered_bytes(encoded(document), what)]

    def _exchanged(self, data: bytes, what: str) -> list[bytes]:
        def gather(frame: np.ndarray) -> np.ndarray:
            return backend().gather(frame, self._model)

        return self.in_time(lambda: gathered(data, gather, backend().frame_bytes), what)

    def _require_same_place(self, what: str, index: int, other: str) -> None:
        if other != what:
            error = RuntimeError(
                f"Process {self.index} of {self.count} talks to the others {what}, and process "
                f"{index} {other}. All must call the same functions in the same order, with the "
                "same callbacks and arguments, and train the same number of batches."
            )
            raise settled(error)

    def meet(self, what: str, failure: Mapping[str, Any] | None = None) -> bool:
        """Check that processes which their engine keeps apart are at the same point.

        If they were not, their next messages would be mixed up. It costs one small message there,
        and nothing on other engines.

        Args:
            what: What the processes do next: "to train on a batch".
            failure: What has failed on this process, for those that are at another point.

        Returns:
            True if all are at the same point. False if not, and they have heard of `failure`.

        Raises:
            RuntimeError: On all processes if they are not, apart from `failure`; it names two.
            Exception: The failure of another process.
            ProcessTimeoutError: If another process does not come, see `PATIENCE`.
        """
        return self._meeting(what, failure)()

    def meet_meanwhile(self, what: str) -> None:
        """Meet, but wait for the others only before the next message to them. See `meet`."""
        backend().before_next_message(self._meeting(what))

    def _meeting(self, what: str, failure: Mapping[str, Any] | None = None) -> Callable[[], bool]:
        """Start to meet, and return what waits for the others."""
        if not self.several:
            return lambda: True
        _require_connection()
        try:
            same = backend().compare(zlib.crc32(what.encode()))
        except RuntimeError as error:
            raise (error if is_settled(error) else self._lost(what, error)) from error

        def wait() -> bool:
            patience, began = patience_seconds(), time.monotonic()
            try:
                is_same = same(patience)
            except RuntimeError as error:
                late = time.monotonic() - began >= patience
                raise (self._late(what) if late else self._lost(what, error)) from error
            if not is_same:
                self._tell_difference(what, failure)
            return is_same

        return wait

    def _tell_difference(self, what: str, failure: Mapping[str, Any] | None) -> None:
        said = [json.loads(each) for each in self._exchanged(encoded([what, failure]), what)]
        if failure:
            return
        for index, (_, failed) in enumerate(said):
            if failed:
                self.raise_failure(index, failed)
        for index, (other, _) in enumerate(said):
            self._require_same_place(what, index, other)

    def raise_failure(self, index: int, failure: Mapping[str, Any]) -> NoReturn:
        """Raise an error that another process has reported."""
        kinds = failure["kinds"]
        kind = next((_KINDS[kind] for kind in kinds if kind in _KINDS), RuntimeError)
        error = kind(
            f"Process {index} of {self.count} (on {failure['host']}) failed, and all stop. "
            f"{kinds[0]}: {failure['message']}"
        )
        raise settled(error)

    def in_time(self, communicate: Callable[[], Any], what: str) -> Any:
        """Run a collective operation in a thread, because not all engines have a time-out.

        Args:
            communicate: The operation; all processes run it.
            what: What the processes do here, for the message.

        Returns:
            What it returns.

        Raises:
            ProcessTimeoutError: If another process does not come, see `PATIENCE`.
            RuntimeError: If it fails.
        """
        _require_connection()
        result: list[Any] = []
        error: list[BaseException] = []

        def run() -> None:
            try:
                result.append(communicate())
            except BaseException as caught:
                error.append(caught)

        patience = patience_seconds()
        thread = threading.Thread(target=run, name="processes", daemon=True)
        thread.start()
        thread.join(patience)
        if error:
            raise self._lost(what, error[0]) from error[0]
        if not result:
            raise self._late(what)
        return result[0]

    def _lost(self, what: str, error: BaseException) -> RuntimeError:
        text = f"Process {self.index} of {self.count} lost another process, {what}: {error}"
        return settled(RuntimeError(text))

    def _late(self, what: str) -> ProcessTimeoutError:
        _LOST.append(
            f"Process {self.index} of {self.count} waited for {patience_seconds():g} seconds for "
            f"the others, {what}. One of them has ended, hangs, or does something else: all must "
            f"call the same functions in the same order. Set {PATIENCE} (seconds) if they need "
            "longer."
        )
        return settled(ProcessTimeoutError(_LOST[0]))


def settled(error: E) -> E:
    """Mark an error that the other processes know of, or cannot be told; and return it."""
    setattr(error, _SETTLED, True)
    return error


def is_settled(error: BaseException) -> bool:
    """Return whether an error is marked by `settled`."""
    return getattr(error, _SETTLED, False)


def _require_connection() -> None:
    if _LOST:  # somebody still waits, so processes would not hear what is meant for them
        raise settled(ProcessTimeoutError(_LOST[0]))


def patience_seconds() -> float:
    """Return the seconds to wait for other processes.

    Raises:
        ValueError: If the environment variable is not a positive number.
    """
    text = os.environ.get(PATIENCE, "600")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise ValueError(f"{PATIENCE} must be a number of seconds > 0. Received: {text!r}")
    return seconds


def encoded(document: Any) -> bytes:
    """Return a document as JSON."""
    return json.dumps(document, default=_plain).encode()


def _plain(value: Any) -> Any:
    """Return a number of NumPy for JSON."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} is not a document")
