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
from keras_trainops.checkpoints.formats.keras.members import (
    CONFIG,
    WEIGHTS,
    small_file,
    small_member,
)
from keras_trainops.checkpoints.formats.keras.weights import KerasWeightsCheckpoint
from keras_trainops.checkpoints.formats.keras.writer import (
    NAME,
    whole_model,
    write_archive,
    write_directory,
)
from keras_trainops.checkpoints.storage.files import load_json
from keras_trainops.checkpoints.storage.limits import refuse_bomb
from keras_trainops.checkpoints.storage.zip_archives import (
    FileWindow,
    refuse_repeated,
    stored_place,
)
from keras_trainops.errors import RestoreError


def open_directory(path: str) -> KerasWeightsCheckpoint:
    """Open an unzipped `.keras` directory."""
    config = small_file(Path(path, CONFIG))
    owners, lookups, settings = _read_config(config, path)

    def asset(name: str) -> bytes:
        outside = ".." in Path(name).parts or Path(name).is_absolute()
        return b"" if outside else small_file(Path(path, name))

    words = _vocabularies(owners, lookups, asset)
    file = open_hdf5(os.path.join(path, WEIGHTS))
    checkpoint = KerasWeightsCheckpoint(path, file, config_owners=owners, vocabularies=words)
    checkpoint.settings = settings
    checkpoint.whole_model = whole_model(path, config)
    checkpoint.format = "Keras model directory (.keras)"
    return checkpoint


def open_archive(path: str) -> KerasWeightsCheckpoint:
    """Open a `.keras` file; compressed weights are unpacked to a temporary file."""
    with zipfile.ZipFile(path) as archive:
        refuse_repeated(archive, path)
        config = small_member(archive, CONFIG)
        owners, lookups, settings = _read_config(config, path)
        words = _vocabularies(owners, lookups, lambda name: small_member(archive, name))
        member = archive.getinfo(WEIGHTS)
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
    checkpoint.whole_model = whole_model(path, config)
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


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: str) -> io.IOBase:
    """Unpack the weights to a temporary file, verifying the checksum."""
    refuse_bomb(f"the member {WEIGHTS!r}", member.file_size, member.compress_size, path)
    file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the checkpoint
    with archive.open(member) as packed:
        shutil.copyfileobj(packed, file, 1 << 20)
    return file


def _is_directory(candidate: Candidate) -> bool:
    return candidate.is_directory and (candidate.path / WEIGHTS).is_file()


def _is_archive(candidate: Candidate) -> bool:
    return WEIGHTS in (candidate.members or ())


DIRECTORY = Format(NAME, _is_directory, open_directory, write=write_directory)
FORMAT = Format(NAME, _is_archive, open_archive, ".keras", write_archive)
