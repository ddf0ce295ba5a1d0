"""Open HDF5 files without letting a damaged one take the process down.

The HDF5 library loops forever on a global heap with an entry of length zero. Global heaps contain
strings of variable length, such as Keras's layer names, so all heaps are checked here first. The
library also crashes on variable-length types that a flipped bit makes up, so types are checked
before values are read.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Iterator

import h5py
import numpy as np

from keras_trainops.checkpoints.storage.files import data_ranges, open_regular, require_file
from keras_trainops.checkpoints.storage.zip_archives import FileWindow
from keras_trainops.errors import RestoreError

_HEAP = b"GCOL\x01\0\0\0"  # signature, version, reserved
_BLOCK = 1 << 20
LARGEST_ATTRIBUTE = 64 * 2**20  # bytes; Keras splits lists of names at 64 kB

_NULL = h5py.h5s.NULL  # the space of an attribute or a dataset without a value

MAGIC = b"\x89HDF\r\n\x1a\n"


def open_hdf5(path: str, source: io.IOBase | None = None) -> h5py.File:
    """Open an HDF5 file for reading and check its global heaps.

    Args:
        path: Path of the file, or of the archive that contains it.
        source: File object to read instead of `path`.

    Returns:
        The open file.

    Raises:
        RestoreError: If a heap is damaged.
        OSError: If the library finds the file damaged.
    """
    require_file(path)
    file = h5py.File(source if source is not None else path, "r")
    try:
        if source is not None:
            _refuse_damaged_heaps(file, source, path)
        else:
            with open_regular(path) as content:
                _refuse_damaged_heaps(file, content, path)
    except BaseException:
        file.close()
        raise
    return file


def groups_of(file: h5py.File) -> list[str]:
    """Return the paths of all groups below the root, each once and by hard links only.

    So there are no cycles, and no other files.
    """
    found: list[str] = []

    def visit(path: bytes, about: h5py.h5o.ObjInfo) -> None:
        if about.type == h5py.h5o.TYPE_GROUP and path != b".":
            found.append(path.decode("utf-8", "surrogateescape"))

    h5py.h5o.visit(file.id, visit, info=True)
    return found


def strings(item: h5py.Group | h5py.Dataset, name: str) -> list[str] | None:
    """Return the strings of an attribute, which old files may store as bytes.

    Args:
        item: The group or dataset that has the attribute.
        name: The attribute's name.

    Returns:
        A list, also for a single string; None if there is no such attribute.

    Raises:
        RestoreError: If the attribute does not contain strings, or claims to be very large.
    """
    # h5py's objects for attributes take several times as long as reading one.
    if not h5py.h5a.exists(item.id, name.encode()):
        return None
    attribute = h5py.h5a.open(item.id, name.encode())
    kind, space = attribute.get_type(), attribute.get_space()
    shape = space.shape if space.get_simple_extent_type() != _NULL else None
    if shape == (0,):
        return []  # Keras writes an empty list as one of floats
    if not isinstance(kind, h5py.h5t.TypeStringID) or shape is None or len(shape) > 1:
        raise RestoreError(
            f"{item.name}: its attribute {name!r} looks damaged: it is not a string."
        )
    if math.prod(shape) * kind.get_size() > LARGEST_ATTRIBUTE:
        raise RestoreError(f"{item.name}: its attribute {name!r} claims to be too large for names.")
    values = np.empty(shape, kind.dtype)
    attribute.read(values)
    return [
        value.decode("utf-8") if isinstance(value, bytes) else str(value)
        for value in values.reshape(-1).tolist()
    ]


def holds_numbers(dataset: h5py.Dataset) -> bool:
    """Return True if a dataset contains values of a fixed size, and the file has all of them.

    Variable-length sequences and strings, and references, do not count. For HDF5, bfloat16 is
    opaque, complex numbers are compound and booleans are enumerated.
    """
    plain = (
        h5py.h5t.TypeIntegerID,
        h5py.h5t.TypeFloatID,
        h5py.h5t.TypeOpaqueID,
        h5py.h5t.TypeCompoundID,
        h5py.h5t.TypeEnumID,
    )
    kind = dataset.id.get_type()
    if not isinstance(kind, plain):
        return False
    if dataset.id.get_offset() is None:
        return True  # chunked, or not allocated: the library fills in the rest
    return dataset.id.get_storage_size() == math.prod(dataset.id.shape) * kind.get_size()


def _refuse_damaged_heaps(file: h5py.File, content: io.IOBase, path: str) -> None:
    start = file.userblock_size
    length, end = _lengths_and_end(_read(content, start, 128))
    end = min(start + end, content.seek(0, io.SEEK_END))
    for begin, stop in _gaps(_ranges_of_values(file), start, end):
        for place in _find_heaps(content, begin, stop):
            if not _is_whole(content, place, length, end):
                raise RestoreError(
                    f"{path!r} looks damaged: the HDF5 heap at byte {place} has an entry of zero "
                    "or impossible length."
                )


def _lengths_and_end(superblock: bytes) -> tuple[int, int]:
    """Return the size in bytes of the file's length fields, and the end of the file for HDF5."""
    version = superblock[8]
    offset, length = superblock[13:15] if version < 2 else superblock[9:11]
    addresses = {0: 24, 1: 28}.get(version, 12)
    place = addresses + 2 * offset  # the third address is the end of the file
    return length, int.from_bytes(superblock[place : place + offset], "little")


