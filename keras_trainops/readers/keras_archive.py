"""`.keras` files and unzipped `.keras` directories: weights, and the configuration beside them."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from keras_trainops.readers.base import RestoreError
from keras_trainops.readers.hdf5 import FileWindow
from keras_trainops.readers.hdf5_file import open_hdf5
from keras_trainops.readers.keras_config import lookups_from_config, owners_from_config
from keras_trainops.readers.keras_weights import KerasWeightsCheckpoint
from keras_trainops.readers.limits import refuse_bomb
from keras_trainops.readers.npz import refuse_repeated

MEMBER = "model.weights.h5"
_CONFIG = "config.json"
_MAX_CONFIG = 256 * 2**20


def open_directory(path: str) -> KerasWeightsCheckpoint:
    """Opens an unzipped `.keras` directory."""
    config = Path(path, _CONFIG)
    fits = config.is_file() and config.stat().st_size <= _MAX_CONFIG
    owners, lookups = _told_by(config.read_bytes() if fits else b"")

    def asset(name: str) -> bytes:
        file = Path(path, name)
        return file.read_bytes() if file.is_file() and file.stat().st_size <= _MAX_CONFIG else b""

    words = _vocabularies(owners, lookups, asset)
    file = open_hdf5(os.path.join(path, MEMBER))
    checkpoint = KerasWeightsCheckpoint(path, file, config_owners=owners, vocabularies=words)
    checkpoint.format = "Keras model directory (.keras)"
    return checkpoint


def is_archive(archive: zipfile.ZipFile) -> bool:
    """Whether a zip archive is a `.keras` file."""
    return MEMBER in archive.namelist()


def open_archive(path: str) -> KerasWeightsCheckpoint:
    """Opens a `.keras` file: its weights in place where they are stored, unpacked where not."""
    with zipfile.ZipFile(path) as archive:
        refuse_repeated(archive, path)
        owners, lookups = _told_by(_member(archive, _CONFIG))
        words = _vocabularies(owners, lookups, lambda name: _member(archive, name))
        member = archive.getinfo(MEMBER)
        stored = member.compress_type == zipfile.ZIP_STORED
        data = _window(path, member) if stored else _unpacked(archive, member, path)
    try:
        file = open_hdf5(path, data)
        checkpoint = KerasWeightsCheckpoint(path, file, data, owners, words)
    except BaseException:
        data.close()
        raise
    checkpoint.format = "Keras model file (.keras)"
    return checkpoint


def _told_by(config: bytes) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Layers' names and vocabularies; without a readable configuration, none."""
    try:
        content = json.loads(config)
        return owners_from_config(content), lookups_from_config(content)
    except (ValueError, RecursionError):
        return {}, {}


def _vocabularies(
    owners: dict[str, str], lookups: dict[str, tuple[str, ...]], asset: Callable[[str], bytes]
) -> dict[str, tuple[str, ...]]:
    """The vocabularies of lookup layers: in the configuration, or in a file beside it."""
    found = {name: entries for name, entries in lookups.items() if entries}
    for group, name in owners.items():
        if name in lookups and name not in found:
            text = asset(f"assets/{group}/vocabulary.txt").decode("utf-8", "replace")
            if text:
                found[name] = tuple(text.split("\n"))
    return found


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """A small member; nothing where there is none, or a large one."""
    if name not in archive.namelist() or archive.getinfo(name).file_size > _MAX_CONFIG:
        return b""
    return archive.read(name)


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: str) -> io.IOBase:
    """The weights in a temporary file, as memory may not hold them; their checksum is checked."""
    refuse_bomb(f"the member {MEMBER!r}", member.file_size, member.compress_size, path)
    file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the checkpoint
    with archive.open(member) as packed:
        shutil.copyfileobj(packed, file, 1 << 20)
    return file


def _window(path: str, member: zipfile.ZipInfo) -> FileWindow:
    """The bytes of a stored member: behind its local header, whose length only it tells."""
    with open(path, "rb") as file:
        file.seek(member.header_offset)
        header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise RestoreError(f"{path!r}: the archive's entry for {member.filename} is damaged.")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    offset = member.header_offset + len(header) + name_length + extra_length
    if offset + member.file_size > os.path.getsize(path):
        raise RestoreError(f"{path!r}: the archive ends inside {member.filename}.")
    return FileWindow(path, offset, member.file_size)
