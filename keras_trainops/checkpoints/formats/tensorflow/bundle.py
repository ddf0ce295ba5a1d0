"""Where the tensors of a TensorFlow V2 checkpoint lie in its data files.

TensorFlow's reader tells no offsets. The `.index` file does: a sorted table (of LevelDB's format)
from tensor name to `BundleEntryProto`, which has the checksum too. Whatever is not of the plain
kind is left to TensorFlow's reader.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from keras_trainops.checkpoints.storage.files import read_file

_FOOTER = 48  # two block handles, padded, and eight bytes that say what the file is
_PLAIN = b"\0"  # the type of a block that is not compressed


class Place(NamedTuple):
    """A tensor's bytes: in which data file, from where, how many, and their masked CRC-32C."""

    file: str
    offset: int
    size: int
    checksum: int


def places(prefix: str) -> dict[bytes, Place]:
    """The place of each whole tensor, by name; empty if the table is of another kind.

    A tensor that was partitioned has an entry without a place, and one with a place for each of its
    slices, under keys that are no names (see `EncodeTensorNameSlice` of TensorFlow): names are
    therefore looked up and never made of keys.

    Raises:
        ValueError, IndexError: If the table is damaged.
    """
    from tensorflow.core.protobuf import tensor_bundle_pb2

    table = read_file(f"{prefix}.index")
    _, at = _handle(table, len(table) - _FOOTER)
    root, _ = _handle(table, at)
    entries = {
        name: value
        for _, handle in _entries(_block(table, *root))
        for name, value in _entries(_block(table, *_handle(handle, 0)[0]))
    }
    header = tensor_bundle_pb2.BundleHeaderProto.FromString(entries.pop(b"", b""))
    if header.endianness != tensor_bundle_pb2.BundleHeaderProto.LITTLE:
        return {}
    found = {}
    for name, value in entries.items():
        entry = tensor_bundle_pb2.BundleEntryProto.FromString(value)
        if not entry.slices:
            file = f"{prefix}.data-{entry.shard_id:05d}-of-{header.num_shards:05d}"
            found[name] = Place(file, entry.offset, entry.size, entry.crc32c)
    return found


def _block(table: bytes, offset: int, size: int) -> bytes:
    if table[offset + size : offset + size + 1] != _PLAIN:
        return b"\0\0\0\0"  # compressed: an empty block, and nothing is told
    return table[offset : offset + size]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values; each key leaves out what it shares with the one before."""
    end = len(block) - 4 * (1 + int.from_bytes(block[-4:], "little"))  # restart points follow
    at, key = 0, b""
    while at < end:
        shared, at = _number(block, at)
        own, at = _number(block, at)
        size, at = _number(block, at)
        key = key[:shared] + block[at : at + own]
        yield key, block[at + own : at + own + size]
        at += own + size


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    offset, at = _number(data, at)
    size, at = _number(data, at)
    return (offset, size), at


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first."""
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at