def _ranges_of_values(file: h5py.File) -> list[tuple[int, int]]:
    """Return the sorted ranges of bytes that contain the values of contiguous datasets."""
    ranges: list[tuple[int, int]] = []

    def visit(name: bytes, about: h5py.h5o.ObjInfo) -> None:
        if about.type == h5py.h5o.TYPE_DATASET:
            dataset = h5py.h5d.open(file.id, name)
            offset = dataset.get_offset()
            if offset is not None:
                ranges.append((offset, offset + dataset.get_storage_size()))

    h5py.h5o.visit(file.id, visit, info=True)  # `visititems` would create every object
    return sorted(ranges)


def _gaps(ranges: Iterable[tuple[int, int]], start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the parts between `start` and `end` that are outside the sorted `ranges`."""
    for begin, stop in ranges:
        if begin > start:
            yield start, min(begin, end)
        start = max(start, stop)
    if start < end:
        yield start, end


def _find_heaps(content: io.IOBase, begin: int, stop: int) -> Iterator[int]:
    """Yield the offsets of heap signatures in a range of the file."""
    for start, end in _without_holes(content, begin, stop):
        for block in range(start, end, _BLOCK):
            # Blocks overlap, so that no signature is cut in two.
            data = _read(content, block, min(_BLOCK + len(_HEAP) - 1, stop - block))
            for match in re.finditer(re.escape(_HEAP), data):
                yield block + match.start()


def _without_holes(content: io.IOBase, begin: int, stop: int) -> Iterator[tuple[int, int]]:
    """Iterate over the parts that are not holes, as large files may consist mostly of holes."""
    if isinstance(content, FileWindow):
        return content.data_ranges(begin, stop)
    return data_ranges(content.fileno(), begin, stop)


def _is_whole(content: io.IOBase, place: int, length: int, end: int) -> bool:
    """Return True if the entries of the heap at `place` add up to its size.

    Args:
        content: The file.
        place: Offset of the heap.
        length: Size of the file's length fields in bytes.
        end: Offset of the end of the file.
    """

    def number(offset: int, size: int) -> int:
        return int.from_bytes(_read(content, place + offset, size), "little")

    header = -(-(8 + length) // 8) * 8
    size, position = number(8, length), header
    if size < header or place + size > end:
        return False
    while position + header <= size:
        index, used = number(position, 2), number(position + 8, length)
        step = header + -(-used // 8) * 8 if index else used
        if step <= 0 or position + step > size:
            return False
        position += step
    return True


def _read(content: io.IOBase, place: int, size: int) -> bytes:
    content.seek(place)
    return content.read(size)
