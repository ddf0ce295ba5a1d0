"""Archives and arrays with false headers, and a pickle that runs code."""

from __future__ import annotations

import io
import os
import zipfile
from typing import Any

import numpy as np


def npy(array: np.ndarray, shape: str | None = None) -> bytes:
    """Return the bytes of an `.npy` file, whose header may claim another shape."""
    file = io.BytesIO()
    np.save(file, array)
    data = file.getvalue()
    if shape is None:
        return data
    old = f"({array.shape[0]},), }}"
    new = f"{shape}, }}"
    return data.replace(f"{old}{' ' * (len(new) - len(old))}".encode(), new.encode(), 1)


def zip_with(members: dict[str, bytes], path: str, method: int = zipfile.ZIP_STORED) -> str:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


class Bomb:
    """Creates a directory when it is unpickled."""

    def __reduce__(self) -> Any:
        return (os.mkdir, ("exploded",))
