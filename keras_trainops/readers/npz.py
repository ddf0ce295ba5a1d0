"""NumPy `.npz` archives. Nothing in them is ever unpickled."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from keras_trainops.readers.base import Checkpoint, RestoreError


class _Header(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype


class NpzCheckpoint(Checkpoint):
    """An `.npz` archive; shapes and dtypes come from the headers of its members."""

    format = "NumPy .npz archive"
    checksums = True

    def __init__(self, location: str) -> None:
        super().__init__(location, [location])
        with zipfile.ZipFile(location) as archive:
            members = [name for name in archive.namelist() if name.endswith(".npy")]
            if not members:
                raise RestoreError(f"{location!r} is a zip archive without any .npy array.")
            self._headers = {name[: -len(".npy")]: _header(archive, name) for name in members}
        self._arrays = np.load(location, allow_pickle=False)

    def _keys(self) -> Mapping[str, _Header]:
        return self._headers

    def _shape(self, key: str) -> tuple[int, ...]:
        return self._headers[key].shape

    def _dtype(self, key: str) -> np.dtype:
        return self._headers[key].dtype

    def _read(self, key: str) -> np.ndarray:
        return self._arrays[key]

    def close(self) -> None:
        self._arrays.close()


def _header(archive: zipfile.ZipFile, member: str) -> _Header:
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(file)
    return _Header(shape, dtype)


open_file = NpzCheckpoint
