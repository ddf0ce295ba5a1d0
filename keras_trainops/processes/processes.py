"""The processes that train one model: broadcast, gather, agree."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import numpy as np

from keras_trainops.backends import backend
from keras_trainops.errors import RestoreError
from keras_trainops.processes.framing import gathered

E = TypeVar("E", bound=BaseException)

PATIENCE = "KERAS_TRAINOPS_PROCESS_TIMEOUT"  # environment variable
_PIECE = 1 << 24  # bytes, of what is sent at once


# Raise the error of another process as its class, or as its first base class among these.
_KINDS: Mapping[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (RestoreError, ValueError, TypeError, KeyError, OSError, MemoryError, ImportError)
}
_LOST: list[str] = []  # the message, once others have not come in time
_SETTLED = "_keras_trainops_settled"  # attribute of errors


class ProcessTimeoutError(RuntimeError):
    """Not all processes of the run reached the same point in time."""


class Processes:
    """The processes of one run, as the engine that started them knows them.

    All of them must call `gather` and what builds on it, in the same order. With one process
    nothing is sent.

    Args:
        model: The model that they train, or None.
        alone: If True, this process acts as if it were the only one.

    Attributes:
        index: The index of this process.
        count: The number of processes.
    """

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

    def gather(self, document: Any, what: str) -> list[Any]:
        """Return the documents of all processes, in their order.

        Args:
            document: What JSON can hold; tuples become lists.
            what: What the processes do here, for the message: "to restore the model".

        Raises:
            ProcessTimeoutError: If another process does not come, see `PATIENCE`.
        """
        if not self.several:
            return [document]
        self.meet(what)
        return [json.loads(each) for each in self._gathered(_encoded(document), what)]

    def gather_arrays(self, arrays: Sequence[np.ndarray], what: str) -> list[list[np.ndarray]]:
        """Return the arrays of all processes, in their order.

        Args:
            arrays: Arrays, as many and of the same shapes and dtypes on every process. They and
                those of the others are in memory together.
            what: See `gather`.
        """
        if not self.several:
            return [list(arrays)]
        self.meet(what)
        data = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
        return [_split(each, arrays) for each in self._gathered(data, what)]

    def _gathered(self, data: bytes, what: str) -> list[bytes]:
        tag = what.encode() + b"\0"
        found = self._exchanged(tag + data, what)
        for index, each in enumerate(found):
            self._require_same_place(what, index, each.partition(b"\0")[0].decode())
        return [each.removeprefix(tag) for each in found]

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

    def meet(self, what: str, failure: Mapping[str, Any] | None = None) -> None:
        """Check that processes which their engine keeps apart are at the same point.

        If they were not, their next messages would be mixed up. It costs one small message there,
        and nothing on other engines.

        Args:
            what: What the processes do next: "to train on a batch".
            failure: What has failed on this process, for those that are at another point.

        Raises:
            RuntimeError: On all processes if they are not; it names two of them.
            Exception: The failure of another process.
            ProcessTimeoutError: If another process does not come, see `PATIENCE`.
        """
        self._meeting(what, failure)()

    def meet_meanwhile(self, what: str) -> None:
        """Meet, but wait for the others only before the next message to them. See `meet`."""
        backend().before_next_message(self._meeting(what))

    def _meeting(self, what: str, failure: Mapping[str, Any] | None = None) -> Callable[[], None]:
        """Start to meet, and return what waits for the others."""
        if not self.several:
            return lambda: None
        _require_connection()
        same = backend().compare(zlib.crc32(what.encode()))

        def wait() -> None:
            patience, began = _patience(), time.monotonic()
            try:
                is_same = same(patience)
            except RuntimeError as error:
                late = time.monotonic() - began >= patience
                raise (self._late(what) if late else self._lost(what, error)) from error
            if not is_same:
                self._raise_difference(what, failure)

        return wait

    def _raise_difference(self, what: str, failure: Mapping[str, Any] | None) -> None:
        said = [json.loads(each) for each in self._exchanged(_encoded([what, failure]), what)]
        for index, (_, failed) in enumerate(said):
            if failed:
                self._raise(index, failed)
        for index, (other, _) in enumerate(said):
            self._require_same_place(what, index, other)

    def broadcast(self, document: Any, what: str) -> Any:
        """Return the document of process 0; that of others is ignored. See `gather`."""
        return self.gather(document if self.is_first else None, what)[0]

    def broadcast_bytes(self, data: np.ndarray | None, nbytes: int, what: str) -> np.ndarray:
        """Return bytes of process 0, which are sent in pieces. See `gather`.

        Args:
            data: In process 0, `uint8` of shape (nbytes,).
            nbytes: The size, known to all.
            what: See `gather`.
        """
        if not self.several:
            assert data is not None
            return data
        self.meet(what)
        model, received = self._model, np.empty(nbytes, np.uint8)
        for start in range(0, nbytes, _PIECE):
            piece = received[start : start + _PIECE]
            # Some libraries compile a program for each size, so there are few.
            frame = np.zeros(max(4, 1 << (piece.size - 1).bit_length()), np.uint8)
            if data is not None:
                frame[: piece.size] = data[start : start + _PIECE]
            sent = self.in_time(functools.partial(backend().broadcast, frame, model), what)
            piece[:] = sent[: piece.size]
        return received

    def barrier(self, what: str) -> None:
        """Wait until all processes are here. See `gather`."""
        self.gather(None, what)

    @contextlib.contextmanager
    def agreed(self, what: str) -> Iterator[None]:
        """Run a block that raises on all processes if it raises on one.

        The block must not communicate with other processes.

        Args:
            what: What the block does: "to restore the model".

        Raises:
            Exception: The error of this process or, if it has none, one of the same kind with the
                message of the first process that failed and its name.
            ProcessTimeoutError: If another process does not come.
        """
        if not self.several:
            yield
            return
        try:
            yield
        except BaseException as error:
            with self._telling(error) as failure:
                self.meet(what, failure)
                self._gathered(_encoded(failure), what)
            raise
        for index, failure in enumerate(self.gather(None, what)):
            if failure:
                self._raise(index, failure)

    @contextlib.contextmanager
    def failing_together(self, what: str) -> Iterator[None]:
        """Run a block in which processes meet; if it raises on one, it raises on all.

        The others learn of it when they meet next. On engines that do not keep processes apart,
        it does nothing.

        Args:
            what: What the others hear: "after a failure in `fit`".

        Raises:
            Exception: See `agreed`.
        """
        try:
            yield
        except Exception as error:
            if self.several and not getattr(error, _SETTLED, False):
                with self._telling(error) as failure:
                    self.meet(what, failure)
            raise

    @contextlib.contextmanager
    def _telling(self, error: BaseException) -> Iterator[Mapping[str, Any]]:
        """Tell the others of an error of this process, in the block."""
        kinds = [kind.__name__ for kind in type(error).__mro__]
        # If the others are gone, they have noticed, and this error is the one to report.
        with contextlib.suppress(Exception):
            yield {"kinds": kinds, "message": str(error), "host": socket.gethostname()}
        settled(error).add_note(f"All {self.count} processes stop.")

    def _raise(self, index: int, failure: Mapping[str, Any]) -> NoReturn:
        kinds = failure["kinds"]
        kind = next((_KINDS[kind] for kind in kinds if kind in _KINDS), RuntimeError)
        error = kind(
            f"Process {index} of {self.count} (on {failure['host']}) failed, and all stop. "
            f"{kinds[0]}: {failure['message']}"
        )
        raise settled(error)

    def require_same(self, facts: Mapping[str, Any], what: str, advice: str) -> None:
        """Check that all processes have the same facts.

        They compare a digest first, as the facts of a large model are long.

        Args:
            facts: What to compare, by a name for the message. JSON can hold it.
            what: What the processes do here: "to train the model".
            advice: What to do about a difference; the end of the message.

        Raises:
            ValueError: On all processes if a fact differs; it names the fact and two processes.
        """
        if not self.several:
            return
        digest = hashlib.sha256(_encoded(facts)).hexdigest()
        if len(set(self.gather(digest, what))) == 1:
            return
        found = self.gather(facts, what)
        for name in dict.fromkeys(itertools.chain(*found)):  # the same order on all processes
            for index, other in enumerate(found):
                if other.get(name) != found[0].get(name):
                    raise ValueError(
                        f"The processes differ in {name}: {_short(found[0].get(name))} in process "
                        f"0, {_short(other.get(name))} in process {index} of {self.count}. {advice}"
                    )

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

        patience = _patience()
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
            f"Process {self.index} of {self.count} waited for {_patience():g} seconds for the "
            f"others, {what}. One of them has ended, hangs, or does something else: all must "
            f"call the same functions in the same order. Set {PATIENCE} (seconds) if they need "
            "longer."
        )
        return settled(ProcessTimeoutError(_LOST[0]))


def settled(error: E) -> E:
    """Mark an error that the other processes know of, or cannot be told; and return it."""
    setattr(error, _SETTLED, True)
    return error


def _require_connection() -> None:
    if _LOST:  # somebody still waits, so processes would not hear what is meant for them
        raise settled(ProcessTimeoutError(_LOST[0]))


def _patience() -> float:
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


def checksum_of(array: np.ndarray) -> int:
    """Return the CRC-32 of an array's elements, for processes to compare."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _encoded(document: Any) -> bytes:
    return json.dumps(document, default=_plain).encode()


def _plain(value: Any) -> Any:
    """Return a number of NumPy for JSON."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} is not a document")


def _split(data: bytes, like: Sequence[np.ndarray]) -> list[np.ndarray]:
    found, start = [], 0
    for array in like:
        flat = np.frombuffer(data, array.dtype, array.size, start)
        found.append(flat.reshape(array.shape))
        start += array.nbytes
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}…"
