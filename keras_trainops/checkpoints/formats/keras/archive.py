"""`.keras` files and unzipped `.keras` directories: weights, and the configuration beside them."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from keras_trainops.checkpoints.format import Candidate, Format
from keras_trainops.checkpoints.formats.hdf5.file import open_hdf5
from keras_trainops.checkpoints.formats.keras.config import lookups_from_config, owners_from_config
from keras_trainops.checkpoints.formats.keras.weights import KerasWeightsCheckpoint
from keras_trainops.checkpoints.storage.files import (
    MOST_METADATA,
    load_json,
    read_file,
    require_file,
)
from keras_trainops.checkpoints.storage.limits import refuse_bomb
from keras_trainops.checkpoints.storage.zip_archives import (
    FileWindow,
    refuse_repeated,
    stored_place,
)
from keras_trainops.errors import RestoreError

_MEMBER = "model.weights.h5"
_CONFIG = "config.json"


def open_directory(path: str) -> KerasWeightsCheckpoint:
    """Opens an unzipped `.keras` directory."""
    config = Path(path, _CONFIG)
    owners, lookups = _told_by(_small_file(config), path)

    def asset(name: str) -> bytes:
        outside = ".." in Path(name).parts or Path(name).is_absolute()
        return b"" if outside else _small_file(Path(path, name))

    words = _vocabularies(owners, lookups, asset)
    file = open_hdf5(os.path.join(path, _MEMBER))
    checkpoint = KerasWeightsCheckpoint(path, file, config_owners=owners, vocabularies=words)
    checkpoint.format = "Keras model directory (.keras)"
    return checkpoint


def open_archive(path: str) -> KerasWeightsCheckpoint:
    """Opens a `.keras` file: its weights in place where they are stored, unpacked where not."""
    with zipfile.ZipFile(path) as archive:
        refuse_repeated(archive, path)
        owners, lookups = _told_by(_member(archive, _CONFIG), path)
        words = _vocabularies(owners, lookups, lambda name: _member(archive, name))
        member = archive.getinfo(_MEMBER)
        stored = member.compress_type == zipfile.ZIP_STORED
        data = (
            FileWindow(path, *stored_place(path, member))
            if stored
            else _unpacked(archive, member, path)
        )
    try:
        file = open_hdf5(path, data)
        checkpoint = KerasWeightsCheckpoint(path, file, data, owners, words)
    except BaseException:
        data.close()
        raise
    checkpoint.format = "Keras model file (.keras)"
    return checkpoint


def _told_by(config: bytes, location: str) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Layers' names and vocabularies: a help. Without a readable configuration, none."""
    try:
        content = load_json(config, location)
        return owners_from_config(content), lookups_from_config(content)
    except RestoreError:
        raise
    except ValueError:
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


def _small_file(path: Path) -> bytes:
    """The content of a small file; nothing where there is none, or a large one."""
    fits = path.is_file() and require_file(str(path)) <= MOST_METADATA
    return read_file(str(path)) if fits else b""


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """The content of a small member; nothing where there is none, or a large one."""
    if name not in archive.namelist() or archive.getinfo(name).file_size > MOST_METADATA:
        return b""
    return archive.read(name)


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: str) -> io.IOBase:
    """The weights in a temporary file, as memory may not hold them; their checksum is checked."""
    refuse_bomb(f"the member {_MEMBER!r}", member.file_size, member.compress_size, path)
    file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the checkpoint
    with archive.open(member) as packed:
        shutil.copyfileobj(packed, file, 1 << 20)
    return file


def _is_directory(candidate: Candidate) -> bool:
    return candidate.is_directory and (candidate.path / _MEMBER).is_file()


def _is_archive(candidate: Candidate) -> bool:
    return _MEMBER in (candidate.members or ())


DIRECTORY = Format(".keras", _is_directory, open_directory)
FORMAT = Format(".keras", _is_archive, open_archive)
