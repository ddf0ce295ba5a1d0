"""Open HDF5 files without letting a damaged one take the process down.

The HDF5 library loops forever on a global heap with an entry of length zero. Global heaps contain
strings of variable length, such as Keras's layer names, so all heaps are checked here first. The
library also crashes on variable-length types that a flipped bit makes up, so types are checked
before values are read.

One walk over the links finds all groups and datasets, for these checks and for readers.
"""

from __future__ import annotations

import functools
import io
import itertools
import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import h5py
import numpy as np

from keras_trainops.checkpoints.storage.files import data_ranges, open_regular, require_file
from keras_trainops.checkpoints.storage.zip_archives import FileWindow
from keras_trainops.errors import RestoreError

_HEAP = b"GCOL\x01\0\0\0"  # signature, version, reserved
_HEAPS = re.compile(re.escape(_HEAP))
_BLOCK = 1 << 20
LARGEST_ATTRIBUTE = 64 * 2**20  # bytes; Keras splits lists of names at 64 kB

_NULL = h5py.h5s.NULL  # the space of an attribute or a dataset without a value

MAGIC = b"\x89HDF\r\n\x1a\n"


class Hdf5File(NamedTuple):
    """An open HDF5 file, and what hard links lead to in it: no other files, and no cycles.

    Attributes:
        file: The open file.
        groups: The names of the links in each group, of any kind, by the path of the group. The
            root has an empty path. A group with several paths has the first one only.
        datasets: The datasets by path. A dataset with several names has all of them.
    """

    file: h5py.File
    groups: dict[str, list[str]]
    datasets: dict[str, h5py.h5d.DatasetID]

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def open_hdf5(path: str, source: io.IOBase | None = None) -> Hdf5File:
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
        opened = Hdf5File(file, *_groups_and_datasets(file))
        if source is not None:
            _refuse_damaged_heaps(opened, source, path)
        else:
            with open_regular(path) as content:
                _refuse_damaged_heaps(opened, content, path)
    except BaseException:
        file.close()
        raise
    return opened


def _groups_and_datasets(
    file: h5py.File,
) -> tuple[dict[str, list[str]], dict[str, h5py.h5d.DatasetID]]:
    """Return what `Hdf5File` describes."""
    links: list[tuple[bytes, int | None]] = []

    def visit(path: bytes, link: h5py.h5l.LinkInfo) -> None:
        links.append((path, link.u if link.type == h5py.h5l.TYPE_HARD else None))

    file.id.links.visit(visit, info=True)  # `visititems` would create every object
    groups: dict[str, list[str]] = {"": []}
    datasets: dict[str, h5py.h5d.DatasetID] = {}
    known = {h5py.h5o.get_info(file.id).addr}
    # A group's links follow the first link to it; other links to it have none after them.
    for (path, address), (following, _) in itertools.pairwise([*links, (b"", None)]):
        name = path.decode("utf-8", "surrogateescape")
        above, _, last = name.rpartition("/")
        groups[above].append(last)
        if address is None or address in known:
            continue
        if following.startswith(path + b"/"):
            opened = None
        else:
            opened = h5py.h5o.open(file.id, path)
            if isinstance(opened, h5py.h5d.DatasetID):
                datasets[name] = opened
            if not isinstance(opened, h5py.h5g.GroupID):
                continue
        known.add(address)
        groups[name] = []
    return groups, datasets


def strings(
    item: h5py.h5g.GroupID | h5py.h5d.DatasetID, name: str, below: str = "."
) -> list[str] | None:
    """Return the strings of an attribute, which old files may store as bytes.

    Args:
        item: The group or dataset that has the attribute.
        name: The attribute's name.
        below: The path of another object, below the group, which has the attribute instead.

    Returns:
        A list, also for a single string; None if there is no such attribute.

    Raises:
        RestoreError: If the attribute does not contain strings, or claims to be very large.
    """
    # h5py's objects for groups and attributes take several times as long as reading one.
    encoded, place = name.encode(), below.encode("utf-8", "surrogateescape")
    if not h5py.h5a.exists(item, encoded, obj_name=place):
        return None
    attribute = h5py.h5a.open(item, encoded, obj_name=place)
    kind, space = attribute.get_type(), attribute.get_space()
    shape = None if space.get_simple_extent_type() == _NULL else space.shape
    if shape == (0,):
        return []  # Keras writes an empty list as one of floats
    if not isinstance(kind, h5py.h5t.TypeStringID) or shape is None or len(shape) > 1:
        raise RestoreError(
            f"{_name(item, place)}: its attribute {name!r} looks damaged: it is not a string."
        )
    if math.prod(shape) * kind.get_size() > LARGEST_ATTRIBUTE:
        raise RestoreError(
            f"{_name(item, place)}: its attribute {name!r} claims to be too large for names."
        )
    values = np.empty(shape, _dtype_of(kind))
    attribute.read(values)
    return [
        value.decode("utf-8") if isinstance(value, bytes) else str(value)
        for value in values.reshape(-1).tolist()
    ]


def _name(item: h5py.h5g.GroupID | h5py.h5d.DatasetID, below: bytes) -> str:
    name = h5py.h5i.get_name(h5py.h5o.open(item, below))
    return name.decode("utf-8", "surrogateescape")


def _dtype_of(strings: h5py.h5t.TypeStringID) -> np.dtype:
    """Return the dtype of strings; h5py creates it anew for each attribute."""
    if strings.is_variable_str():
        return _of_any_length(strings.get_cset() == h5py.h5t.CSET_UTF8)
    return strings.dtype


@functools.cache
def _of_any_length(is_unicode: bool) -> np.dtype:
    return h5py.string_dtype("utf-8" if is_unicode else "ascii")


def _refuse_damaged_heaps(opened: Hdf5File, content: io.IOBase, path: str) -> None:
    start = opened.file.userblock_size
    length, end = _lengths_and_end(_read(content, start, 128))
    end = min(start + end, content.seek(0, io.SEEK_END))
    for begin, stop in _gaps(_ranges_of_values(opened.datasets.values()), start, end):
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


def _ranges_of_values(datasets: Iterable[h5py.h5d.DatasetID]) -> list[tuple[int, int]]:
    """Return the sorted ranges of bytes that contain the values of contiguous datasets."""
    places = ((dataset.get_offset(), dataset) for dataset in datasets)
    return sorted(
        (offset, offset + dataset.get_storage_size())
        for offset, dataset in places
        if offset is not None
    )


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
            for match in _HEAPS.finditer(data):
                yield block + match.start()


def _without_holes(content: io.IOBase, begin: int, stop: int) -> Iterator[tuple[int, int]]:
    """Iterate over the parts that are not holes, as large files may consist mostly of holes."""
    if stop - begin <= _BLOCK:
        return iter([(begin, stop)])  # looking for holes would take longer
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
