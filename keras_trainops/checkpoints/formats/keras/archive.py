"""`.keras` files and unzipped `.keras` directories, whose configuration names the layers."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from keras_trainops.checkpoints.format import Candidate, Format
from keras_trainops.checkpoints.formats.hdf5.file import open_hdf5
from keras_trainops.checkpoints.formats.keras.config import (
    lookups_from_config,
    owners_from_config,
    settings_from_config,
)
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
    """Open an unzipped `.keras` directory."""
    owners, lookups, settings = _read_config(_small_file(Path(path, _CONFIG)), path)

    def asset(name: str) -> bytes:
        outside = ".." in Path(name).parts or Path(name).is_absolute()
        return b"" if outside else _small_file(Path(path, name))

    words = _vocabularies(owners, lookups, asset)
    file = open_hdf5(os.path.join(path, _MEMBER))
    checkpoint = KerasWeightsCheckpoint(path, file, config_owners=owners, vocabularies=words)
    checkpoint.settings = settings
    checkpoint.format = "Keras model directory (.keras)"
    return checkpoint


def open_archive(path: str) -> KerasWeightsCheckpoint:
    """Open a `.keras` file; compressed weights are unpacked to a temporary file."""
    with zipfile.ZipFile(path) as archive:
        refuse_repeated(archive, path)
        owners, lookups, settings = _read_config(_member(archive, _CONFIG), path)
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
    checkpoint.settings = settings
    checkpoint.format = "Keras model file (.keras)"
    return checkpoint


class _Configuration(NamedTuple):
    """The parts of a configuration that are used; `config.py` extracts them."""

    owners: dict[str, str]
    lookups: dict[str, tuple[str, ...]]
    settings: dict[str, dict[str, Any]]


def _read_config(config: bytes, location: str) -> _Configuration:
    """Return what the configuration tells; nothing if it is not readable JSON."""
    try:
        content = load_json(config, location)
        return _Configuration(
            owners_from_config(content), lookups_from_config(content), settings_from_config(content)
        )
    except RestoreError:
        raise
    except ValueError:
        return _Configuration({}, {}, {})


def _vocabularies(
    owners: dict[str, str], lookups: dict[str, tuple[str, ...]], asset: Callable[[str], bytes]
) -> dict[str, tuple[str, ...]]:
    """Return the vocabularies of lookup layers, from the configuration or from assets.

    Args:
        owners: Layer name by group of the weights file.
        lookups: Vocabularies in the configuration by layer name; an empty one is in an asset.
        asset: Returns the content of an asset; empty if it is missing.
    """
    found = {name: entries for name, entries in lookups.items() if entries}
    for group, name in owners.items():
        if name in lookups and name not in found:
            text = asset(f"assets/{group}/vocabulary.txt").decode("utf-8", "replace")
            if text:
                found[name] = tuple(text.split("\n"))
    return found


def _small_file(path: Path) -> bytes:
    """Read a small file; empty if it is missing or large."""
    fits = path.is_file() and require_file(str(path)) <= MOST_METADATA
    return read_file(str(path)) if fits else b""


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Read a small member; empty if it is missing or large."""
    if name not in archive.namelist() or archive.getinfo(name).file_size > MOST_METADATA:
        return b""
    return archive.read(name)


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: str) -> io.IOBase:
    """Unpack the weights to a temporary file, verifying the checksum."""
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
