"""NumPy archives (`.npz`) and single arrays (`.npy`). Nothing in them is ever unpickled."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from typing import IO, NamedTuple

import numpy as np

from keras_trainops.readers.archives import refuse_repeated
from keras_trainops.readers.base import Checkpoint, RestoreError
from keras_trainops.readers.files import open_regular, require_file
from keras_trainops.readers.limits import nbytes, refuse_bomb
from keras_trainops.readers.training_state import by_name

NPY_MAGIC = b"\x93NUMPY"
_LONGEST_HEADER = 10_000  # bytes, as NumPy has it


class _Header(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype


class _WithHeaders(Checkpoint):
    """Arrays whose headers are read as the file is opened."""

    _headers: dict[str, _Header]

    def _keys(self) -> Mapping[str, _Header]:
        return self._headers

    def _shape(self, key: str) -> tuple[int, ...]:
        return self._headers[key].shape

    def _dtype(self, key: str) -> np.dtype:
        return self._headers[key].dtype

    def _refuse_objects(self, key: str) -> None:
        if self._headers[key].dtype.hasobject:
            raise RestoreError(
                f"{self.location!r}: the array {key!r} holds Python objects, which are programs "
                "to be run and no numbers, so it is not read. Save it as an array of numbers."
            )


class NpzCheckpoint(_WithHeaders):
    """An `.npz` archive; shapes and dtypes come from the headers of its members."""

    format = "NumPy .npz archive"
    checksums = True

    def __init__(self, location: str) -> None:
        super().__init__(location, [location])
        with zipfile.ZipFile(location) as archive:
            members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
            if not members:
                raise RestoreError(f"{location!r} is a zip archive without any .npy array.")
            refuse_repeated(archive, location)
            self._headers = {
                member.filename.removesuffix(".npy"): _member_header(archive, member, location)
                for member in members
            }
        self._arrays = np.load(location, allow_pickle=False)
        self.training_state = by_name(self._headers)

    def _read(self, key: str) -> np.ndarray:
        self._refuse_objects(key)
        return self._arrays[f"{key}.npy"]  # the full name: a key may itself be that of another

    def close(self) -> None:
        self._arrays.close()


class NpyCheckpoint(_WithHeaders):
    """An `.npy` file; its key is the file's name without `.npy`."""

    format = "NumPy .npy array"

    def __init__(self, location: str) -> None:
        super().__init__(location, [location])
        size = require_file(location)
        with open_regular(location) as file:
            header = _header(file, location)
            _refuse_other_size("the array", header, size - file.tell(), location)
        self._headers = {os.path.basename(location).removesuffix(".npy"): header}

    def _read(self, key: str) -> np.ndarray:
        self._refuse_objects(key)
        require_file(self.location)
        return np.load(self.location, allow_pickle=False)


def _member_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo, location: str) -> _Header:
    refuse_bomb(f"the member {member.filename!r}", member.file_size, member.compress_size, location)
    with archive.open(member) as file:
        header = _header(file, location)
        _refuse_other_size(
            f"the member {member.filename!r}", header, member.file_size - file.tell(), location
        )
    return header


def _header(file: IO[bytes], location: str) -> _Header:
    """The header of an array, whose length it says itself, before all that it says."""
    version = np.lib.format.read_magic(file)
    width = 2 if version == (1, 0) else 4
    start = file.tell()
    length = int.from_bytes(file.read(width), "little")
    if length > _LONGEST_HEADER:
        raise RestoreError(
            f"{location!r}: the header of an array claims {length:,} bytes, which is too long for "
            "a shape and a dtype. It is damaged."
        )
    file.seek(start)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read(file)
    return _Header(shape, dtype)


def _refuse_other_size(what: str, header: _Header, stored: int, location: str) -> None:
    """Objects are pickled, so their size says nothing; they are refused when they are asked for."""
    claimed = nbytes(header.shape, header.dtype)
    if not header.dtype.hasobject and claimed != stored:
        raise RestoreError(
            f"{location!r}: the header of {what} claims {claimed:,} bytes, but {stored:,} follow "
            "it. It is damaged or cut short."
        )


open_file = NpzCheckpoint
open_array = NpyCheckpoint
