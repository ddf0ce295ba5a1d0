"""The processes that train one model: broadcast, gather, agree."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import socket
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from keras_trainops.backends import backend
from keras_trainops.processes.beats import beats
from keras_trainops.processes.connection import (
    Connection,
    encoded,
    is_settled,
    patience_seconds,
    settled,
)

_PIECE = 1 << 24  # bytes, of what is sent at once
_AT_WORK = "at work"
_BEATS = 10  # as many times a process at work says so, before the others lose patience


class Processes(Connection):
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
        return self.gathered_documents(document, what)

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
        return [_split(each, arrays) for each in self.gathered_bytes(data, what)]

    def broadcast(self, document: Any, what: str) -> Any:
        """Return the document of process 0; that of others is ignored. See `gather`."""
        return self.gather(document if self.is_first else None, what)[0]

    def broadcast_into(self, array: np.ndarray, what: str) -> None:
        """Fill an array with that of process 0, which is sent in pieces. See `gather`.

        Args:
            array: A contiguous array, of the same shape and dtype on every process; process 0 only
                reads it.
            what: See `gather`.
        """
        if not self.several:
            return
        self.meet(what)
        data = array.reshape(-1).view(np.uint8)
        for start in range(0, data.size, _PIECE):
            piece = data[start : start + _PIECE]
            # Some libraries compile a program for each size, so there are few.
            frame = np.zeros(max(4, 1 << (piece.size - 1).bit_length()), np.uint8)
            frame[: piece.size] = piece
            send = functools.partial(backend().broadcast, frame, self._model)
            sent = self.in_time(send, what)
            if not self.is_first:
                piece[:] = sent[: piece.size]

    def barrier(self, what: str) -> None:
        """Wait until all processes are here. See `gather`."""
        self.gather(None, what)

    @contextlib.contextmanager
    def agreed(self, what: str) -> Iterator[None]:
        """Run a block that raises on all processes if it raises on one.

        The block must not communicate with other processes. It may take any time: the others wait
        as long as this process says that it is at work.

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
            with beats(lambda: self.gather(_AT_WORK, what), patience_seconds() / _BEATS):
                yield
        except BaseException as error:
            with self._telling(error) as failure:
                self._outcomes(failure, what)
            raise
        for index, failure in enumerate(self._outcomes(None, what)):
            if failure:
                self.raise_failure(index, failure)

    def _outcomes(self, mine: Mapping[str, Any] | None, what: str) -> list[Any]:
        """Return how a block ended on each process, once it has ended on all of them."""
        while True:
            if not self.meet(what, mine):
                return []
            found = self.gathered_documents(mine, what)
            if _AT_WORK not in found:
                return found

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
            is_apart = self.several and backend().keeps_processes_apart()
            if is_apart and not is_settled(error):
                with self._telling(error) as failure:
                    self.meet(what, failure)
            raise

    @contextlib.contextmanager
    def _telling(self, error: BaseException) -> Iterator[Mapping[str, Any]]:
        """Report an error of this process to the others, in the block."""
        kinds = [kind.__name__ for kind in type(error).__mro__]
        # If the others are gone, they have noticed, and this error is the one to report.
        with contextlib.suppress(Exception):
            yield {"kinds": kinds, "message": str(error), "host": socket.gethostname()}
            error.add_note(f"All {self.count} processes stop.")
        settled(error)

    def require_same(
        self,
        facts: Mapping[str, Any],
        what: str,
        advice: str,
        error: type[ValueError] = ValueError,
    ) -> None:
        """Check that all processes have the same facts.

        They compare a digest first, as the facts of a large model are long.

        Args:
            facts: What to compare, by a name for the message. JSON can hold it.
            what: What the processes do here: "to train the model".
            advice: What to do about a difference; the end of the message.
            error: The class of the error.

        Raises:
            ValueError: On all processes if a fact differs; it names the fact and two processes.
        """
        if not self.several:
            return
        digest = hashlib.sha256(encoded(facts)).hexdigest()
        if len(set(self.gather(digest, what))) == 1:
            return
        found = self.gather(facts, what)
        for name in dict.fromkeys(itertools.chain(*found)):  # the same order on all processes
            for index, other in enumerate(found):
                if other.get(name) != found[0].get(name):
                    raise error(
                        f"The processes differ in {name}: {_short(found[0].get(name))} in process "
                        f"0, {_short(other.get(name))} in process {index} of {self.count}. {advice}"
                    )


def checksum_of(array: np.ndarray) -> int:
    """Return the CRC-32 of an array's elements, for processes to compare."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


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
