"""`.keras` files and unzipped `.keras` directories: weights, and the configuration beside them."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

from keras_trainops.readers.archives import FileWindow, refuse_repeated, stored_place
from keras_trainops.readers.errors import RestoreError
from keras_trainops.readers.files import MOST_METADATA, load_json, read_file, require_file
from keras_trainops.readers.hdf5_file import open_hdf5
from keras_trainops.readers.keras_config import owners_from_config
from keras_trainops.readers.keras_weights import KerasWeightsCheckpoint
from keras_trainops.readers.limits import refuse_bomb

MEMBER = "model.weights.h5"
_CONFIG = "config.json"


def open_directory(path: str) -> KerasWeightsCheckpoint:
    """Opens an unzipped `.keras` directory."""
    config = Path(path, _CONFIG)
    fits = config.is_file() and require_file(str(config)) <= MOST_METADATA
    owners = _owners(read_file(str(config)) if fits else b"", path)
    file = open_hdf5(os.path.join(path, MEMBER))
    checkpoint = KerasWeightsCheckpoint(path, file, config_owners=owners)
    checkpoint.format = "Keras model directory (.keras)"
    return checkpoint


def is_archive(archive: zipfile.ZipFile) -> bool:
    """Whether a zip archive is a `.keras` file."""
    return MEMBER in archive.namelist()


def open_archive(path: str) -> KerasWeightsCheckpoint:
    """Opens a `.keras` file: its weights in place where they are stored, unpacked where not."""
    with zipfile.ZipFile(path) as archive:
        refuse_repeated(archive, path)
        owners = _owners(_config(archive), path)
        member = archive.getinfo(MEMBER)
        stored = member.compress_type == zipfile.ZIP_STORED
        data = (
            FileWindow(path, *stored_place(path, member))
            if stored
            else _unpacked(archive, member, path)
        )
    try:
        file = open_hdf5(path, data)
        checkpoint = KerasWeightsCheckpoint(path, file, source=data, config_owners=owners)
    except BaseException:
        data.close()
        raise
    checkpoint.format = "Keras model file (.keras)"
    return checkpoint


def _owners(config: bytes, location: str) -> dict[str, str]:
    """Names are a help where the weights lack them; without a readable configuration, none."""
    try:
        return owners_from_config(load_json(config, location))
    except RestoreError:
        raise
    except ValueError:
        return {}


def _config(archive: zipfile.ZipFile) -> bytes:
    if _CONFIG not in archive.namelist() or archive.getinfo(_CONFIG).file_size > MOST_METADATA:
        return b""
    return archive.read(_CONFIG)


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: str) -> io.IOBase:
    """The weights in a temporary file, as memory may not hold them; their checksum is checked."""
    refuse_bomb(f"the member {MEMBER!r}", member.file_size, member.compress_size, path)
    file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the checkpoint
    with archive.open(member) as packed:
        shutil.copyfileobj(packed, file, 1 << 20)
    return file
