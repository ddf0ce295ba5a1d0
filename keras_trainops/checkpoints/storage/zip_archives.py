"""Zip archives: where a stored member lies in the file, and what no archive may hold."""

from __future__ import annotations

import io
import struct
import zipfile
from collections import Counter
from collections.abc import Iterator

from keras_trainops.checkpoints.storage.files import data_ranges, open_regular, require_file
from keras_trainops.errors import RestoreError


def stored_place(path: str, member: zipfile.ZipInfo) -> tuple[int, int]:
    """Where the bytes of a member lie that is not compressed: the first, and how many.

    They follow its local header, whose length only it tells.

    Raises:
        RestoreError: If the header is damaged, or the archive ends before they do.
    """
    with open_regular(path) as file:
        file.seek(member.header_offset)
        header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise RestoreError(f"{path!r}: the archive's entry for {member.filename} is damaged.")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    offset = member.header_offset + len(header) + name_length + extra_length
    if offset + member.file_size > require_file(path):
        raise RestoreError(f"{path!r}: the archive ends inside {member.filename}.")
    return offset, member.file_size


def refuse_repeated(archive: zipfile.ZipFile, location: str) -> None:
    """Refuses an archive with two members of one name: which of them counts, each tool decides.

    Raises:
        RestoreError: If there are any.
    """
    repeated = [name for name, count in Counter(archive.namelist()).items() if count > 1]
    if repeated:
        raise RestoreError(f"{location!r}: the archive holds {repeated[0]!r} more than once.")


class FileWindow(io.RawIOBase):
    """A read-only window on a part of a file, as an uncompressed member of a zip archive is.

    Reading an HDF5 file through `zipfile` costs minutes a gigabyte, as each seek reads again from
    the start; the stored member is a plain range of bytes.
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
        """The parts of the window between two places of it that are no holes of the file."""
        with open_regular(self.path) as file:
            for start, stop in data_ranges(file.fileno(), self.offset + begin, self.offset + end):
                yield start - self.offset, stop - self.offset

    def close(self) -> None:
        self._file.close()
        super().close()
