"""What keeps a damaged HDF5 file from bringing the process down.

The HDF5 library never returns from a global heap in which an entry has no length: its walk over the
heap stands still. The heaps of a file are therefore walked here before (strings of varying length
lie in them, such as Keras's layer names). And it crashes as it reads what a flipped bit made into
sequences of varying length, so that types are looked at before values are read.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator

import h5py

from keras_trainops.checkpoints.storage.files import data_ranges, open_regular, require_file
from keras_trainops.checkpoints.storage.zip_archives import FileWindow
from keras_trainops.errors import RestoreError

_HEAP = b"GCOL\x01\0\0\0"  # signature, version, reserved
_BLOCK = 1 << 20
_LARGEST_ATTRIBUTE = 64 * 2**20  # bytes; Keras splits lists of names at 64 kB

MAGIC = b"\x89HDF\r\n\x1a\n"


def open_hdf5(path: str, source: io.IOBase | None = None) -> h5py.File:
    """Opens an HDF5 file to read, once its global heaps are known to be whole.

    Args:
        path: The file.
        source: What to read in its place, as where the file lies inside an archive.

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


def strings(item: h5py.Group | h5py.Dataset, name: str) -> list[str] | None:
    """The strings of an attribute, of which old files keep some as bytes; None if there is none.

    Raises:
        RestoreError: If the attribute holds something else.
    """
    if name not in item.attrs:
        return None
    attribute = item.attrs.get_id(name)
    if attribute.shape == (0,):
        return []  # Keras writes an empty list as one of floats
    if not isinstance(attribute.get_type(), h5py.h5t.TypeStringID) or len(attribute.shape) > 1:
        raise RestoreError(f"{item.name}: its attribute {name!r} looks damaged: it is no string.")
    if math.prod(attribute.shape) * attribute.get_type().get_size() > _LARGEST_ATTRIBUTE:
        raise RestoreError(f"{item.name}: its attribute {name!r} claims to be too large for names.")
    values = item.attrs[name]
    return [
        value.decode("utf-8") if isinstance(value, bytes) else str(value)
        for value in ([values] if attribute.shape == () else values)
    ]


def holds_numbers(dataset: h5py.Dataset) -> bool:
    """Whether a data set holds values of a fixed size, all of which the file has.

    That is: no sequences or strings of varying length, and no references. bfloat16 is opaque to
    HDF5, a complex number is compound, a boolean enumerated.
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
    if dataset.chunks is not None or dataset.id.get_offset() is None:
        return True  # compressed, or written by the library as it fills
    return dataset.id.get_storage_size() == math.prod(dataset.shape) * kind.get_size()


def _refuse_damaged_heaps(file: h5py.File, content: io.IOBase, path: str) -> None:
    start = file.userblock_size
    length, end = _lengths_and_end(_read(content, start, 128))
    end = min(start + end, content.seek(0, io.SEEK_END))
    for begin, stop in _gaps(_ranges_of_values(file), start, end):
        for place in _find_heaps(content, begin, stop):
            if not _is_whole(content, place, length, end):
                raise RestoreError(
                    f"{path!r} looks damaged: the HDF5 heap at byte {place} has an entry of no or "
                    "impossible length."
                )


def _lengths_and_end(superblock: bytes) -> tuple[int, int]:
    """The size of the file's lengths in bytes, and where the library takes the file to end."""
    version = superblock[8]
    offset, length = superblock[13:15] if version < 2 else superblock[9:11]
    bases = {0: 24, 1: 28}.get(version, 12)  # of three addresses, the third is the end
    place = bases + 2 * offset
    return length, int.from_bytes(superblock[place : place + offset], "little")


def _ranges_of_values(file: h5py.File) -> list[tuple[int, int]]:
    """Where the values of the data sets lie that are in one piece, in order."""
    ranges: list[tuple[int, int]] = []

    def visit(name: bytes, about: h5py.h5o.ObjInfo) -> None:
        if about.type == h5py.h5o.TYPE_DATASET:
            dataset = h5py.h5d.open(file.id, name)
            offset = dataset.get_offset()
            if offset is not None:
                ranges.append((offset, offset + dataset.get_storage_size()))

    h5py.h5o.visit(file.id, visit, info=True)  # as `visititems`, which would make objects of all
    return sorted(ranges)


def _gaps(ranges: Iterable[tuple[int, int]], start: int, end: int) -> Iterator[tuple[int, int]]:
    for begin, stop in ranges:
        if begin > start:
            yield start, min(begin, end)
        start = max(start, stop)
    if start < end:
        yield start, end


def _find_heaps(content: io.IOBase, begin: int, stop: int) -> Iterator[int]:
    """Places of heaps between two places of the file, which are read in blocks that overlap."""
    for start, end in _without_holes(content, begin, stop):
        for block in range(start, end, _BLOCK):
            data = _read(content, block, min(_BLOCK + len(_HEAP) - 1, stop - block))
            found = data.find(_HEAP)
            while found >= 0:
                yield block + found
                found = data.find(_HEAP, found + 1)


def _without_holes(content: io.IOBase, begin: int, stop: int) -> Iterator[tuple[int, int]]:
    """The parts that may hold anything: a file of gigabytes may be a hole for the most part."""
    if isinstance(content, FileWindow):
        return content.data_ranges(begin, stop)
    return data_ranges(content.fileno(), begin, stop)


def _is_whole(content: io.IOBase, place: int, length: int, end: int) -> bool:
    """Whether a walk over the entries of a heap comes to its end."""

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
