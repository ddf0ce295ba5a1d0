"""Data of any length, through an operation that gathers frames of equal size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_HEADER = 8  # bytes, with the length of the document


def gathered(data: bytes, gather: Callable[[np.ndarray], np.ndarray], size: int) -> list[bytes]:
    """Return the data of all processes, in their order.

    Args:
        data: That of this process.
        gather: See `Backend.gather`. It is called a second time if any data are long; the sizes
            are powers of two, because some libraries compile a program for each size.
        size: Bytes of the first frame.
    """
    header = np.frombuffer(len(data).to_bytes(_HEADER, "little"), np.uint8)
    room = size - _HEADER
    first = gather(np.concatenate([header, _padded(data[:room], room)]))
    lengths = [int.from_bytes(frame[:_HEADER].tobytes(), "little") for frame in first]
    longest = max(lengths)
    if longest <= room:
        frames = first[:, _HEADER:]
    else:
        frames = gather(_padded(data, 1 << (longest - 1).bit_length()))
    return [frame[:n].tobytes() for frame, n in zip(frames, lengths, strict=True)]


def _padded(data: bytes, size: int) -> np.ndarray:
    frame = np.zeros(size, np.uint8)
    frame[: len(data)] = np.frombuffer(data, np.uint8)
    return frame
