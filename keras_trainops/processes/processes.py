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
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from keras_trainops.backends import backend
from keras_trainops.errors import RestoreError
from keras_trainops.processes.framing import gathered

PATIENCE = "KERAS_TRAINOPS_PROCESS_TIMEOUT"  # environment variable
_PIECE = 1 << 24  # bytes, of what is sent at once


# Raise the error of another process as its class, or as its first base class among these.
_KINDS: Mapping[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (RestoreError, ValueError, TypeError, KeyError, OSError, MemoryError, ImportError)
}
_LOST: list[str] = []  # the message, once others have not come in time


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
        data = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
        return [_split(each, arrays) for each in self._gathered(data, what)]

    def _gathered(self, data: bytes, what: str) -> list[bytes]:
        def gather(frame: np.ndarray) -> np.ndarray:
            return backend().gather(frame, self._model)

        tag = what.encode() + b"\0"
        found = self.in_time(lambda: gathered(tag + data, gather, backend().frame_bytes), what)
        for index, each in enumerate(found):
            other = each.partition(b"\0")[0].decode()
            if other != what:
                raise RuntimeError(
                    f"Process {self.index} of {self.count} talks to the others {what}, and process "
                    f"{index} {other}. All must call the same functions in the same order, with "
                    "the same callbacks and arguments."
                )
        return [each.removeprefix(tag) for each in found]

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
            self._tell(error, what)
            error.add_note(f"All {self.count} processes stop.")
            raise
        for index, failure in enumerate(self.gather(None, what)):
            if failure:
                self._raise(index, failure)

    def _tell(self, error: BaseException, what: str) -> None:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        failure = {"kinds": kinds, "message": str(error)}
        # If the others are gone, they have noticed, and this error is the one to report.
        with contextlib.suppress(RuntimeError):
            self.gather({**failure, "host": socket.gethostname()}, what)

    def _raise(self, index: int, failure: Mapping[str, Any]) -> NoReturn:
        kinds = failure["kinds"]
        raise next((_KINDS[kind] for kind in kinds if kind in _KINDS), RuntimeError)(
            f"Process {index} of {self.count} (on {failure['host']}) failed, and all stop. "
            f"{kinds[0]}: {failure['message']}"
        )

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
        if _LOST:  # a thread still waits, so processes would not hear what is meant for them
            raise ProcessTimeoutError(_LOST[0])
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
            raise RuntimeError(
                f"Process {self.index} of {self.count} lost another process, {what}: {error[0]}"
            ) from error[0]
        if not result:
            _LOST.append(
                f"Process {self.index} of {self.count} waited for {patience:g} seconds for the "
                f"others, {what}. One of them has ended, hangs, or does something else: all must "
                f"call the same functions in the same order. Set {PATIENCE} (seconds) if they need "
                "longer."
            )
            raise ProcessTimeoutError(_LOST[0])
        return result[0]


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
