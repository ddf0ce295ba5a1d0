"""`.safetensors`: a header of JSON, then the tensors' bytes without a gap."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from keras_trainops.readers.base import Checkpoint
from keras_trainops.readers.limits import nbytes
from keras_trainops.readers.safetensors_file import DTYPES
from keras_trainops.writers.files import UnwritableError

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_METADATA = "__metadata__"  # in the header, where tensors have their names
_ALIGNMENT = 8  # bytes, where the tensors begin


def write(
    path: Path,
    checkpoint: Checkpoint,
    keys: Mapping[str, str],
    progress: Callable[[int], None] = lambda nbytes: None,
) -> None:
    """Writes tensors of a checkpoint piece by piece.

    Args:
        path: The new file.
        checkpoint: Where the tensors come from.
        keys: From the name that a tensor is to have to its key in `checkpoint`.
        progress: Is told how many bytes were written.

    Raises:
        UnwritableError: If a dtype is none of the format's, or a name is that of its metadata;
            nothing is written then.
        RestoreError: If a tensor cannot be read.
    """
    if _METADATA in keys:
        raise UnwritableError(
            f".safetensors has no tensor called {_METADATA!r}: so its metadata are. Give it "
            "another name."
        )
    dtypes = {name: checkpoint.dtype(key).newbyteorder("=") for name, key in keys.items()}
    for name, dtype in dtypes.items():
        if dtype not in _NAMES:
            raise UnwritableError(f".safetensors has no dtype for {name!r}, which is {dtype}.")
    # The largest elements first, so that each tensor is aligned; else in the order they came.
    order = sorted(keys, key=lambda name: dtypes[name].itemsize, reverse=True)
    header, place = {}, 0
    for name in order:
        shape = checkpoint.shape(keys[name])
        end = place + nbytes(shape, dtypes[name])
        header[name] = {
            "dtype": _NAMES[dtypes[name]],
            "shape": list(shape),
            "data_offsets": [place, end],
        }
        place = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            for piece in checkpoint.pieces(keys[name]):
                piece = np.ascontiguousarray(piece, dtypes[name])
                file.write(piece.view(np.uint8).data)  # dtypes of ml_dtypes have no buffers
                progress(piece.nbytes)
