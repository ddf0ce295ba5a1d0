"""The registry of formats, and `open_checkpoint`."""

from __future__ import annotations

import contextlib
import os
import string
from pathlib import Path

from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.format import Candidate, Format, Writer
from keras_trainops.checkpoints.formats import (
    hugging_face,
    npz,
    orbax,
    safetensors,
    session,
    sharded,
    torch,
)
from keras_trainops.checkpoints.formats.keras import archive, shards, weights
from keras_trainops.checkpoints.formats.keras_legacy import h5
from keras_trainops.checkpoints.formats.tensorflow import checkpoint as tensorflow
from keras_trainops.checkpoints.locations import location_of
from keras_trainops.checkpoints.storage.limits import refuse_unsafe_names
from keras_trainops.errors import RestoreError

# The first format that recognises a path opens it: special cases come before general ones.
FORMATS: tuple[Format, ...] = (
    tensorflow.FORMAT,
    archive.DIRECTORY,
    tensorflow.DIRECTORY,
    session.FORMAT,
    orbax.FORMAT,
    hugging_face.FORMAT,
    h5.FORMAT,
    weights.FORMAT,
    archive.FORMAT,
    torch.FORMAT,
    npz.FORMAT,
    npz.ARRAY,
    safetensors.FORMAT,
    shards.FORMAT,
    sharded.FORMAT,
)
_registered: list[Format] = []


def register_format(new: Format) -> None:
    """Register a format with `open_checkpoint` and everything else that opens checkpoints.

    Registered formats are tried before the built-in ones, the latest first. Registering a format
    again under the same name replaces it.

    Args:
        new: The format. `name` identifies it.

    Example:
        >>> from keras_trainops.checkpoints import ArraysCheckpoint, Format
        >>> def read_csv(location):
        ...     with open(location) as file:
        ...         rows = [line.split(",") for line in file.read().split()[1:]]
        ...     return ArraysCheckpoint({name: np.float32(value) for name, value in rows}, location)
        >>> csv = Format("CSV files", lambda path: path.head.startswith(b"key,"), read_csv)
        >>> register_format(csv)
    """
    _registered[:] = [new, *(known for known in _registered if known.name != new.name)]


def known_formats() -> tuple[Format, ...]:
    """Return all formats in the order in which they are tried."""
    return (*_registered, *FORMATS)


def writers() -> dict[str, Writer]:
    """Return the writers of all formats by the endings of names that select them."""
    found: dict[str, Writer] = {}
    for known in known_formats():
        for suffix in known.suffixes if known.write is not None else ():
            assert known.write is not None
            found.setdefault(suffix, known.write)
    return found


def open_checkpoint(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> Checkpoint:
    """Open a checkpoint of any supported format, recognised by content, not by name.

    Formats: TF1 name-based checkpoints, TF2 object-based checkpoints, SavedModel directories,
    `.weights.h5` and its shards, `.keras` (file or directory), legacy Keras HDF5 (weights or whole
    model), `.npz`, `.npy`, `.safetensors`, PyTorch state dicts, the index of either, directories of
    Hugging Face and Orbax, and checkpoints of a `TrainingSession` (its log directory opens the
    newest one).

    Args:
        path: A file, a directory, or the prefix of a TensorFlow checkpoint, on this machine. `~`
            and `file://` URLs are expanded.

    Returns:
        A lazy `Mapping` from key to `numpy.ndarray`, with `shape(key)` and `dtype(key)`.

    Raises:
        RestoreError: If `path` does not exist, is on another machine (`gs://…`), or is not a
            regular file; if it is damaged or its format is not supported.

    Example:
        >>> import numpy as np
        >>> np.savez("weights.npz", **{"head/kernel": np.ones((2, 3), "float32")})
        >>> with open_checkpoint("weights.npz") as checkpoint:
        ...     print(checkpoint.shape("head/kernel"), checkpoint.dtype("head/kernel"))
        (2, 3) float32
    """
    text = location_of(path)
    try:
        with contextlib.ExitStack() as refused:
            known = format_of(text)
            checkpoint = refused.enter_context(known.open(text))
            checkpoint.opened_as = known
            refuse_unsafe_names(checkpoint, text)
            refused.pop_all()  # leaves it open
            return checkpoint
    except RestoreError:
        raise
    except Exception as error:  # each library has its own classes for damaged files
        raise RestoreError(
            f"Cannot open {text!r}: it looks damaged or cut short ({type(error).__name__}: {error})"
        ) from error


def is_checkpoint(path: Path) -> bool:
    """Return True if there is a checkpoint of a supported format at a path."""
    try:
        format_of(str(path))
    except RestoreError:
        return False
    return True


def format_of(text: str) -> Format:
    """Return the format of the checkpoint at a path.

    Raises:
        RestoreError: If there is none, or its format is not supported.
    """
    candidate = Candidate(text)
    for known in known_formats():
        if known.recognise(candidate):
            return known
    if candidate.is_directory:
        raise RestoreError(_unsupported(text, _listing(candidate.path)))
    if not candidate.path.exists():
        raise RestoreError(_missing(candidate.path))
    raise RestoreError(_unsupported(text, _describe(candidate.head)))


def _missing(path: Path) -> str:
    message = f"There is no checkpoint at {str(path)!r}."
    if path.parent.is_dir():
        return f"{message} {_listing(path.parent)}"
    return f"{message} Its directory does not exist either."


def _listing(directory: Path, count: int = 8) -> str:
    names = sorted(entry.name for entry in directory.iterdir())
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return (
        f"The directory {str(directory)!r} contains: {', '.join(names[:count]) or 'nothing'}{more}."
    )


def _describe(head: bytes) -> str:
    if not head:
        return "The file is empty."
    if head.startswith(b"PK"):
        return "It starts as a zip archive but has no readable end: it was cut short."
    if head.startswith(b"MATLAB 7.3"):
        return (
            "It is a MATLAB 7.3 file. Pass arrays instead: the `h5py.File` is a mapping of them, "
            "with axes in reverse order."
        )
    if head.startswith(b"MATLAB"):
        return "It is a MATLAB file. Pass arrays instead: `scipy.io.loadmat` makes a mapping of it."
    if not head.translate(None, string.printable.encode()):
        return (
            f"It starts with the bytes {head!r}: text. If it is a table of numbers, pass arrays "
            "instead, such as those of `numpy.loadtxt`."
        )
    return f"It starts with the bytes {head!r}."


def _unsupported(text: str, found: str) -> str:
    *names, last = dict.fromkeys(known.name for known in known_formats())
    return (
        f"{text!r} is not a checkpoint of a supported format. {found} Supported are "
        f"{', '.join(names)} and {last}."
    )
