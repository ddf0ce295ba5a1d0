"""NumPy archives (`.npz`) and single arrays (`.npy`). Nothing is ever unpickled."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.dtypes import nbytes
from keras_trainops.checkpoints.format import Candidate, Format
from keras_trainops.checkpoints.storage.files import open_regular, require_file
from keras_trainops.checkpoints.storage.limits import refuse_bomb
from keras_trainops.checkpoints.storage.raw import Checksum, Extent
from keras_trainops.checkpoints.storage.writing import UnwritableError
from keras_trainops.checkpoints.storage.zip_archives import data_offset, refuse_repeated
from keras_trainops.checkpoints.training_state import by_name
from keras_trainops.errors import RestoreError

_NPY_MAGIC = b"\x93NUMPY"
_LONGEST_HEADER = 10_000  # bytes, the limit of NumPy
_NAME = ".npz"


class _Header(NamedTuple):
    """The header of an array, and its size in bytes."""

    shape: tuple[int, ...]
    dtype: np.dtype
    in_fortran_order: bool
    size: int

    @property
    def is_plain(self) -> bool:
        """If True, the header is followed by plain elements in C order."""
        return not self.in_fortran_order and not self.dtype.hasobject


class _WithHeaders(Checkpoint):
    """Arrays whose headers are read when the file is opened."""

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
                f"{self.location!r}: the array {key!r} contains Python objects, which are "
                "code to run rather than numbers, so it is not read. Save it as an array of "
                "numbers."
            )


class NpzCheckpoint(_WithHeaders):
    """An `.npz` archive; shapes and dtypes come from the members' headers."""

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
            packed = [m for m in members if m.compress_type != zipfile.ZIP_STORED]
        self._compressed = [member.filename.removesuffix(".npy") for member in packed]
        with open_regular(location) as file:  # closed if the file is damaged
            self._stored = {
                member.filename.removesuffix(".npy"): self._place(file, member)
                for member in members
                if member.compress_type == zipfile.ZIP_STORED
            }
        self._arrays = np.load(location, allow_pickle=False)
        self._plain = open_regular(location)
        self.training_state = by_name(self._headers)

    def _extent(self, key: str) -> Extent | None:
        if key not in self._stored or not self._headers[key].is_plain:
            return None
        return Extent(self._plain, *self._stored[key])

    def _place(self, file: io.FileIO, member: zipfile.ZipInfo) -> tuple[int, Checksum]:
        """Return the offset of the elements of an array that is not compressed, and their sum."""
        start = data_offset(file, member, self.location)
        file.seek(start)
        header = file.read(self._headers[member.filename.removesuffix(".npy")].size)
        return start + len(header), Checksum.of_zip_member(member.CRC, header)

    def _read(self, key: str) -> np.ndarray:
        self._refuse_objects(key)
        return self._arrays[f"{key}.npy"]  # the full name, as a key may itself end in `.npy`

    def _structure(self) -> Mapping[str, Any]:
        return {_NAME: {"compressed": self._compressed}}

    def close(self) -> None:
        self._arrays.close()
        self._plain.close()


class NpyCheckpoint(_WithHeaders):
    """An `.npy` file; its key is the file's name without `.npy`."""

    format = "NumPy .npy array"

    def __init__(self, location: str) -> None:
        super().__init__(location, [location])
        size = require_file(location)
        with open_regular(location) as file:
            header = _header(file, location)
            _refuse_other_size("the array", header, size - header.size, location)
        self._headers = {os.path.basename(location).removesuffix(".npy"): header}
        self._plain = open_regular(location)

    def _extent(self, key: str) -> Extent | None:
        header = self._headers[key]
        return Extent(self._plain, header.size) if header.is_plain else None

    def _read(self, key: str) -> np.ndarray:
        self._refuse_objects(key)
        require_file(self.location)
        return np.load(self.location, allow_pickle=False)

    def close(self) -> None:
        self._plain.close()


def _member_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo, location: str) -> _Header:
    refuse_bomb(f"the member {member.filename!r}", member.file_size, member.compress_size, location)
    with archive.open(member) as file:
        header = _header(file, location)
        _refuse_other_size(
            f"the member {member.filename!r}", header, member.file_size - header.size, location
        )
    return header


def _header(file: IO[bytes], location: str) -> _Header:
    """Read the header of an array, after checking the length that it claims."""
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
    shape, in_fortran_order, dtype = read(file)
    return _Header(shape, dtype, in_fortran_order, file.tell())


def _refuse_other_size(what: str, header: _Header, stored: int, location: str) -> None:
    claimed = nbytes(header.shape, header.dtype)
    # Objects are pickled, so their size means nothing; reading them raises anyway.
    if not header.dtype.hasobject and claimed != stored:
        raise RestoreError(
            f"{location!r}: the header of {what} claims {claimed:,} bytes, but {stored:,} follow "
            "it. It is damaged or cut short."
        )


def write(
    path: Path,
    checkpoint: Checkpoint,
    keys: Mapping[str, str],
    progress: Callable[[int], None] = lambda nbytes: None,
) -> None:
    """Write tensors to an archive that `numpy.load` can read; `Writer` describes the arguments.

    A tensor is compressed if it was compressed in the source.

    Raises:
        UnwritableError: If NumPy has no such dtype (bfloat16); nothing is written.
    """
    for name, key in keys.items():
        dtype = checkpoint.dtype(key)
        if dtype.kind not in "biufcmMSU":
            raise UnwritableError(
                f".npz has no dtype for {name!r}, which is {dtype}: `numpy.load` would return "
                "meaningless bytes. Convert to .safetensors."
            )
    compressed = frozenset(checkpoint.structure().get(_NAME, {}).get("compressed", ()))
    with zipfile.ZipFile(path, "w") as archive:
        for name, key in keys.items():
            header = {
                "descr": np.lib.format.dtype_to_descr(checkpoint.dtype(key)),
                "fortran_order": False,
                "shape": checkpoint.shape(key),
            }
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.compress_type = zipfile.ZIP_DEFLATED if key in compressed else zipfile.ZIP_STORED
            with archive.open(entry, "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for piece in checkpoint.pieces(key):
                    member.write(np.ascontiguousarray(piece).view(np.uint8).data)
                    progress(piece.nbytes)


def _is_archive(candidate: Candidate) -> bool:
    return candidate.members is not None


def _is_array(candidate: Candidate) -> bool:
    return candidate.head.startswith(_NPY_MAGIC)


FORMAT = Format(_NAME, _is_archive, NpzCheckpoint, ".npz", write)
ARRAY = Format(".npy", _is_array, NpyCheckpoint)
