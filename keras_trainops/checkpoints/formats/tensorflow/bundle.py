"""Locate the tensors of a TensorFlow V2 checkpoint in its data files.

TensorFlow's reader does not expose offsets. They are in the `.index` file, a sorted table in
LevelDB's format from tensor name to `BundleEntryProto`, together with checksums. Compressed tables,
big-endian data and partitioned tensors are left to TensorFlow's reader.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from keras_trainops.checkpoints.storage.files import read_file

_FOOTER = 48  # bytes: two block handles, padding and a magic number
_PLAIN = b"\0"  # the type of an uncompressed block


class TensorPlace(NamedTuple):
    """The place of a tensor's bytes in a data file, and their masked CRC-32C."""

    file: str
    offset: int
    size: int
    checksum: int


def places(prefix: str) -> dict[bytes, TensorPlace]:
    """Read the places of all tensors that are stored whole.

    The slices of a partitioned tensor have entries of their own, under keys that are not names (see
    `EncodeTensorNameSlice` of TensorFlow). So look names up; do not list them.

    Args:
        prefix: The prefix of the checkpoint.

    Returns:
        Mapping from name to place; empty if the data are big-endian or the table is compressed.

    Raises:
        ValueError, IndexError: If the table is damaged.
    """
    from tensorflow.core.protobuf import tensor_bundle_pb2

    table = read_file(f"{prefix}.index")
    entries = _table_entries(table)
    header = tensor_bundle_pb2.BundleHeaderProto.FromString(entries.pop(b"", b""))
    if header.endianness != tensor_bundle_pb2.BundleHeaderProto.LITTLE:
        return {}
    found = {}
    for name, value in entries.items():
        entry = tensor_bundle_pb2.BundleEntryProto.FromString(value)
        if not entry.slices:
            file = f"{prefix}.data-{entry.shard_id:05d}-of-{header.num_shards:05d}"
            found[name] = TensorPlace(file, entry.offset, entry.size, entry.crc32c)
    return found


def _table_entries(table: bytes) -> dict[bytes, bytes]:
    _, at = _handle(table, len(table) - _FOOTER)
    index, _ = _handle(table, at)
    entries: dict[bytes, bytes] = {}
    for _, handle in _entries(_block(table, *index)):
        place, _ = _handle(handle, 0)
        entries.update(_entries(_block(table, *place)))
    return entries


def _block(table: bytes, offset: int, size: int) -> bytes:
    if table[offset + size : offset + size + 1] != _PLAIN:
        return b"\0\0\0\0"  # compressed: return an empty block
    return table[offset : offset + size]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield keys and values; each stored key omits the prefix it shares with the previous one."""
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
    """Decode the offset and size of a block; also return the position after them."""
    offset, at = _number(data, at)
    size, at = _number(data, at)
    return (offset, size), at


def _number(data: bytes, at: int) -> tuple[int, int]:
    """Decode a varint: seven bits per byte, lowest first; also return the position after it."""
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at
