"""`.npz`: a zip archive with an `.npy` file for each tensor."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from keras_trainops.readers.base import Checkpoint
from keras_trainops.writers.files import UnwritableError


def write(
    path: Path,
    checkpoint: Checkpoint,
    keys: Mapping[str, str],
    progress: Callable[[int], None] = lambda nbytes: None,
) -> None:
    """Writes tensors of a checkpoint piece by piece; `numpy.load` reads them.

    Args:
        path: The new file.
        checkpoint: Where the tensors come from.
        keys: From the name that a tensor is to have to its key in `checkpoint`.
        progress: Is told how many bytes were written.

    Raises:
        UnwritableError: If NumPy itself lacks a dtype, as bfloat16; nothing is written then.
        RestoreError: If a tensor cannot be read.
    """
    for name, key in keys.items():
        dtype = checkpoint.dtype(key)
        if dtype.kind not in "biufc":
            raise UnwritableError(
                f".npz has no dtype for {name!r}, which is {dtype}: `numpy.load` would give bytes "
                "without a meaning. Convert to .safetensors."
            )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, key in keys.items():
            header = {
                "descr": np.lib.format.dtype_to_descr(checkpoint.dtype(key)),
                "fortran_order": False,
                "shape": checkpoint.shape(key),
            }
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for piece in checkpoint.pieces(key):
                    member.write(np.ascontiguousarray(piece).view(np.uint8).data)
                    progress(piece.nbytes)
