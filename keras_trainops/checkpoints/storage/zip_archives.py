"""Zip archives: locate stored members, and refuse ambiguous archives."""

from __future__ import annotations

import io
import struct
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from keras_trainops.checkpoints.storage.files import data_ranges, open_regular, require_file
from keras_trainops.errors import RestoreError

_CHECKSUM_FOLLOWS = 8  # a flag of a member


def stored_place(path: str, member: zipfile.ZipInfo) -> tuple[int, int]:
    """Locate the bytes of an uncompressed member.

    They follow the member's local header, whose length is only stored in that header.

    Args:
        path: Path of the archive.
        member: The member's entry in the central directory.

    Returns:
        Offset and size in bytes.

    Raises:
        RestoreError: If the header is damaged, or the archive ends inside the member.
    """
    with open_regular(path) as file:
        offset = data_offset(file, member, path)
    if offset + member.file_size > require_file(path):
        raise RestoreError(f"{path!r}: the archive ends inside {member.filename}.")
    return offset, member.file_size


def data_offset(file: IO[bytes], member: zipfile.ZipInfo, path: str) -> int:
    """Return the offset of a member's bytes, without comparing it with the size of the file.

    Raises:
        RestoreError: If the header is damaged.
    """
    file.seek(member.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise RestoreError(f"{path!r}: the archive's entry for {member.filename} is damaged.")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    return member.header_offset + len(header) + name_length + extra_length


def set_checksums(path: Path, checksums: Mapping[str, int]) -> None:
    """Correct the checksums of an archive whose members were written after it was laid out.

    A checksum is in the list at the end of the archive, and either before a member's bytes or
    after them.

    Args:
        path: Path of the archive; its members are not compressed.
        checksums: Mapping from the name of a member to the CRC-32 of its bytes.
    """
    with zipfile.ZipFile(path) as archive:
        members, listed = archive.infolist(), archive.start_dir
    with path.open("r+b") as file:
        for member in members:
            checksum = struct.pack("<I", checksums.get(member.filename, member.CRC))
            place = member.header_offset + 14
            if member.flag_bits & _CHECKSUM_FOLLOWS:
                place = data_offset(file, member, str(path)) + member.file_size + 4
            file.seek(listed)
            entry = file.read(46)
            for offset in (place, listed + 16):
                file.seek(offset)
                file.write(checksum)
            listed += len(entry) + sum(struct.unpack("<HHH", entry[28:34]))


def refuse_repeated(archive: zipfile.ZipFile, location: str) -> None:
    """Raise if two members have the same name, as tools differ in which of them they read.

    Raises:
        RestoreError: If a name occurs twice.
    """
    repeated = [name for name, count in Counter(archive.namelist()).items() if count > 1]
    if repeated:
        raise RestoreError(f"{location!r}: the archive contains {repeated[0]!r} more than once.")


class FileWindow(io.RawIOBase):
    """A read-only view of a byte range of a file, such as an uncompressed member of an archive.

    HDF5 files seek a lot, and each seek in a `zipfile` member reads it again from the start:
    minutes per gigabyte.

    Args:
        path: Path of the file.
        offset: Offset of the range in bytes.
        size: Size of the range in bytes.
    """

    def __init__(self, path: str, offset: int, size: int) -> None:
        self._file = io.BufferedReader(open_regular(path))  # closed with the window
        self.path, self.offset = path, offset
        self._size, self._position = size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer)[: max(0, self._size - self._position)]
        self._file.seek(self.offset + self._position)
        count = self._file.readinto(view)
        self._position += count
        return count

    def data_ranges(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of the window between two offsets that are not holes of the file."""
        with open_regular(self.path) as file:
            for start, stop in data_ranges(file.fileno(), self.offset + begin, self.offset + end):
                yield start - self.offset, stop - self.offset

    def close(self) -> None:
        self._file.close()
        super().close()
